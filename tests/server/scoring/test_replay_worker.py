"""Replays that cannot go on: what is skipped, what fails, and what is taken up again."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from fakes.processes import PATIENCE_S
from markscheme.schema import ReplayRequest
from markscheme.vocabulary import UnscoredReason
from markscheme_server.judge.base import JudgeFailure, Verification, VerifyTask
from markscheme_server.scoring import replay_worker
from markscheme_server.scoring.replay_groups import JUDGE_CHANGED
from markscheme_server.scoring.replay_worker import INTERNAL, MAX_TIMEOUTS, ReplayWorker
from markscheme_server.store.engine.database import ALL_TEAMS, DatabaseUnreachable
from markscheme_server.store.replays import GroupResult, ReplayStore, StoredReplay
from markscheme_server.store.tables import assignments, rollouts
from server.scoring.in_process import Scoring, is_good


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_worker, "POLL_S", 0.05)


@pytest.fixture
def seldom(_soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for work only when it is said that there is some."""
    monkeypatch.setattr(replay_worker, "POLL_S", 3600.0)


@pytest.fixture
async def worker(scoring: Scoring) -> AsyncIterator[ReplayWorker]:
    made = ReplayWorker(scoring.store.replays, scoring.store.claims, scoring.replayer)
    yield made
    await made.aclose(PATIENCE_S)


async def begin(scoring: Scoring, **request: Any) -> StoredReplay:
    """Store a replay of the run `run`."""
    replays = scoring.store.replays
    groups = [group.id for group in await replays.run_groups("red", "run")]
    wanted = ReplayRequest(run_id="run", **request).model_dump()
    judge = scoring.model.verifier_identity if "judge" in request else None
    return await replays.create("red", "run", wanted, judge, groups)


async def ended(scoring: Scoring, replay: StoredReplay, state: str) -> StoredReplay:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await scoring.store.replays.find("red", replay.id)
            assert found is not None
            if found.state == state:
                return found
            await asyncio.sleep(0.01)


async def results(scoring: Scoring, replay: StoredReplay) -> list[list[float | None]]:
    """Return the new rewards of each group that could be scored."""
    stored = await scoring.store.replays.results("red", replay.id)
    return [[each.after for each in GroupResult.load(text).rollouts] for text in stored]


async def done(scoring: Scoring, replay: StoredReplay) -> tuple[int, int]:
    """Return how many groups are done, and how many of them could be scored."""
    progress = (await scoring.store.replays.progress("red", [replay.id]))[replay.id]
    return progress.done, progress.compared


async def test_a_replay_fails_when_its_rubric_is_no_longer_shared(
    scoring: Scoring, worker: ReplayWorker
) -> None:
    other = await scoring.rubric(team="blue")
    await scoring.score("good", rubric=await scoring.rubric())
    await scoring.share(other)
    await scoring.forget_rubric(other)
    replay = await ended(scoring, await begin(scoring, rubric_id=other.id), "failed")
    assert replay.reason == "the rubric of the replay is no longer visible to the team"
    assert await done(scoring, replay) == (0, 0)


async def test_a_group_is_skipped_when_its_own_rubric_is_no_longer_shared(
    scoring: Scoring, worker: ReplayWorker
) -> None:
    other = await scoring.rubric(team="blue")
    await scoring.share(other)
    await scoring.score("good", rubric=other, step=0)
    await scoring.score("bad", rubric=await scoring.rubric(), step=1)
    await scoring.forget_rubric(other)
    replay = await ended(scoring, await begin(scoring, judge="model"), "finished")
    assert await done(scoring, replay) == (2, 1)
    assert await results(scoring, replay) == [[0.0]]


@pytest.mark.parametrize("tables", [[rollouts], [rollouts, assignments]])
async def test_a_group_that_was_pruned_meanwhile_is_skipped(
    tables: list[sa.Table], seldom: None, scoring: Scoring, worker: ReplayWorker
) -> None:
    rubric = await scoring.rubric()
    await scoring.score("good", rubric=rubric, step=0)
    await scoring.score("bad", rubric=rubric, step=1)
    first, _ = await scoring.store.replays.run_groups("red", "run")
    replay = await begin(scoring, verify="group")
    async with scoring.store.database.writing(ALL_TEAMS) as connection:
        for table in tables:
            key = table.c.assignment_id if table is rollouts else table.c.id
            await connection.execute(sa.delete(table).where(key == first.id))
    worker.wake()
    replay = await ended(scoring, replay, "finished")
    assert await done(scoring, replay) == (2, 1)
    assert await results(scoring, replay) == [[0.0]]


