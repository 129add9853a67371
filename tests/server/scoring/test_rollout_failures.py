"""Groups whose rollouts arrive alone: what is answered when a process, rubric or group is lost."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from fakes.processes import PATIENCE_S
from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.rubric import Rubric
from markscheme_server.errors import NotFound, Unavailable
from markscheme_server.judge.base import Decision, JudgeFailure, Verification, VerifyTask
from markscheme_server.scoring import rollouts
from markscheme_server.scoring.rollouts import group_id
from markscheme_server.store.claims import ClaimStore
from markscheme_server.store.engine.database import ALL_TEAMS, DatabaseUnreachable
from markscheme_server.store.gathering import GatheredScore, GatheringStore, GroupState, Member
from markscheme_server.store.tables import gathered_groups, gathered_rollouts
from server.scoring.in_process import PROMPT, RED, Scoring, in_an_hour, is_good, until

GROUP = group_id("red", None, "g")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "POLL_S", 0.01)


async def send(
    scoring: Scoring, rubric: Rubric, *, size: int = 1, wait_s: float = 60
) -> schema.ScoredRollout:
    request = {
        "prompt": PROMPT,
        "rubric_id": rubric.id,
        "group": {"key": "g", "size": size, "wait_s": wait_s},
        "rollout": {"id": "r", "text": "good"},
    }
    async with asyncio.timeout(PATIENCE_S):
        return await scoring.rollouts.score(
            RED, schema.RolloutRequest.model_validate(request), in_an_hour()
        )


class Held:
    """A model that says nothing until it is released."""

    def __init__(self, scoring: Scoring) -> None:
        self.asked, self.released = asyncio.Event(), asyncio.Event()
        scoring.model.verify_as = self._verify

    async def _verify(self, task: VerifyTask) -> Verification:
        self.asked.set()
        await self.released.wait()
        return await is_good(task)


async def execute(scoring: Scoring, *statements: Any) -> None:
    async with scoring.store.database.writing(ALL_TEAMS) as connection:
        for statement in statements:
            await connection.execute(statement)


DELETED = (sa.delete(gathered_rollouts), sa.delete(gathered_groups))


async def test_a_service_that_stops_asks_for_the_rollout_again(scoring: Scoring) -> None:
    rubric, held = await scoring.rubric(), Held(scoring)
    sending = asyncio.ensure_future(send(scoring, rubric))
    await held.asked.wait()
    await scoring.rollouts.drain(0)
    with pytest.raises(Unavailable, match="the service is stopping") as refused:
        await sending
    assert (refused.value.code, refused.value.retry_after_s) == ("draining", 1)


async def test_a_process_whose_lease_ended_gives_the_answer_of_the_one_that_took_over(
    scoring: Scoring, other: Scoring
) -> None:
    async def strict(task: VerifyTask) -> Verification:
        return ({"c1": Decision(False)},)

    rubric, held = await scoring.rubric(), Held(scoring)
    late = asyncio.ensure_future(send(scoring, rubric))
    await held.asked.wait()
    await scoring.expire_claims()
    other.model.verify_as = strict
    taken_over = await send(other, rubric)
    assert taken_over.rollout.reward == 0.0
    held.released.set()
    answer = await late
    # What the first process heard in the end changes nothing.
    assert (answer.rollout.reward, answer.group) == (0.0, taken_over.group)
    assert len(scoring.model.asked) == 1
    stored = await scoring.store.gathering.score("red", GROUP)
    assert stored is not None
    assert stored.attempts == 1
    assert not await scoring.store.claims.is_held(GROUP)


async def test_a_group_that_another_process_scored_just_now_is_not_scored_again(
    scoring: Scoring, other: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, is_held = await scoring.rubric(), ClaimStore.is_held

    async def slow_look(self: ClaimStore, key: str) -> bool:
        held = await is_held(self, key)
        if self is scoring.store.claims and key == GROUP and not other.model.asked:
            await send(other, rubric)
        return held

    monkeypatch.setattr(ClaimStore, "is_held", slow_look)
    assert (await send(scoring, rubric)).rollout.reward == 1.0
    assert (len(other.model.asked), len(scoring.model.asked)) == (1, 0)
    assert not await is_held(scoring.store.claims, GROUP)


async def test_an_outage_amid_a_score_keeps_no_other_process_waiting(
    scoring: Scoring, other: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, members = await scoring.rubric(), GatheringStore.members

    async def unreachable(self: GatheringStore, team: str, group: str) -> list[Member]:
        if self is scoring.store.gathering:
            raise DatabaseUnreachable("OSError")
        return await members(self, team, group)

    monkeypatch.setattr(GatheringStore, "members", unreachable)
    with pytest.raises(DatabaseUnreachable):
        await send(scoring, rubric)
    assert not await scoring.store.claims.is_held(GROUP)
    assert (await send(other, rubric)).rollout.reward == 1.0


async def test_a_group_that_waits_is_refused_when_its_named_rubric_is_no_longer_shared(
    scoring: Scoring,
) -> None:
    rubric = await scoring.rubric(team="blue")
    await scoring.share(rubric)
    sending = asyncio.ensure_future(send(scoring, rubric, size=2, wait_s=0.1))
    await until(lambda: scoring.store.gathering.states({GROUP: "red"}))
    await scoring.forget_rubric(rubric)
    with pytest.raises(NotFound, match=rubric.id):
        await sending
    assert scoring.model.asked == []


async def test_a_group_keeps_its_rubric_and_is_not_known_when_that_is_no_longer_shared(
    scoring: Scoring,
) -> None:
    async def down(_task: VerifyTask) -> Verification:
        raise JudgeFailure(UnscoredReason.UNAVAILABLE, "down")

    rubric = await scoring.rubric(team="blue")
    await scoring.share(rubric)
    request = schema.RolloutRequest.model_validate(
        {
            "prompt": PROMPT,
            "reuse": "frozen",
            "group": {"key": "g", "size": 1, "wait_s": 60},
            "rollout": {"id": "r", "text": "good"},
        }
    )
    scoring.model.verify_as = down
    first = await scoring.rollouts.score(RED, request, in_an_hour())
    assert first.rubric is not None
    assert (first.rubric.id, first.rollout.reason) == (rubric.id, "unavailable")
    scoring.model.verify_as = is_good
    await scoring.forget_rubric(rubric)
    again = await scoring.rollouts.score(RED, request, in_an_hour())
    assert (again.rollout.reward, again.rollout.reason) == (None, "no_rubric")
    assert again.error is not None
    assert "no longer shared" in again.error.message
    # It is the group's rubric as before, so that it counts once it is shared again.
    await scoring.share(rubric)
    shared = await scoring.rollouts.score(RED, request, in_an_hour())
    assert shared.rollout.reward == 1.0


async def test_a_group_that_is_deleted_while_it_is_waited_for_is_asked_for_again(
    scoring: Scoring,
) -> None:
    rubric = await scoring.rubric()
    sending = asyncio.ensure_future(send(scoring, rubric, size=2))
    await until(lambda: scoring.store.gathering.states({GROUP: "red"}))
    await execute(scoring, *DELETED)
    with pytest.raises(Unavailable, match="send the rollout again") as refused:
        await sending
    assert (refused.value.code, refused.value.retry_after_s) == ("group_deleted", 1)


async def test_a_scored_group_that_is_deleted_as_a_rollout_comes_is_asked_for_again(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, score = await scoring.rubric(), GatheringStore.score
    assert (await send(scoring, rubric)).rollout.reward == 1.0

    async def too_late(self: GatheringStore, team: str, group: str) -> GatheredScore | None:
        await execute(scoring, *DELETED)
        return await score(self, team, group)

    monkeypatch.setattr(GatheringStore, "score", too_late)
    with pytest.raises(Unavailable) as refused:
        await send(scoring, rubric)
    assert refused.value.code == "group_deleted"
    monkeypatch.setattr(GatheringStore, "score", score)
    assert (await send(scoring, rubric)).rollout.reward == 1.0


async def test_an_outage_while_a_group_is_waited_for_ends_no_wait(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric, states, failures = await scoring.rubric(), GatheringStore.states, 2

    async def unreachable(
        self: GatheringStore, team_of: Mapping[str, str]
    ) -> dict[str, GroupState]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise DatabaseUnreachable("OSError")
        return await states(self, team_of)

    monkeypatch.setattr(GatheringStore, "states", unreachable)
    with capture_logs() as logs:
        answer = await send(scoring, rubric, size=2, wait_s=0.05)
    assert (answer.rollout.reward, answer.group.complete) == (1.0, False)
    looked = [each for each in logs if each["event"] == "groups_not_looked_for"]
    assert [each["error"] for each in looked] == ["DatabaseUnreachable"] * 2
