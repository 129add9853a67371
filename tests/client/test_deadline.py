"""Deadlines, keys and retries of both clients, against a service that answers, refuses or stays silent as told."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from markscheme import AsyncClient, Client
from markscheme.deadline import Deadline
from markscheme.errors import Conflict, ConnectionFailed, DeadlineExceeded, ServiceUnavailable
from markscheme.schema import Rubric, ScoreBatch

RUBRIC = {
    "object": "rubric", "id": "rub_1", "version": 1, "parent_id": None, "prompt_key": "k", "prompt": [],
    "content_hash": "h", "criteria": [], "maximum_score": 1, "origin": "induced", "tags": [],
    "team": "default", "visibility": "private", "shared_with": [], "retired_at": None,
    "created_at": "2026-01-01T00:00:00Z", "provenance": {}}
ONE = {"id": "g", "prompt": "p", "rollouts": [{"id": "r", "text": "x"}]}
GROUP = {"object": "score.group", "id": "g", "status": "unscored", "error": None, "rubric": None, "teacher": None,
         "rollouts": []}
SUMMARY = {"object": "score.summary", "counts": {"rollouts": 1, "scored": 0, "unscored": 1}, "usage": {
    "judge_calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "cached_verdicts": 0}}
HEARTBEAT = {"object": "heartbeat"}


@dataclass
class Reply:
    """One answer: after ``wait_s``, its lines ``every_s`` apart. No status: the connection is dropped."""

    status: int | None = 200
    lines: list[Any] = field(default_factory=lambda: [RUBRIC])
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    every_s: float = 0.0


def refusal(status: int, code: str, retry_after: str | None = None) -> Reply:
    body = {"error": {"message": "scripted", "type": "t", "param": None, "code": code}, "request_id": "req_1"}
    return Reply(status, [body], {"Retry-After": retry_after} if retry_after else {})


class ScriptedService:
    """Gives its replies in order, the last one again and again; keeps when and with which headers it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [Reply()]
        self.asked: list[tuple[float, dict[str, str], Any]] = []
        self.closed = threading.Event()
        service, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    reply = service.replies[min(len(service.asked), len(service.replies) - 1)]
                    service.asked.append((time.monotonic(), {k.lower(): v for k, v in self.headers.items()}, body))
                service.closed.wait(reply.wait_s)
                self.close_connection = True
                if reply.status is None:
                    return
                # The client may have left: that is what it is tested for.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._write(reply)

            def _write(self, reply: Reply) -> None:
                assert reply.status is not None
                self.send_response(reply.status)
                for name, value in (reply.headers | {"connection": "close"}).items():
                    self.send_header(name, value)
                self.end_headers()
                for line in reply.lines:
                    service.closed.wait(reply.every_s)
                    self.wfile.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

            def log_message(self, *_arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def header(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, headers, _ in self.asked]

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


def induce(url: str, **options: Any) -> Rubric:
    with Client(url) as client:
        return client.induce("p", student_responses=["s"], **options)


def induce_async(url: str, **options: Any) -> Rubric:
    async def run() -> Rubric:
        async with AsyncClient(url) as client:
            return await client.induce("p", student_responses=["s"], **options)
    return asyncio.run(run())


def score(url: str, **options: Any) -> ScoreBatch:
    with Client(url) as client:
        return client.score([ONE], **options)


def score_async(url: str, **options: Any) -> ScoreBatch:
    async def run() -> ScoreBatch:
        async with AsyncClient(url) as client:
            return await client.score([ONE], **options)
    return asyncio.run(run())


BOTH_INDUCE = pytest.mark.parametrize("call", [induce, induce_async])
BOTH_SCORE = pytest.mark.parametrize("call", [score, score_async])
ALL = pytest.mark.parametrize("call", [induce, induce_async, score, score_async])
Call = Callable[..., Any]


@ALL
def test_without_a_deadline_none_is_stated(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])]
    call(service.url)
    assert service.header("x-deadline-ms") == [None]
    assert "judge" not in service.asked[0][2]


@ALL
def test_a_judge_is_named_in_the_body(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])]
    call(service.url, judge="strong")
    assert service.asked[0][2]["judge"] == "strong"


