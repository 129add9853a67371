"""Test that groups whose rollouts come to two processes one by one are paid for once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import fast_judge
from fakes.bodies import model_judge
from fakes.fast_judge import FastJudge, Reply
from fakes.load import Post, in_background, send_all
from fakes.processes import PATIENCE_S, ServiceProcess, eventually
from fakes.stores import PostgresServer, query

LEASE = {"markscheme_server.app.CLAIM_LEASE_S": 4.0}
GROUPS, SIZE = 32, 8


@pytest.fixture
def judge() -> Iterator[FastJudge]:
    made = FastJudge()
    yield made
    made.close()


@pytest.fixture
def database(postgres: PostgresServer, tmp_path: Path) -> str:
    return postgres.create(tmp_path.name)


@pytest.fixture
def start(
    judge: FastJudge, database: str, tmp_path: Path
) -> Iterator[Callable[..., ServiceProcess]]:
    """Return a function that starts one more process on the database."""
    made: list[ServiceProcess] = []

    def one(poll_s: float = 0.25) -> ServiceProcess:
        constants = LEASE | {"markscheme_server.scoring.rollouts.POLL_S": poll_s}
        settings = model_judge(
            judge.url, database_url=database, constants=constants, judge_concurrency=64
        )
        made.append(ServiceProcess(tmp_path, settings))
        return made[-1].wait_ready()

    yield one
    for process in made:
        process.kill()


def arriving(url: str, group: int, number: int, *, wait_s: float = 120) -> Post:
    body: dict[str, Any] = {
        "group": {"key": f"g{group}", "size": SIZE, "wait_s": wait_s},
        "prompt": f"Prompt {group}?",
        "teacher_responses": ["Blue."],
        "rollout": {"id": f"r{number}", "text": f"answer {number} to {group}"},
        "run": {"id": "run", "step": 0},
    }
    return Post(f"{url}/v1/rollouts", body)


def test_many_groups_over_two_processes_are_each_induced_and_judged_once(
    start: Callable[..., ServiceProcess], judge: FastJudge, database: str
) -> None:
    urls = [start().url, start().url]
    judge.latency_s = 0.1
    posts = [
        arriving(urls[number % 2], group, number)
        for number in range(SIZE)
        for group in range(GROUPS)
    ]
    answers = send_all(posts)
    assert {a.status for a in answers} == {200}
    assert {a.json["rollout"]["reward"] for a in answers} == {1.0}
    rubrics = {(a.json["group"]["key"], a.json["rubric"]["id"]) for a in answers}
    assert len(rubrics) == GROUPS
    assert judge.count == GROUPS * (1 + SIZE)
    stored = "SELECT (SELECT count(*) FROM assignments), (SELECT count(*) FROM inductions)"
    assert query(database, stored) == [(GROUPS, GROUPS)]
    assert query(database, "SELECT count(*) FROM claims") == [(0,)]


def test_a_process_that_is_killed_while_it_scores_is_taken_over(
    start: Callable[..., ServiceProcess], judge: FastJudge, database: str
) -> None:
    # The other looks so seldom that it does not come before the leader.
    leader, other = start(), start(poll_s=3.0)
    judge.mode = lambda call: fast_judge.HANG if call.number == 1 else Reply()
    # The last rollout comes to the leader, which scores at once and does not come to an end.
    waiting, answers = in_background([arriving(other.url, 0, number) for number in range(4)])
    for attempt in eventually():
        with attempt:
            assert query(database, "SELECT received FROM gathered_groups") == [(4,)]
    leading, lost = in_background([arriving(leader.url, 0, number) for number in range(4, SIZE)])
    for attempt in eventually():
        with attempt:
            assert judge.count == 1
    leader.kill()
    leading.join(PATIENCE_S)
    again = send_all([arriving(other.url, 0, number) for number in range(4, SIZE)])
    waiting.join(PATIENCE_S)
    assert {a.status for a in lost} <= {0, 200}
    both = answers + again
    assert [a.json["rollout"]["reward"] for a in both] == [1.0] * SIZE
    assert len({a.json["rubric"]["id"] for a in both}) == 1
    assert all(a.json["group"]["complete"] for a in both)
    # The induction that the killed process had asked for, and all of it once more.
    assert judge.count == 1 + 1 + SIZE
