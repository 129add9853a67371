"""Rollouts whose trainer names no group: which group of the prompt they join."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.processes import PATIENCE_S
from markscheme import schema
from markscheme_server.domain.rubric import Rubric
from markscheme_server.errors import Conflict
from markscheme_server.scoring import unnamed_groups
from markscheme_server.scoring.unnamed_groups import UnnamedGroups
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.gathering import Arrival, GatheringStore, GroupState, Refusal
from markscheme_server.store.tables import gathered_groups, gathered_rollouts
from server.scoring.in_process import PROMPT, RED, Scoring, in_an_hour, until


def unnamed(scoring: Scoring) -> UnnamedGroups:
    """Return the service of a process that remembers nothing."""
    return UnnamedGroups(scoring.store.gathering, scoring.rollouts)


async def send(
    groups: UnnamedGroups, rubric: Rubric, text: str, size: int = 1, wait_s: float = 60
) -> float:
    request = {
        "prompt": PROMPT,
        "rubric_id": rubric.id,
        "group": {"key": "-", "size": size, "wait_s": wait_s},
        "rollout": {"id": "-", "text": text},
    }
    async with asyncio.timeout(PATIENCE_S):
        known = await groups.score(RED, schema.RolloutRequest.model_validate(request), in_an_hour())
    assert not known.unscored
    return known.reward


async def groups_of(scoring: Scoring) -> list[int]:
    """Return how many rollouts each group has, in the order in which they were begun."""
    g = gathered_groups.c
    async with scoring.store.database.reading(ALL_TEAMS) as connection:
        found = await connection.execute(sa.select(g.received).order_by(g.created_at))
        return list(found.scalars())


async def test_a_rollout_joins_the_next_group_when_others_were_faster(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, resume = await scoring.rubric(), GatheringStore.resume
    slow, fast = unnamed(scoring), unnamed(scoring)
    filled: list[asyncio.Task[float]] = []

    async def overtaken(
        self: GatheringStore, team: str, ids: Iterable[str], response: Any, asked_s: float
    ) -> tuple[str, str] | None:
        if response == "good: slow" and not filled:
            filled.extend(
                asyncio.ensure_future(send(fast, rubric, text, 2)) for text in ("good", "bad")
            )
            await asyncio.wait(filled)
        return await resume(self, team, ids, response, asked_s)

    monkeypatch.setattr(GatheringStore, "resume", overtaken)
    assert await send(slow, rubric, "good: slow", 2, wait_s=0.05) == 1.0
    assert [await each for each in filled] == [1.0, 0.0]
    assert await groups_of(scoring) == [2, 1]


async def test_another_conflict_than_a_full_group_is_the_callers(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_self: GatheringStore, _arrival: Arrival) -> GroupState | Refusal:
        return "other_terms"

    rubric = await scoring.rubric()
    monkeypatch.setattr(GatheringStore, "arrive", refused)
    with pytest.raises(Conflict) as conflict:
        await send(unnamed(scoring), rubric, "good")
    assert conflict.value.code == "group_other_terms"


async def test_a_caller_that_leaves_before_its_place_is_known_takes_none(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, resume = await scoring.rubric(), GatheringStore.resume
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def held(self: GatheringStore, *arguments: Any) -> tuple[str, str] | None:
        asked.set()
        await go_on.wait()
        return await resume(self, *arguments)

    monkeypatch.setattr(GatheringStore, "resume", held)
    leaving = asyncio.ensure_future(send(unnamed(scoring), rubric, "good"))
    await asked.wait()
    leaving.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await groups_of(scoring) == []
    async with scoring.store.database.reading(ALL_TEAMS) as connection:
        assert (await connection.execute(sa.select(gathered_rollouts))).all() == []


async def test_a_process_that_is_new_finds_the_last_group_of_many(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unnamed_groups, "_AHEAD", 2)
    rubric, first, count = await scoring.rubric(), unnamed(scoring), 3
    for number in range(count):
        assert await send(first, rubric, f"good {number}") == 1.0
    assert await send(unnamed(scoring), rubric, "bad") == 0.0
    assert await groups_of(scoring) == [1] * (count + 1)


async def test_a_process_that_forgot_a_prompt_finds_its_last_group_again(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unnamed_groups, "MAX_REMEMBERED", 1)
    groups, rubrics = unnamed(scoring), [await scoring.rubric(), await scoring.rubric()]
    waiting = asyncio.ensure_future(send(groups, rubrics[0], "good", 2))
    await until(lambda: groups_of(scoring))
    other = await scoring.rubric(prompt="Another.")
    assert await send(groups, other, "bad") == 0.0
    assert await send(groups, rubrics[0], "bad", 2) == 0.0
    assert await waiting == 1.0
    assert sorted(await groups_of(scoring)) == [1, 2]
