"""Test that a replay survives its process: killed or restarted, another one goes on with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, model_judge, score
from fakes.fast_judge import Call, FastJudge, Reply
from fakes.load import send_all
from fakes.processes import PATIENCE_S, ServiceProcess, eventually
from markscheme import Client
from markscheme.schema import Replay

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
