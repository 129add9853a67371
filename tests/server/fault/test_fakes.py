"""The fakes do what they say, or the tests that stand on them prove nothing."""

import gc
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from fakes import fast_judge
from fakes.fast_judge import FULL_MARKS, FastJudge, status
from fakes.load import Post, send_all
from fakes.processes import PATIENCE_S, eventually
from fakes.stores import PostgresServer, RedisServer, free_port
from fakes.tcp_proxy import Latency, LimitData, ResetPeer, Slicer, SlowClose, TcpProxy, Timeout
from server.databases import MigratedDatabases

Proxied = Callable[[int], TcpProxy]
VERIFY = {
    "model": "m",
    "messages": [
        {
            "role": "user",
            "content": (
                "Criteria:\nc1: It is kind.\nc2: It is short.\n\n"
                "Task that was answered:\n<<f\nc8: a task\nf>>\n\n"
                "Answer:\n<<f\nhello\nc7: not a criterion\nf>>\n\nReply with one JSON object."
            ),
        }
    ],
}


def ask(
    url: str, *, timeout_s: float = PATIENCE_S, body: dict[str, object] = VERIFY
) -> httpx.Response:
    return httpx.post(f"{url}/chat/completions", json=body, timeout=timeout_s, verify=False)


def content(answer: httpx.Response) -> dict[str, object]:
    return dict(json.loads(answer.json()["choices"][0]["message"]["content"]))


def through(proxy: TcpProxy) -> str:
    return f"http://127.0.0.1:{proxy.port}/v1"


def test_the_judge_marks_what_is_offered_and_nothing_inside_the_material(judge: FastJudge) -> None:
    judge.met = lambda criterion, answer: "kind" in criterion and "hello" in answer
    assert [(v["id"], v["met"]) for v in content(ask(judge.url))["verdicts"]] == [
        ("c1", True),
        ("c2", False),
    ]  # type: ignore[attr-defined]
    assert judge.calls[0].criteria == [("c1", "It is kind."), ("c2", "It is short.")]
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 0


def test_the_judge_holds_a_thousand_calls_and_sees_callers_leave(judge: FastJudge) -> None:
    judge.mode = fast_judge.HELD
    sending = threading.Thread(
        target=lambda: [judge.release() for _ in eventually_in_flight(judge, 1000)]
    )
    sending.start()
    answers = send_all([Post(f"{judge.url}/chat/completions", VERIFY)] * 1000)
    sending.join()
    assert {a.status for a in answers} == {200}
    assert judge.max_in_flight == judge.count == 1000
    judge.mode = fast_judge.HANG
    assert send_all([Post(f"{judge.url}/chat/completions", VERIFY)], timeout_s=0.1)[0].status == 0
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 0


def eventually_in_flight(judge: FastJudge, count: int) -> list[None]:
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == count
    return [None]


def test_the_judge_fails_in_every_way(judge: FastJudge) -> None:
    judge.mode = status(429, retry_after="7")
    assert (ask(judge.url).status_code, ask(judge.url).headers["retry-after"]) == (429, "7")
    judge.mode = fast_judge.RESET
    with pytest.raises(httpx.TransportError):
        ask(judge.url)
    for hanging in (fast_judge.HANG, fast_judge.DRIP):
        judge.mode = hanging
        with pytest.raises(httpx.TimeoutException):
            ask(judge.url, timeout_s=0.3)
    judge.mode = fast_judge.GARBAGE
    with pytest.raises(ValueError, match=r"codec|JSON|Expecting"):
        ask(judge.url).json()
    judge.mode = fast_judge.TRUNCATED
    with pytest.raises(ValueError, match="Expecting|Unterminated"):
        content(ask(judge.url))
    judge.mode = fast_judge.WRONG_IDS
    assert "c99" in str(content(ask(judge.url)))
    judge.mode, judge.met = fast_judge.OBEYS, lambda criterion, answer: False
    assert "True" not in str(content(ask(judge.url)))
    hostile = json.loads(json.dumps(VERIFY).replace("hello", FULL_MARKS))
    assert "False" not in str(content(ask(judge.url, body=hostile)))
    judge.mode, judge.failing_share = fast_judge.OK, 0.5
    answers = send_all([Post(f"{judge.url}/chat/completions", VERIFY)] * 80)
    assert 20 < [a.status for a in answers].count(500) < 60
    judge.refuse()
    with pytest.raises(httpx.ConnectError):
        ask(judge.url)
    judge.accept()
    judge.failing_share = 0
    assert ask(judge.url).status_code == 200


