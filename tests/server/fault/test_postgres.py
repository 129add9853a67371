"""Test PostgreSQL's death or silence under load: refusals, no lost answers, recovery by itself."""

import threading
from collections.abc import Callable

import httpx
import pytest

from fakes.bodies import create_rubric, model_judge, score
from fakes.fast_judge import FastJudge
from fakes.load import Answer, send_all, send_at_rate
from fakes.processes import PATIENCE_S, eventually
from fakes.stores import PostgresServer, query
from fakes.tcp_proxy import TcpProxy, Timeout

Serve = Callable[..., str]


@pytest.mark.parametrize("deaths", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_database_dies_under_load(
    deaths: int, serve: Serve, judge: FastJudge, own_postgres: PostgresServer
) -> None:
    judge.latency_s = 0.05
    url = serve(**model_judge(judge.url), database_url=own_postgres.create("m"))
    rubric_id = create_rubric(url)
    answers: list[Answer] = []
    stop = threading.Event()

    def load() -> None:
        part = 0
        while not stop.is_set():
            part += 1
            answers.extend(
                send_at_rate(
                    lambda i, part=part: score(
                        url, rubric_id, [f"{part}, {i}"], group=f"{part}, {i}"
                    ),
                    per_s=20,
                    for_s=0.5,
                    timeout_s=PATIENCE_S,
                )
            )

    loading = threading.Thread(target=load)
    loading.start()
    try:
        for death in range(deaths):
            so_far = judge.count
            for attempt in eventually():
                with attempt:
                    assert judge.count >= so_far + 10
            own_postgres.kill() if death % 2 else own_postgres.stop_immediately()
            own_postgres.start()
            for attempt in eventually(every_s=0.1):
                with attempt:
                    assert (
                        httpx.get(f"{url}/readyz", verify=False, timeout=PATIENCE_S).status_code
                        == 200
                    )
                    assert send_all([score(url, rubric_id, [f"after {death}"])])[0].rewards == [1.0]
    finally:
        stop.set()
        loading.join(PATIENCE_S)
    assert {a.status for a in answers} <= {200, 503}
    refused = [a for a in answers if a.status == 503]
    assert all(int(a.headers["Retry-After"]) >= 1 and a.code for a in refused)
    seen = [a.json["groups"][0]["id"] for a in answers if a.status == 200 and a.rewards == [1.0]]
    assert len(seen) >= 10 * deaths
    judge.forget()
    judge.met = lambda criterion, answer: False
    stored = query(own_postgres.url("m"), "SELECT count(*) FROM verdicts WHERE met")[0][0]
    assert stored >= len(seen)
    assert send_all([score(url, rubric_id, seen)])[0].rewards == [1.0] * len(seen)
    assert judge.count == 0


def test_a_silent_database_is_not_waited_for_long(
    serve: Serve,
    judge: FastJudge,
    postgres: PostgresServer,
    database: str,
    proxied: Callable[[int], TcpProxy],
) -> None:
    """A silent database: not ready within a few seconds, clear refusals, then recovery."""
    proxy = proxied(postgres.port)
    silent = database.replace(f":{postgres.port}/", f":{proxy.port}/")
    url = serve(**model_judge(judge.url), database_url=silent)
    rubric_id = create_rubric(url)
    assert send_all([score(url, rubric_id, ["before"])])[0].rewards == [1.0]
    proxy.add(Timeout())
    with httpx.Client(base_url=url, verify=False, timeout=PATIENCE_S) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
    refused = send_all(
        [
            score(url, rubric_id, [f"during {i}"], headers={"X-Deadline-Ms": "3000"})
            for i in range(5)
        ]
    )
    assert {a.status for a in refused} <= {200, 503}
    assert {r for a in refused if a.status == 200 for r in a.rewards} <= {None}
    assert max(a.elapsed_s for a in refused) <= 20  # a request may take 120 s
    proxy.clear()
    for attempt in eventually(every_s=0.2):
        with attempt:
            assert send_all([score(url, rubric_id, ["after"])])[0].rewards == [1.0]
