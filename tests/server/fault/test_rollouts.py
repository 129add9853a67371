"""Test that groups whose rollouts come to two processes one by one are paid for once."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from fakes import fast_judge
from fakes.bodies import model_judge
from fakes.fast_judge import FastJudge, Reply
from fakes.load import Answer, Post, in_background, send_all
from fakes.processes import PATIENCE_S, ServiceProcess, eventually
from fakes.stores import PostgresServer, query

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

    def one(**constants: float) -> ServiceProcess:
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
    seldom = {
        "markscheme_server.app.CLAIM_LEASE_S": 4.0,
        "markscheme_server.scoring.rollouts.POLL_S": 3.0,
    }
    leader, other = start(), start(**seldom)
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


IDLE_S = 5.0


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("replicas", "groups"), [(1, 256), (4, 1024)])
def test_open_groups_cost_a_query_every_quarter_of_a_second_and_no_thread(
    replicas: int,
    groups: int,
    start: Callable[..., ServiceProcess],
    judge: FastJudge,
    database: str,
    record_property: Callable[[str, str], None],
) -> None:
    """Of each group all rollouts but one wait; then the last ones come."""
    services = [start() for _ in range(replicas)]
    urls = [service.url for service in services]
    processes = [psutil.Process(service.process.pid) for service in services]

    def sent(number: int) -> tuple[threading.Thread, list[Answer]]:
        """Send one rollout of each group."""
        posts = [
            arriving(urls[(group + number) % replicas], group, number, wait_s=300)
            for group in range(groups)
        ]
        answers: list[Answer] = []
        sending = threading.Thread(target=lambda: answers.extend(send_all(posts, timeout_s=500)))
        sending.start()
        return sending, answers

    def cpu_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def transactions() -> int:
        done = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"
        return int(query(database, done, sa.make_url(database).database)[0][0])

    threads = max(process.num_threads() for process in processes)
    began, cpu = time.monotonic(), cpu_s()
    waiting = []
    for number in range(SIZE - 1):
        waiting.append(sent(number))
        for attempt in eventually(300, every_s=0.2):
            with attempt:
                received = query(database, "SELECT sum(received) FROM gathered_groups")
                assert received == [(groups * (number + 1),)]
    arrival_s, arrival_cpu = time.monotonic() - began, cpu_s() - cpu
    time.sleep(2)  # the server's statistics lag behind by a second
    looked, cpu = transactions(), cpu_s()
    time.sleep(IDLE_S)
    looks, idle_cpu = transactions() - looked, cpu_s() - cpu
    idle_threads = max(process.num_threads() for process in processes)
    assert judge.count == 0
    began, cpu = time.monotonic(), cpu_s()
    answers = []
    for sending, received_answers in [*waiting, sent(SIZE - 1)]:
        sending.join(500)
        answers += received_answers
    scoring_s, scoring_cpu = time.monotonic() - began, cpu_s() - cpu
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = $1"
    assert query(database, deadlocks, sa.make_url(database).database) == [(0,)]
    assert {a.status: a.content for a in answers if a.status != 200} == {}
    assert {a.json["rollout"]["reward"] for a in answers} == {1.0}
    assert judge.count == groups * (1 + SIZE)
    record_property(
        "figure",
        f"{groups} groups of {SIZE} at {replicas} replicas: {groups * (SIZE - 1)} rollouts arrived "
        f"in {arrival_s:.0f} s ({1000 * arrival_cpu / groups / (SIZE - 1):.1f} ms of CPU each); "
        f"while they waited, {looks / IDLE_S / replicas:.1f} transactions a second and "
        f"{idle_cpu / IDLE_S / replicas:.1%} of a core a replica, threads {threads} to "
        f"{idle_threads}; {groups * (1 + SIZE)} judge calls and all answers {scoring_s:.0f} s "
        f"after the last rollouts were sent ({1000 * scoring_cpu / groups:.0f} ms of CPU a group)",
    )
    assert idle_threads <= threads + 1
    # One query a process every POLL_S, and those of this test.
    assert looks <= replicas * IDLE_S / 0.25 * 1.2 + 10
