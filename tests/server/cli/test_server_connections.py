"""Test bad connections: half-sent requests, too many, not HTTP, and hang-ups."""

import json
import os
import pty
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.bodies import hold_one, model_judge
from fakes.fast_judge import FastJudge
from fakes.processes import COMMAND, PATIENCE_S, ServiceProcess, environment, eventually

Launch = Callable[..., ServiceProcess]

HEAD = b"POST /v1/scores HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HALF_SENT = {
    "nothing": b"",
    "a head": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ",
    "a body": HEAD + b"Content-Length: 100000\r\n\r\n{",
    "a chunked body": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One for all tests that leave it as it was."""
    made = ServiceProcess(tmp_path_factory.mktemp("service"), {"judge": "builtin"})
    yield made.wait_ready()
    made.kill()


def healthy(url: str) -> bool:
    return (
        httpx.get(
            f"{url}/healthz", headers={"Connection": "close"}, timeout=PATIENCE_S, verify=False
        ).status_code
        == 200
    )


def connect(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket, within_s: float) -> bytes:
    """All that comes until the other side closes."""
    connection.settimeout(within_s)
    data = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(65536):
            data += more
    return data


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, content = answer.partition(b"\r\n\r\n")
    found = json.loads(content)
    assert found["request_id"].encode() in head
    return int(head.split()[1]), found["error"]


@pytest.mark.parametrize("kind", HALF_SENT)
def test_more_connections_than_descriptors_do_not_keep_others_out(
    kind: str, launch: Launch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        process = launch(drain_delay_s=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with ExitStack() as stack:
        for _ in range(300):
            with suppress(OSError):
                stack.enter_context(connect(process.port, HALF_SENT[kind]))
        for attempt in eventually():
            with attempt:
                assert healthy(process.url)
        assert all(healthy(process.url) for _ in range(5))
    assert process.output.read_text().count("out of system resource") <= 5


def test_half_a_head_is_given_ten_seconds(process: ServiceProcess) -> None:
    began = time.monotonic()
    with connect(process.port, HALF_SENT["a head"]) as half, connect(process.port, b"") as silent:
        status, error = error_of(received(half, PATIENCE_S))
        assert (status, error["code"]) == (408, "request_timeout")
        assert 9 < time.monotonic() - began < PATIENCE_S
        assert received(silent, PATIENCE_S) == b""


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"what is this\r\n\r\n", "bad_request"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", "bad_request"),
        (
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"a" * 600_000 + b"\r\n\r\n",
            "bad_request",
        ),
        (HEAD + b"Content-Length: -1\r\n\r\n", "bad_request"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_request"),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "bad_request"),
    ],
    ids=["no HTTP", "no host", "a long head", "a negative length", "a bad chunk", "two lengths"],
)
def test_what_is_no_http_is_refused_in_the_one_error_shape(
    sent: bytes, code: str, process: ServiceProcess
) -> None:
    before = len(process.output.read_text())
    for _ in range(20):
        with connect(process.port, sent) as connection:
            status, error = error_of(received(connection, PATIENCE_S))
        assert (status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert healthy(process.url)
    said = process.output.read_text()[before:]
    assert "Traceback" not in said
    assert "Fatal error" not in said
    assert said.count("Invalid HTTP") <= 3


def test_a_request_to_speak_another_protocol_is_answered_in_this_one(
    process: ServiceProcess,
) -> None:
    answer = httpx.get(
        f"{process.url}/healthz",
        verify=False,
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version": "13",
        },
        timeout=60,
    )
    assert answer.status_code == 200
    assert "pgrade" not in process.output.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hang_up_finishes_what_is_in_flight(
    workers: int, launch: Launch, fast: FastJudge
) -> None:
    """Sent twice and to the whole process group, as a closing terminal does."""
    process = launch(workers=workers, **model_judge(fast.url, drain_delay_s=0))
    sending, answers = hold_one(process.url, fast)
    for _ in range(2):
        os.killpg(process.process.pid, signal.SIGHUP)
    for attempt in eventually():
        with attempt:
            assert '"stopping"' in process.output.read_text()
    fast.release()
    sending.join(PATIENCE_S)
    assert [answer.rewards for answer in answers] == [[1.0]]
    assert process.wait(PATIENCE_S) == 0


def test_under_nohup_a_hang_up_is_nothing(tmp_path: Path) -> None:
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(
            ["nohup", COMMAND, "serve", "--port", "0"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment({"home": tmp_path, "judge": "builtin", "drain_delay_s": 0}),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert healthy(url)
        finally:
            process.terminate()


def test_requests_go_on_when_the_terminal_is_gone(tmp_path: Path) -> None:
    """Its log lines then reach nobody, and writing one is an error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [COMMAND, "serve", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment({"home": tmp_path, "judge": "builtin", "drain_delay_s": 0}),
        start_new_session=True,
    ) as process:
        try:
            os.close(theirs)
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            assert healthy(url)
            os.close(ours)
            assert (
                httpx.get(f"{url}/nowhere", verify=False, timeout=60).json()["error"]["code"]
                == "not_found"
            )
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/v1/rubrics", "/openapi.json", "/v1/usage"]
)
def test_head_is_answered_where_get_is(path: str, shared_service: str) -> None:
    got, asked = (
        httpx.request(method, shared_service + path, verify=False, timeout=60)
        for method in ("GET", "HEAD")
    )
    assert asked.status_code == got.status_code == 200
    assert asked.content == b""
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_head_where_there_is_no_get_is_refused_like_any_other_method(shared_service: str) -> None:
    answer = httpx.head(f"{shared_service}/v1/scores", verify=False, timeout=60)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert (
        httpx.post(f"{shared_service}/v1/usage", verify=False, timeout=60).headers["allow"]
        == "GET, HEAD"
    )


@pytest.mark.parametrize(
    "text", ["1_000", "+1000", "1000.0", "0x10", "١٠٠٠", "1e3", "-1", "", "9" * 400]
)
def test_a_number_in_a_header_is_digits(text: str, shared_service: str) -> None:
    body = {"groups": [{"id": "g", "prompt": "p", "rollouts": [{"id": "r", "text": "t"}]}]}
    answer = httpx.post(
        f"{shared_service}/v1/scores",
        json=body,
        headers={"X-Deadline-Ms": text.encode()},
        verify=False,
        timeout=60,
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_value"
    listed = httpx.get(
        f"{shared_service}/v1/rubrics", params={"limit": text}, verify=False, timeout=60
    )
    assert listed.status_code == 422