@ALL
def test_each_attempt_states_what_is_left(call: Call, service: ScriptedService) -> None:
    good = Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])
    service.replies = [refusal(503, "overloaded", "1"), Reply(None, wait_s=0.3), good]
    call(service.url, deadline_s=20)
    stated = [int(left or 0) for left in service.header("x-deadline-ms")]
    gone = [1000 * (at - service.asked[0][0]) for at, _, _ in service.asked]
    assert len(stated) == 3
    assert gone[1] > 900
    # A little less than what is left, so that the answer has time to arrive.
    assert all(17_500 < left + past <= 20_000 for left, past in zip(stated, gone, strict=True))
    assert stated[0] > stated[1] > stated[2]


@ALL
def test_silence_ends_at_the_deadline_and_is_not_retried(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(wait_s=20)]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within the 0\.6 s") as caught:
        call(service.url, deadline_s=0.6)
    assert 0.4 < time.monotonic() - started < 2.0
    assert len(service.asked) == 1
    assert isinstance(caught.value, (ConnectionFailed, TimeoutError))


@ALL
def test_a_pause_past_the_deadline_is_not_begun(call: Call, service: ScriptedService) -> None:
    service.replies = [refusal(503, "overloaded", "5")]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="busy"):
        call(service.url, deadline_s=2)
    assert time.monotonic() - started < 1.5
    assert len(service.asked) == 1


@BOTH_SCORE
def test_heartbeats_do_not_carry_a_call_past_its_deadline(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[HEARTBEAT] * 200, every_s=0.1)]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call(service.url, deadline_s=0.7)
    assert 0.5 < time.monotonic() - started < 2.0


@BOTH_SCORE
def test_an_answer_given_at_the_stated_time_still_arrives(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[HEARTBEAT, GROUP, SUMMARY], every_s=0.6)]
    assert call(service.url, deadline_s=2).counts.unscored == 1


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_is_a_time_to_come(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        Deadline.after(deadline_s)


@BOTH_INDUCE
def test_no_service_is_no_connection_while_there_is_time(call: Call) -> None:
    with pytest.raises(ConnectionFailed, match="markscheme serve") as caught:
        call("http://127.0.0.1:1", deadline_s=30)
    assert not isinstance(caught.value, DeadlineExceeded)


@BOTH_INDUCE
def test_all_attempts_of_a_creating_call_carry_one_key(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(None), refusal(409, "idempotency_key_running", "1"), Reply()]
    assert call(service.url).id == "rub_1"
    keys = service.header("idempotency-key")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    call(service.url)
    assert service.header("idempotency-key")[-1] not in (None, keys[0])
    assert 0.9 < service.asked[2][0] - service.asked[1][0] < 4


@BOTH_INDUCE
def test_a_call_that_keeps_running_is_a_conflict(call: Call, service: ScriptedService) -> None:
    service.replies = [refusal(409, "idempotency_key_running", "1")]
    with pytest.raises(Conflict) as caught:
        call(service.url)
    assert caught.value.code == "idempotency_key_running"
    assert len(service.asked) == 3


def test_create_carries_a_key_and_score_none(service: ScriptedService) -> None:
    service.replies = [Reply(), refusal(409, "conflict", "1")]
    with Client(service.url) as client:
        client.create_rubric("p", [{"text": "t", "points": 1}])
        with pytest.raises(Conflict):
            client.score([ONE])
    assert [key is None for key in service.header("idempotency-key")] == [False, True]


@BOTH_INDUCE
def test_an_overloaded_service_is_asked_three_times(call: Call, service: ScriptedService) -> None:
    service.replies = [refusal(503, "overloaded", "1")]
    with pytest.raises(ServiceUnavailable):
        call(service.url, deadline_s=30)
    assert len(service.asked) == 3


async def test_a_callback_that_times_out_is_not_ours(service: ScriptedService) -> None:
    service.replies = [Reply(lines=[GROUP, SUMMARY])]

    def callback(_group: object) -> None:
        raise TimeoutError("the caller's own")

    async with AsyncClient(service.url) as client:
        with pytest.raises(TimeoutError, match="the caller's own"):
            await client.score([ONE], on_group=callback, deadline_s=30)
