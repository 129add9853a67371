"""A teacher whose answers come too late, or are not needed any more."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.hashing import messages_of
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store import claims
from markscheme_server.store.teachers import TeacherBank
from server.scoring.in_process import PROMPT, Scoring, in_an_hour

ASKED = messages_of(PROMPT)


async def test_who_waits_for_another_process_to_ask_the_teacher_waits_to_the_deadline(
    scoring: Scoring, other: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "FIRST_POLL_S", 0.001)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> str:
        asked.set()
        await go_on.wait()
        return "Red."

    scoring.model.says = held
    context = CallContext(in_an_hour(), team="red")
    first = asyncio.ensure_future(scoring.teachers.ensure("red", ASKED, 1, context))
    await asked.wait()
    soon = CallContext(Deadline(asyncio.get_running_loop().time() + 0.02), team="red")
    with pytest.raises(JudgeFailure, match="did not respond in the request's time") as late:
        await other.teachers.ensure("red", ASKED, 1, soon)
    assert late.value.reason == UnscoredReason.TIMEOUT
    assert other.model.sampled == 0
    go_on.set()
    assert (await first).added == 1
    again = await other.teachers.ensure("red", ASKED, 1, context)
    assert [each.response for each in again.bank] == ["Red."]


async def test_a_bank_that_was_filled_meanwhile_asks_for_nothing(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, looks = TeacherBank.find, 0

    async def slow(self: TeacherBank, team: str, key: str) -> Sequence[Any]:
        nonlocal looks
        looks += 1
        if looks == 3:  # under the claim, and after the second look at whether the bank is full
            await self.save(team, ASKED, ["Red.", "Blue."])
        return await find(self, team, key)

    monkeypatch.setattr(TeacherBank, "find", slow)
    context = CallContext(in_an_hour(), team="red")
    found = await scoring.teachers.ensure("red", ASKED, 2, context)
    assert (found.added, len(found.bank), scoring.model.sampled) == (0, 2, 0)
