"""Test that a replay survives its process: killed, stalled or restarted, another one goes on."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, model_judge, score
from fakes.fast_judge import Call, FastJudge, Reply
from fakes.load import send_all
from fakes.processes import PATIENCE_S, ServiceProcess, eventually
from fakes.stores import query
from markscheme import Client
from markscheme.schema import Replay
from markscheme_server.scoring import replay_worker
from markscheme_server.scoring.replay_groups import GroupReplayer, PlannedGroup, ReplayedScore
from markscheme_server.store.replays import StoredReplay

Start = Callable[..., ServiceProcess]

CONSTANTS = {
    "markscheme_server.app.CLAIM_LEASE_S": 2.0,
    "markscheme_server.scoring.replay_worker.POLL_S": 0.1,
    "markscheme_server.scoring.replay_worker.AT_A_TIME": 1,
}
GROUPS, ROLLOUTS = 6, 3
HELD = "step 2 rollout 1"
"""The first pass gets no reply for this rollout."""


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, judge: FastJudge, tmp_path: Path) -> dict[str, Any]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'replays.db'}"
    else:
        url = request.getfixturevalue("database")
    return model_judge(judge.url, database_url=url, constants=CONSTANTS)


def train(url: str) -> str:
    """Score a run; return the id of another version of its rubric."""
    rubric = create_rubric(url)
    for step in range(GROUPS):
        texts = [f"step {step} rollout {i}" for i in range(ROLLOUTS)]
        body = score(url, rubric, texts, group=f"g{step}", run={"id": "run", "step": step})
        (answer,) = send_all([body])
        assert answer.rewards == [1.0] * ROLLOUTS
    with Client(url) as client:
        return client.fork_rubric(rubric, [{"text": "It is new.", "points": 1}]).id


def held(call: Call) -> Reply:
    return fast_judge.HANG if call.answers == [HELD] else fast_judge.OK


def begun_and_held(url: str, judge: FastJudge) -> Replay:
    """Begin a replay, and wait until it has two groups done and one call without a reply."""
    rubric = train(url)
    judge.forget()
    judge.mode = held
    with Client(url) as client:
        begun = client.create_replay("run", rubric_id=rubric)
        for attempt in eventually():
            with attempt:
                assert client.replay(begun.id).done == 2
                assert (judge.count, judge.in_flight) == (2 * ROLLOUTS + ROLLOUTS, 1)
    return begun


def require_whole(url: str, begun: Replay, judge: FastJudge, *, lost_calls: int) -> None:
    """Require that the replay ends, and that only the calls in flight were made again."""
    with Client(url) as client:
        for attempt in eventually():
            with attempt:
                assert client.replay(begun.id).state == "finished"
        found = client.replay(begun.id)
    assert (found.done, found.skipped, found.comparison.unknown_after) == (GROUPS, 0, 0)
    assert found.comparison.rollouts == GROUPS * ROLLOUTS
    asked = [call.answers[0] for call in judge.calls]
    assert len(asked) == GROUPS * ROLLOUTS + lost_calls
    assert {text for text in asked if asked.count(text) > 1} <= {HELD}


def test_a_killed_process_is_taken_over_after_its_lease(
    start: Start, judge: FastJudge, settings: dict[str, Any]
) -> None:
    """The other process looks at the replay all the while, and leaves it alone until then."""
    first = start(**settings)
    begun = begun_and_held(first.url, judge)
    second = start(**settings)
    judge.mode = fast_judge.OK
    with Client(second.url) as client:
        assert client.replay(begun.id).done == 2
    assert judge.count == 3 * ROLLOUTS
    first.kill()
    require_whole(second.url, begun, judge, lost_calls=1)


def test_a_restarted_service_goes_on_where_it_stopped(
    start: Start, judge: FastJudge, settings: dict[str, Any]
) -> None:
    process = start(**settings)
    begun = begun_and_held(process.url, judge)
    judge.mode = fast_judge.OK
    process.terminate()
    process.wait(PATIENCE_S)
    require_whole(start(**settings).url, begun, judge, lost_calls=1)


def test_a_stalled_process_changes_nothing_late(
    start: Start, judge: FastJudge, database: str
) -> None:
    """The owner sleeps past its lease, and another process judges otherwise and ends the replay."""
    settings = model_judge(judge.url, database_url=database, constants=CONSTANTS)
    stalled, other = start(**settings), start(**settings)
    rubric = train(stalled.url)
    judge.forget()
    late = Reply(held=True, met=True)
    judge.mode = lambda call: late if call.number == 1 else Reply(met=False)
    with Client(stalled.url) as client:
        begun = client.create_replay("run", rubric_id=rubric)
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 1
    stalled.freeze()
    try:
        with Client(other.url) as client:
            for attempt in eventually():
                with attempt:
                    assert client.replay(begun.id).state == "finished"
            ended = client.replay(begun.id)
    finally:
        stalled.thaw()
    assert ended.comparison.after == 0
    judge.release()
    with Client(stalled.url) as client:
        for attempt in eventually():
            with attempt:
                # Only the late calls themselves show, in the ledger: they are paid for.
                assert client.replay(begun.id).calls == judge.count > GROUPS * ROLLOUTS
                assert query(database, "SELECT count(*) FROM claims") == [(0,)]
        found = client.replay(begun.id)
    assert judge.count <= (GROUPS + 1) * ROLLOUTS
    paid = {"calls", "cost_usd", "unpriced_calls"}
    assert found.model_dump(exclude=paid) == ended.model_dump(exclude=paid)


def test_a_group_that_fails_is_skipped_after_five_tries(
    serve: Callable[..., str],
    judge: FastJudge,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_worker, "POLL_S", 0.1)
    asked: list[str] = []
    score_group = GroupReplayer.score

    async def failing(
        self: GroupReplayer, replay: StoredReplay, planned: PlannedGroup
    ) -> ReplayedScore:
        answer = planned.answers[0]
        assert answer is not None
        asked.append(str(answer.response).partition(" rollout")[0])
        if asked[-1] == "step 2":
            raise RuntimeError("a fault of ours")
        return await score_group(self, replay, planned)

    monkeypatch.setattr(GroupReplayer, "score", failing)
    url = serve(**{name: value for name, value in settings.items() if name != "constants"})
    rubric = train(url)
    with Client(url) as client:
        begun = client.create_replay("run", rubric_id=rubric)
        for attempt in eventually():
            with attempt:
                assert client.replay(begun.id).state == "finished"
        found = client.replay(begun.id)
    assert (found.done, found.skipped, found.comparison.unknown_after) == (GROUPS, 1, 0)
    assert sorted(asked) == sorted(
        [f"step {i}" for i in range(GROUPS)] + ["step 2"] * (replay_worker.MAX_TRIES - 1)
    )


@pytest.mark.slow
def test_a_group_that_ends_its_process_is_skipped_after_five_tries(
    start: Start, judge: FastJudge, settings: dict[str, Any]
) -> None:
    """Four groups are judged at a time, and yet only the one that is at fault is skipped."""
    settings["constants"] = CONSTANTS | {
        "markscheme_server.app.CLAIM_LEASE_S": 1.0,
        "markscheme_server.scoring.replay_worker.AT_A_TIME": 4,
    }
    process = start(**settings)
    rubric = train(process.url)
    judge.forget()
    judge.mode = held
    with Client(process.url) as client:
        begun = client.create_replay("run", rubric_id=rubric)
    for life in range(1, replay_worker.MAX_TRIES + 1):
        for attempt in eventually():
            with attempt:
                assert sum(call.answers == [HELD] for call in judge.calls) == life
        process.kill()
        process = start(**settings)
    with Client(process.url) as client:
        for attempt in eventually():
            with attempt:
                assert client.replay(begun.id).state == "finished"
        found = client.replay(begun.id)
    assert (found.done, found.skipped, found.comparison.unknown_after) == (GROUPS, 1, 0)
    assert found.comparison.rollouts == (GROUPS - 1) * ROLLOUTS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_killed_processes_lose_no_replay(
    start: Start,
    judge: FastJudge,
    database: str,
    record_property: Callable[[str, str], None],
) -> None:
    """200 replays, and a kill after every few calls: each kill costs one call at most."""
    replays, kills, per_replay = 200, 100, GROUPS * ROLLOUTS
    chance = random.Random(1)
    constants = CONSTANTS | {"markscheme_server.app.CLAIM_LEASE_S": 1.0}
    settings = model_judge(
        judge.url, database_url=database, constants=constants, judge_concurrency=1
    )
    process = start(**settings)
    rubric = train(process.url)
    judge.forget()
    judge.latency_s = 0.01
    with Client(process.url) as client:
        begun = []
        for i in range(replays):
            fork = client.fork_rubric(rubric, [{"text": f"It is number {i}.", "points": 1}])
            begun.append(client.create_replay("run", rubric_id=fork.id).id)
    for _ in range(kills):
        threshold = judge.count + chance.randrange(10, 2 * replays * per_replay // kills // 3)
        for attempt in eventually():
            with attempt:
                assert judge.count >= threshold
        process.kill()
        process = start(**settings)
    with Client(process.url) as client:
        for attempt in eventually(600, every_s=1):
            with attempt:
                assert client.replay(begun[-1]).state == "finished"
        found = [client.replay(each) for each in begun]
    assert {(each.state, each.done, each.skipped) for each in found} == {("finished", GROUPS, 0)}
    assert {each.comparison.rollouts for each in found} == {per_replay}
    assert {each.comparison.unknown_after for each in found} == {0}
    assert replays * per_replay <= judge.count <= replays * per_replay + kills
    twice = judge.count - replays * per_replay
    record_property("figure", f"{replays} replays, {kills} kills: {twice} calls twice")