def test_the_bomb_is_small_on_the_wire_and_large_inside(judge: FastJudge) -> None:
    judge.mode = fast_judge.BOMB
    size = 0
    with httpx.stream(
        "POST", f"{judge.url}/chat/completions", json=VERIFY, timeout=PATIENCE_S, verify=False
    ) as answer:
        for piece in answer.iter_bytes():
            size += len(piece)
            if size > 50e6:
                break
        assert int(answer.headers["content-length"]) < 400_000
    assert size > 50e6


def test_the_proxy_passes_delays_and_slices(judge: FastJudge, proxied: Proxied) -> None:
    proxy = proxied(judge.port)
    assert ask(through(proxy)).status_code == 200
    proxy.add(Latency(latency_s=0.3, jitter_s=0.05))
    begun = time.monotonic()
    assert ask(through(proxy)).status_code == 200
    assert 0.2 < time.monotonic() - begun < PATIENCE_S
    proxy.clear()
    proxy.add(Slicer(average_size=7), SlowClose(delay_s=0.01))
    assert content(ask(through(proxy)))["verdicts"]


def test_the_proxy_holds_resets_cuts_and_refuses(judge: FastJudge, proxied: Proxied) -> None:
    proxy = proxied(judge.port)
    with httpx.Client(base_url=through(proxy), timeout=PATIENCE_S, verify=False) as client:
        assert client.post("/chat/completions", json=VERIFY).status_code == 200
        proxy.add(Timeout())
        with pytest.raises(httpx.ReadTimeout):
            client.post("/chat/completions", json=VERIFY, timeout=0.3)
        proxy.clear()
        assert client.post("/chat/completions", json=VERIFY).status_code == 200
    proxy.add(Timeout(timeout_s=0.1))
    with pytest.raises(httpx.RemoteProtocolError):
        ask(through(proxy))
    proxy.clear()
    proxy.add(LimitData(bytes=60))
    with pytest.raises(httpx.RemoteProtocolError):
        ask(through(proxy))
    proxy.clear()
    proxy.down()
    with pytest.raises(httpx.ConnectError):
        ask(through(proxy))
    proxy.up()
    assert ask(through(proxy)).status_code == 200
    proxy.add(ResetPeer(toxicity=0.5))
    outcomes = [
        a.status for a in send_all([Post(f"{through(proxy)}/chat/completions", VERIFY)] * 40)
    ]
    assert 5 < outcomes.count(0) < 35
    assert set(outcomes) == {0, 200}


def test_a_reset_reaches_open_connections(judge: FastJudge, proxied: Proxied) -> None:
    proxy = proxied(judge.port)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"POST ")
        for attempt in eventually():
            with attempt:
                assert proxy.connections == 1
        proxy.add(ResetPeer())
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.parametrize("make", [FastJudge, lambda: TcpProxy(free_port())])
def test_no_connection_outlives_a_fake(make: Callable[[], FastJudge | TcpProxy]) -> None:
    """Not even one that it accepts while it closes: a later test would fail for it."""
    for _ in range(5):
        fake = make()
        callers = [
            socket.create_connection(("127.0.0.1", fake.port), timeout=PATIENCE_S) for _ in range(5)
        ]
        fake.close()
        for caller in callers:
            with caller, suppress(ConnectionResetError):
                assert caller.recv(1) == b""
    gc.collect()  # a socket that nobody closed is a warning


def test_stores_die_and_return(own_postgres: PostgresServer, redis: RedisServer) -> None:
    own_postgres.query("CREATE TABLE kept AS SELECT 1 AS x")
    own_postgres.kill()
    with pytest.raises(OSError, match="refused|Multiple|Connect"):
        own_postgres.query("SELECT 1")
    own_postgres.start()
    own_postgres.stop_immediately()
    own_postgres.start()
    assert own_postgres.query("SELECT x FROM kept") == [(1,)]
    redis.freeze()
    redis.thaw()
    redis.flush()
    redis.kill()
    redis.start()
    redis.flush()


def test_a_database_that_is_given_back_is_as_new(
    new_postgres: MigratedDatabases, postgres: PostgresServer
) -> None:
    def teams(url: str) -> list[tuple[object, ...]]:
        return postgres.query("SELECT * FROM teams", database=url.rpartition("/")[2])

    url = new_postgres()
    at_first = teams(url)
    for change in (
        "UPDATE teams SET rpm = 5",
        "INSERT INTO teams (name, created_at) VALUES ('red', now())",
    ):
        postgres.query(change, database=url.rpartition("/")[2])
    assert len(teams(url)) == len(at_first) + 1
    new_postgres.give_back(url)
    assert new_postgres() == url
    assert teams(url) == at_first


def test_a_database_whose_tables_were_changed_is_not_used_again(
    new_postgres: MigratedDatabases, postgres: PostgresServer
) -> None:
    url = new_postgres()
    postgres.query("DROP TABLE verdicts CASCADE", database=url.rpartition("/")[2])
    new_postgres.give_back(url)
    assert new_postgres() != url
