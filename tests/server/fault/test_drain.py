"""Test SIGTERM: not ready at once, a short time of accepting, open requests finish, then exit."""

import socket
import threading
import time
from typing import Any

import httpx
import pytest

from fakes import fast_judge
from fakes.balancer import Balancer
from fakes.bodies import PROMPT, create_rubric, model_judge, score
from fakes.fast_judge import FastJudge
from fakes.load import Answer, send_all, send_at_rate
from fakes.processes import PATIENCE_S, ServiceProcess, eventually
from fakes.stores import query
from markscheme import Client


def refuses(process: ServiceProcess) -> bool:
    """Whether it takes no new connections any more."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", process.port)) != 0


def test_what_is_in_flight_finishes(start: Any, judge: FastJudge, database: str) -> None:
    process: ServiceProcess = start(
        **model_judge(judge.url), database_url=database, drain_delay_s=5
    )
    rubric_id = create_rubric(process.url)
    judge.mode = fast_judge.HELD
    answers: list[Answer] = []
    sending = threading.Thread(
        target=lambda: answers.extend(
            send_all([score(process.url, rubric_id, [f"answer {i}"]) for i in range(8)])
        )
    )
    sending.start()
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 8
    with httpx.Client(base_url=process.url, verify=False, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        process.terminate()
        for attempt in eventually(4, every_s=0.01):
            with attempt:
                assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert (
            httpx.get(f"{process.url}/v1/rubrics/{rubric_id}", verify=False, timeout=60).status_code
            == 200
        )  # a new connection
    for attempt in eventually():
        with attempt:
            assert refuses(process)
    judge.release()
    sending.join(PATIENCE_S)
    assert [a.rewards for a in answers] == [[1.0]] * 8
    assert process.wait(PATIENCE_S) == 0
    assert query(database, "SELECT count(*) FROM claims") == [(0,)]


@pytest.mark.timed
@pytest.mark.slow
def test_a_hung_judge_keeps_nobody(start: Any, judge: FastJudge, database: str) -> None:
    """Gone within 30 s, and its work free for the next at once."""
    process: ServiceProcess = start(
        **model_judge(judge.url, judge_timeout_s=600), database_url=database
    )
    rubric_id = create_rubric(process.url)
    judge.mode = fast_judge.HANG
    answers: list[Answer] = []
    sending = threading.Thread(
        target=lambda: answers.extend(send_all([score(process.url, rubric_id, ["answer"])]))
    )
    sending.start()
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 1
    process.terminate()
    begun = time.monotonic()
    assert process.wait(PATIENCE_S) == 0
    assert time.monotonic() - begun <= 30
    sending.join(PATIENCE_S)
    assert answers[0].status in (0, 200, 503)
    assert answers[0].status != 200 or answers[0].rewards == [None]
    judge.mode = fast_judge.OK
    successor: ServiceProcess = start(**model_judge(judge.url), database_url=database)
    again = send_all([score(successor.url, rubric_id, ["answer"])])[0]
    assert again.rewards == [1.0]
    assert again.elapsed_s <= 1


@pytest.mark.timed
@pytest.mark.parametrize(("turns", "per_s"), [(1, 10), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_a_rolling_restart_is_not_noticed(
    turns: int, per_s: int, start: Any, judge: FastJudge, database: str
) -> None:
    """Two processes behind a balancer that looks at readiness, each replaced in turn under load."""
    settings = model_judge(judge.url, database_url=database, drain_delay_s=0.5)
    pair: list[ServiceProcess] = [start(ready=False, **settings) for _ in range(2)]
    rubric_id = create_rubric(pair[0].wait_ready().url)
    judge.latency_s = 0.05
    plain: list[Answer] = []
    by_sdk: list[float | None] = []
    stop = threading.Event()
    with Balancer([process.wait_ready().port for process in pair]) as balancer:

        def send_plain() -> None:
            part = 0
            while not stop.is_set():
                part += 1
                plain.extend(
                    send_at_rate(
                        lambda i, part=part: score(
                            balancer.url,
                            rubric_id,
                            [f"plain {part} {i}"],
                            headers={"Connection": "close"},
                        ),
                        per_s=per_s,
                        for_s=0.5,
                    )
                )

        def send_by_sdk() -> None:
            with Client(balancer.url) as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    batch = client.score(
                        [
                            {
                                "id": "g",
                                "prompt": PROMPT,
                                "rubric_id": rubric_id,
                                "rollouts": [{"id": "a", "text": f"sdk {number}"}],
                            }
                        ]
                    )
                    by_sdk.append(batch.groups[0].rollouts[0].reward)

        senders = [threading.Thread(target=send) for send in (send_plain, send_by_sdk)]
        for sender in senders:
            sender.start()
        try:
            for turn in range(turns):
                old = pair[turn % 2]
                new: ServiceProcess = start(**settings)
                balancer.replace(old.port, new.port)
                balancer.await_healthy(2)
                old.terminate()
                assert old.wait(PATIENCE_S) == 0
                pair[turn % 2] = new
            # A replacement may take less than two seconds.
            for attempt in eventually():
                with attempt:
                    assert len(plain) >= 20
        finally:
            stop.set()
            for sender in senders:
                sender.join(PATIENCE_S)
    assert not any(sender.is_alive() for sender in senders)
    assert by_sdk
    assert set(by_sdk) == {1.0}
    failed = [a for a in plain if a.status != 200 or a.rewards != [1.0]]
    assert len(failed) <= 0.001 * len(plain)
