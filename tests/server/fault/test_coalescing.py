"""Test that several processes do identical work once and take over from a dead or stalled owner."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, induce, model_judge, score
from fakes.fast_judge import FastJudge, Reply, held
from fakes.load import in_background, send_all
from fakes.processes import PATIENCE_S, ServiceProcess, eventually
from fakes.stores import PostgresServer, RedisServer, query

LEASE_S = 4.0
LEASE = {"markscheme_server.app.CLAIM_LEASE_S": LEASE_S}
Pair = Callable[[], list[ServiceProcess]]
"""Two live processes on one database; a call replaces any that a test has killed."""


@pytest.fixture(scope="module")
def shared_judge() -> Iterator[FastJudge]:
    made = FastJudge()
    yield made
    made.close()


@pytest.fixture
def judge(shared_judge: FastJudge) -> FastJudge:
    """Reset the judge that all processes here share."""
    shared_judge.reset()
    return shared_judge


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    return postgres.create("coalescing")


def pair_of(folder: Path, settings: dict[str, Any]) -> Iterator[Pair]:
    living: list[ServiceProcess] = []

    def pair() -> list[ServiceProcess]:
        living[:] = [process for process in living if process.process.poll() is None]
        living.extend(ServiceProcess(folder, settings) for _ in range(2 - len(living)))
        return [process if process.url else process.wait_ready() for process in living]

    yield pair
    for process in living:
        process.kill()


@pytest.fixture(scope="module")
def pair(
    shared_judge: FastJudge, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Without a Redis."""
    yield from pair_of(
        tmp_path_factory.mktemp("pair"),
        model_judge(shared_judge.url, database_url=database, constants=LEASE, judge_concurrency=64),
    )


@pytest.fixture
def pair_with_redis(
    shared_judge: FastJudge, database: str, redis: RedisServer, tmp_path: Path
) -> Iterator[Pair]:
    yield from pair_of(
        tmp_path,
        model_judge(
            shared_judge.url,
            database_url=database,
            constants=LEASE,
            judge_concurrency=64,
            redis_url=redis.url,
        ),
    )


def until_called(judge: FastJudge, count: int) -> None:
    for attempt in eventually():
        with attempt:
            assert judge.count == count


def claims_are_gone(database: str) -> None:
    for attempt in eventually():
        with attempt:
            assert query(database, "SELECT count(*) FROM claims") == [(0,)]


@pytest.mark.parametrize("kind", ["pair", pytest.param("pair_with_redis", marks=pytest.mark.slow)])
def test_two_processes_pay_once(
    kind: str, request: pytest.FixtureRequest, judge: FastJudge, database: str
) -> None:
    """200 callers of one cold verdict, 32 of four of them, 40 of one induction."""
    urls = [process.url for process in request.getfixturevalue(kind)()]
    rubric_id = create_rubric(urls[0], tag=f" by a {kind}")
    judge.latency_s = 0.2
    answers = send_all([score(urls[i % 2], rubric_id, ["the one answer"]) for i in range(200)])
    assert [a.rewards for a in answers] == [[1.0]] * 200
    assert judge.count == 1
    assert sum(a.json["usage"]["judge_calls"] for a in answers) == 1

    judge.forget()
    texts = [f"answer {i}" for i in range(4)]
    answers = send_all(
        [score(urls[i % 2], rubric_id, texts[i % 4 :] + texts[: i % 4]) for i in range(32)]
    )
    assert [a.rewards for a in answers] == [[1.0] * 4] * 32
    assert judge.count == 4

    judge.forget()
    answers = send_all([induce(urls[i % 2], f"A new prompt for a {kind}.") for i in range(40)])
    assert {a.status for a in answers} <= {200, 201}
    assert len({a.json["id"] for a in answers}) == 1
    assert judge.count == 1
    claims_are_gone(database)


