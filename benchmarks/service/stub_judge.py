"""A fast, deterministic, OpenAI-compatible stub judge: one process, standard library only.

    python -m service.stub_judge --port 0 --latency-s 0.05 [--failing 0.2] [--garbage 0.2]

`POST /v1/chat/completions` answers after the latency. `GET /stats` counts; `POST /settings` takes
new settings and resets the counts. Which calls fail depends on the question and on how often it was
asked, not on time: a run can be repeated.
"""

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from service.oracle import find_answer_id, find_criterion_ids, unit_hash
from service.replies import garbage, is_induction, reply_to, text_of

BACKLOG = 8192
_FAILED = json.dumps(
    {"error": {"message": "the stub was told to fail", "type": "server_error", "code": None}}
).encode()


@dataclass(frozen=True)
class Settings:
    """`failing` and `garbage` are shares of calls answered with a 500, or with a useless reply."""

    latency_s: float = 0.05
    failing: float = 0.0
    garbage: float = 0.0


@dataclass
class Counts:
    """Counts since the last reset. `sample` is one request's body, for the baseline to repeat.

    `answered`: when a question was first answered to a caller who was still there (Unix time);
    `answered_again`: these times of questions that were answered once more.
    """

    calls: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    failed: int = 0
    garbled: int = 0
    body_bytes: int = 0
    sample: str = ""
    prompts: set[bytes] = field(default_factory=set)
    answers: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    answered: dict[bytes, float] = field(default_factory=dict)
    answered_again: list[float] = field(default_factory=list)
    inductions: int = 0

    def shown(self) -> dict[str, Any]:
        """Return the counts as JSON: sets as their sizes."""
        return {
            "calls": self.calls,
            "most_in_flight": self.most_in_flight,
            "failed": self.failed,
            "garbled": self.garbled,
            "prompts": len(self.prompts),
            "answers": len(self.answers),
            "inductions": self.inductions,
            "answered": len(self.answered),
            "answered_again": self.answered_again,
            "mean_body_bytes": self.body_bytes / max(self.calls, 1),
            "sample": self.sample,
        }


class StubJudge:
    """The judge's behaviour, without its transport."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts = Counts()

    def configure(self, body: bytes) -> bytes:
        """Apply new settings (others get their defaults) and reset the counts."""
        self.settings = Settings(**json.loads(body or b"{}"))
        self.counts = Counts()
        return json.dumps(asdict(self.settings)).encode()

    def complete(self, body: bytes) -> tuple[bytes, int, bytes]:
        """Return question, status and body of the answer to a chat request, and count it."""
        counts, settings = self.counts, self.settings
        request = json.loads(body)
        text = text_of(request)
        answer = find_answer_id(text)
        counts.calls += 1
        counts.body_bytes += len(body)
        counts.sample = counts.sample or body.decode()
        asked = hashlib.blake2b(text.encode(), digest_size=16).digest()
        counts.prompts.add(asked)
        counts.inductions += is_induction(request, text)
        if answer is not None:
            counts.answers.add(answer)
        if not settings.failing and not settings.garbage:
            return asked, 200, _completion(request, reply_to(request, text))
        question = f"{answer} {' '.join(find_criterion_ids(text))}"
        counts.asked[question] += 1
        key = f"{question} {counts.asked[question]}"
        if unit_hash(f"fails {key}") < settings.failing:
            counts.failed += 1
            return asked, 500, _FAILED
        if unit_hash(f"garbles {key}") < settings.garbage:
            counts.garbled += 1
            return asked, 200, _completion(request, garbage(text, key))
        return asked, 200, _completion(request, reply_to(request, text))


class Connection(asyncio.Protocol):
    """A minimal HTTP/1.1: keep-alive, bodies by content-length, one request at a time."""

    def __init__(self, judge: StubJudge) -> None:
        self._judge = judge
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the requests in the buffer."""
        self._received += data
        while True:
            head, separator, rest = self._received.partition(b"\r\n\r\n")
            if not separator:
                return
            length = _content_length(bytes(head))
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._route(bytes(head.split(b"\r\n", 1)[0]), bytes(rest[:length]))

    def _route(self, request_line: bytes, body: bytes) -> None:
        path = request_line.split(b" ")[1]
        if path.startswith(b"/stats"):
            self._write(200, json.dumps(self._judge.counts.shown()).encode())
        elif path.startswith(b"/settings"):
            self._write(200, self._judge.configure(body))
        elif path.endswith(b"/chat/completions"):
            self._answer_later(body)
        else:
            self._write(404, b"{}")

    def _answer_later(self, body: bytes) -> None:
        counts, loop = self._judge.counts, asyncio.get_running_loop()
        due = loop.time() + self._judge.settings.latency_s
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        loop.call_at(due, self._finish, counts, *self._judge.complete(body))

    def _finish(self, counts: Counts, question: bytes, status: int, payload: bytes) -> None:
        counts.in_flight -= 1
        if status == 200 and not self._transport.is_closing():
            if question in counts.answered:
                counts.answered_again.append(counts.answered[question])
            counts.answered.setdefault(question, time.time())
        self._write(status, payload)

    def _write(self, status: int, payload: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 %d stub\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (status, len(payload), payload)
            )


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _completion(request: dict[str, Any], content: str) -> bytes:
    return json.dumps(
        {
            "id": "stub",
            "object": "chat.completion",
            "created": 1,
            "model": request.get("model", "stub"),
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": content},
                }
            ],
            "usage": {"prompt_tokens": 600, "completion_tokens": 40, "total_tokens": 640},
        }
    ).encode()


async def serve(port: int, settings: Settings) -> None:
    """Listen on loopback until ended, and print the address."""
    judge = StubJudge(settings)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(judge), "127.0.0.1", port, backlog=BACKLOG
    )
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve the stub."""
    parser = argparse.ArgumentParser(prog="python -m service.stub_judge")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=Settings.latency_s)
    parser.add_argument("--failing", type=float, default=Settings.failing)
    parser.add_argument("--garbage", type=float, default=Settings.garbage)
    arguments = parser.parse_args()
    try:
        asyncio.run(
            serve(
                arguments.port, Settings(arguments.latency_s, arguments.failing, arguments.garbage)
            )
        )
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