async def test_a_replay_fails_when_its_judge_has_become_another(
    seldom: None, scoring: Scoring, worker: ReplayWorker
) -> None:
    await scoring.score("good", rubric=await scoring.rubric())
    replay = await begin(scoring, judge="model")
    scoring.model.verifier_identity = "another model under the same name"
    worker.wake()
    assert (await ended(scoring, replay, "failed")).reason == JUDGE_CHANGED
    assert len(scoring.model.asked) == 1


@pytest.mark.parametrize(("failures", "reward"), [(1, 1.0), (MAX_TIMEOUTS, None)])
async def test_a_group_that_times_out_is_tried_again_and_then_not_known(
    failures: int, reward: float | None, scoring: Scoring, worker: ReplayWorker
) -> None:
    await scoring.score("good", rubric=await scoring.rubric())
    slow = 0

    async def late(task: VerifyTask) -> Verification:
        nonlocal slow
        slow += 1
        if slow <= failures:
            raise JudgeFailure(UnscoredReason.TIMEOUT, "too slow")
        return await is_good(task)

    scoring.model.verify_as = late
    replay = await ended(scoring, await begin(scoring, verify="group"), "finished")
    assert await results(scoring, replay) == [[reward]]
    assert slow == min(failures + 1, MAX_TIMEOUTS)


async def failing(
    error: Exception, times: list[int], real: Any, *arguments: Any, **options: Any
) -> Any:
    """Raise an error so many times, and then do what is real."""
    if times[0]:
        times[0] -= 1
        raise error
    return await real(*arguments, **options)


def fail(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int) -> None:
    """Let a method of the store fail so many times."""
    real = getattr(ReplayStore, name)
    counted = [times]

    def method(self: ReplayStore, *arguments: Any, **options: Any) -> Any:
        return failing(error, counted, partial(real, self), *arguments, **options)

    monkeypatch.setattr(ReplayStore, name, method)


async def test_an_unexpected_error_outside_a_group_fails_the_replay_and_is_logged(
    scoring: Scoring, worker: ReplayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scoring.score("good", rubric=await scoring.rubric())
    fail(monkeypatch, "count_try", ValueError("a secret of the rollout"), 1)
    with capture_logs() as logs:
        replay = await ended(scoring, await begin(scoring, verify="group"), "failed")
    assert replay.reason == INTERNAL
    assert [(each["event"], each["replay"]) for each in logs] == [("replay_failed", replay.id)]
    # The team's next replay is worked on.
    await ended(scoring, await begin(scoring, verify="group"), "finished")


async def test_an_outage_amid_a_replay_leaves_it_to_the_next_look(
    scoring: Scoring, worker: ReplayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scoring.score("good", rubric=await scoring.rubric())
    fail(monkeypatch, "count_try", DatabaseUnreachable("OSError"), 2)
    with capture_logs() as logs:
        replay = await ended(scoring, await begin(scoring, verify="group"), "finished")
    assert await results(scoring, replay) == [[1.0]]
    assert replay.reason is None
    assert [each["event"] for each in logs] == ["replay_interrupted"] * 2


async def test_an_outage_between_replays_is_logged_once(
    scoring: Scoring, worker: ReplayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scoring.score("good", rubric=await scoring.rubric())
    fail(monkeypatch, "teams", DatabaseUnreachable("OSError"), 3)
    with capture_logs() as logs:
        replay = await begin(scoring, verify="group")
        worker.wake()
        await ended(scoring, replay, "finished")
    assert [each["event"] for each in logs] == ["replays_unreachable"]


async def test_a_process_that_stops_ends_its_group_and_leaves_the_others(
    scoring: Scoring, worker: ReplayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_worker, "AT_A_TIME", 1)
    rubric = await scoring.rubric()
    for step in range(2):
        await scoring.score(f"good {step}", rubric=rubric, step=step)
    asked, release = asyncio.Event(), asyncio.Event()

    async def held(task: VerifyTask) -> Verification:
        asked.set()
        await release.wait()
        return await is_good(task)

    scoring.model.verify_as = held
    replay = await begin(scoring, verify="group")
    async with asyncio.timeout(PATIENCE_S):
        await asked.wait()
    stopping = asyncio.ensure_future(worker.aclose(PATIENCE_S))
    await asyncio.sleep(0)
    release.set()
    await stopping
    assert (await ended(scoring, replay, "running")).reason is None
    assert await results(scoring, replay) == [[1.0]]
    # Another process goes on at once, where this one stopped.
    second = ReplayWorker(scoring.store.replays, scoring.store.claims, scoring.replayer)
    await ended(scoring, replay, "finished")
    assert await results(scoring, replay) == [[1.0], [1.0]]
    await second.aclose(PATIENCE_S)