def test_two_services_with_a_redis_pay_once(
    serve: Callable[..., str], judge: FastJudge, redis: RedisServer, postgres: PostgresServer
) -> None:
    """The same in one process with two services, which share nothing but the stores."""
    settings = model_judge(
        judge.url, database_url=postgres.create("with-redis"), redis_url=redis.url
    )
    urls = [serve(**settings) for _ in range(2)]
    rubric_id = create_rubric(urls[0])
    judge.latency_s = 0.2
    answers = send_all(
        [score(urls[i % 2], rubric_id, ["the one answer", f"{i % 3}"]) for i in range(60)]
    )
    assert [a.rewards for a in answers] == [[1.0] * 2] * 60
    assert judge.count == 4


def test_identical_rollouts_of_a_batch_are_judged_once(pair: Pair, judge: FastJudge) -> None:
    url = pair()[0].url
    rubric_id = create_rubric(url, tag=" as others do")
    answer = send_all([score(url, rubric_id, ["same", "other", "same", " same\n"])])[0]
    assert answer.rewards == [1.0] * 4
    assert judge.count == 2


def test_a_long_call_keeps_its_claim(pair: Pair, judge: FastJudge) -> None:
    """A judge slower than the lease is no stalled owner."""
    urls = [process.url for process in pair()]
    rubric_id = create_rubric(urls[0], tag=" slowly")
    judge.latency_s = 2 * LEASE_S + 0.5
    answers = send_all([score(urls[i % 2], rubric_id, ["slow one"]) for i in range(6)])
    assert [a.rewards for a in answers] == [[1.0]] * 6
    assert judge.count == 1


def test_a_stalled_owner_writes_nothing_late(pair: Pair, judge: FastJudge, database: str) -> None:
    """The owner sleeps past its lease and another process decides.

    When it wakes, its write is refused and it answers with the other's verdict.
    """
    stalled, other = pair()
    prompt = "A prompt for one who sleeps."
    rubric_id = create_rubric(stalled.url, prompt)
    judge.mode = lambda call: held(True) if call.number == 1 else Reply(met=False)
    leading, late = in_background([score(stalled.url, rubric_id, ["the answer"], prompt=prompt)])
    until_called(judge, 1)
    stalled.freeze()
    try:
        decided = send_all([score(other.url, rubric_id, ["the answer"], prompt=prompt)])[0]
    finally:
        stalled.thaw()
    assert decided.rewards == [0.0]
    assert decided.elapsed_s <= LEASE_S + 20
    judge.release()
    leading.join(PATIENCE_S)
    assert late[0].rewards == [0.0]
    stored = (
        "SELECT count(*), bool_or(met) FROM verdicts JOIN rubrics USING (prompt_key) "
        "WHERE rubrics.id = $1"
    )
    assert query(database, stored, rubric_id) == [(1, False)]
    assert judge.count == 2
    claims_are_gone(database)


def test_a_killed_owner_is_taken_over(pair: Pair, judge: FastJudge, database: str) -> None:
    """All waiting callers are answered in time, for one more call; the same for a rubric.

    In time: within the lease plus the judge's latency.
    """
    leader, other = pair()
    rubric_id = create_rubric(leader.url, tag=" to the end")
    judge.mode = lambda call: fast_judge.HANG if call.number <= 2 else Reply(after_s=0.3)
    leading, _ = in_background(
        [score(leader.url, rubric_id, ["the answer"]), induce(leader.url, "A prompt left behind.")]
    )
    until_called(judge, 2)
    waiting, answers = in_background(
        [score(other.url, rubric_id, ["the answer", f"{i % 2}"]) for i in range(50)]
    )
    inducing, rubrics = in_background([induce(other.url, "A prompt left behind.")] * 5)
    until_called(judge, 4)  # their second rollouts: they are in
    leader.kill()
    for sending in (waiting, inducing, leading):
        sending.join(PATIENCE_S)
    assert [a.rewards for a in answers] == [[1.0, 1.0]] * 50
    assert {a.status for a in rubrics} <= {200, 201}
    assert len({a.json["id"] for a in rubrics}) == 1
    assert max(a.elapsed_s for a in answers + rubrics) <= LEASE_S + 20
    assert judge.count == 6
    claims_are_gone(database)
