"""Callers that leave take their work with them, unless another one waits for the same."""

import threading
from collections.abc import Callable

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, induce, model_judge, score
from fakes.fast_judge import FastJudge
from fakes.load import Answer, abandon_all, send_all
from fakes.processes import PATIENCE_S, eventually
from fakes.stores import query

Serve = Callable[..., str]
BUSY = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND state <> 'idle'"
)


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_abandoned_requests_leave_nothing_running(
    count: int, serve: Serve, judge: FastJudge, database: str
) -> None:
    url = serve(**model_judge(judge.url, judge_concurrency=256), database_url=database)
    rubric_id = create_rubric(url)
    judge.mode = fast_judge.HANG
    abandon_all(
        [score(url, rubric_id, [f"left {i}"]) for i in range(count)],
        when=lambda: judge.in_flight == count,
        within_s=20,
    )
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 0
            assert query(database, BUSY) == [(0,)]
            assert query(database, "SELECT count(*) FROM claims") == [(0,)]
    judge.mode = fast_judge.OK
    assert send_all([score(url, rubric_id, ["left 0"])])[0].rewards == [1.0]


def test_an_abandoned_induction_is_given_up(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    judge.mode = fast_judge.HANG
    abandon_all([induce(url)], when=lambda: judge.in_flight == 1)
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 0


def test_work_that_another_waits_for_goes_on(serve: Serve, judge: FastJudge) -> None:
    """The first caller leaves: its own work is cancelled, and shared work is not paid for twice."""
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = fast_judge.HELD
    both_in, stayed = threading.Event(), list[Answer]()
    leaving = threading.Thread(
        target=lambda: abandon_all(
            [score(url, rubric_id, ["shared", "the first one's"])], when=both_in.is_set
        )
    )
    leaving.start()
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 2
    staying = threading.Thread(
        target=lambda: stayed.extend(
            send_all([score(url, rubric_id, ["shared", "the second one's"])])
        )
    )
    staying.start()
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 3
    both_in.set()
    leaving.join(PATIENCE_S)
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 2
    judge.release()
    staying.join(PATIENCE_S)
    assert stayed[0].rewards == [1.0, 1.0]
    assert judge.count == 3
