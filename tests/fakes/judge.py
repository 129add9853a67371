"""A scripted judge: an OpenAI-compatible endpoint on loopback that answers or fails by script.

It is the only fake part of the tests, because models cost money. It counts and stores every
request.
"""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | int | tuple[int, dict[str, Any]] | bytes | None
"""A reply's text, an HTTP status (with its body), raw bytes, or ``None``: never answer."""
Script = Callable[[dict[str, Any], int], Answer]

RUBRIC = {
    "criteria": [
        {"criterion": "The response names a colour.", "category": "task_fulfilment", "points": 5},
        {
            "criterion": "The response is one sentence.",
            "category": "observable_quality",
            "points": 2,
        },
        {"criterion": "The response gives a reason.", "category": "general_reasoning", "points": 2},
        {"criterion": "The response is polite.", "category": "observable_quality", "points": 1},
    ]
}


def text_of(request: dict[str, Any]) -> str:
    return "\n".join(m["content"] for m in request["messages"])


def instructions(request: dict[str, Any]) -> str:
    """Return the prompt without what stands between its delimiters."""
    return re.sub(r"^<<(\S+)\n.*?\n\1>>", "", text_of(request), flags=re.MULTILINE | re.DOTALL)


def offered(request: dict[str, Any]) -> list[str]:
    """Return the criterion ids that a verifier's prompt offers."""
    return re.findall(r"^(c\d+): ", instructions(request), re.MULTILINE)


def answered_texts(request: dict[str, Any]) -> list[str]:
    """Return the answers in a verifier's prompt, in the order shown."""
    return re.findall(
        r"^Answer(?: \d+)?:\n<<(\S+)\n(.*?)\n\1>>", text_of(request), re.MULTILINE | re.DOTALL
    )


def verdicts(
    request: dict[str, Any], met: Callable[[str, str], bool | None] = lambda criterion, answer: True
) -> str:
    """Build a well-formed reply with the nonce; ``met(criterion id, answer text)`` decides.

    ``None``: the criterion does not apply.
    """
    ids = offered(request)
    shown = [text for _, text in answered_texts(request)]
    pooled = '"answers"' in instructions(request).rsplit("Reply with one JSON object", 1)[-1]
    asks_applicable = '"applicable"' in instructions(request)
    marked = [[verdict(i, met(i, text), asks_applicable) for i in ids] for text in shown]
    nonces = re.findall(r"^nonce: (\S+)$", instructions(request), re.MULTILINE)
    reply: dict[str, Any] = {"nonce": nonces[-1]} if nonces else {}
    if pooled:
        reply["answers"] = [{"answer": n, "verdicts": v} for n, v in enumerate(marked, 1)]
    else:
        reply["verdicts"] = marked[0]
    return json.dumps(reply)


def verdict(criterion: str, met: bool | None, asks_applicable: bool) -> dict[str, Any]:
    """Build one verdict; ``applicable`` is given where it is asked for or false."""
    stated = asks_applicable or met is None
    return {"id": criterion, "met": met} | ({"applicable": met is not None} if stated else {})


def well_behaved(request: dict[str, Any], _number: int) -> Answer:
    return verdicts(request) if offered(request) else json.dumps(RUBRIC)


class ScriptedJudge:
    """Serves on a free loopback port until closed."""

    def __init__(self) -> None:
        self.script: Script = well_behaved
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        """What each request said in ``Authorization``."""
        self.headers: list[dict[str, str]] = []
        self.states_usage = True
        self.models: list[str] = []
        """What ``GET /models`` lists; an endpoint without any answers 404."""
        self.finish: Callable[[dict[str, Any]], str] = lambda request: "stop"
        self.usage: Any = {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        self.released = threading.Event()
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                data = [{"id": name, "object": "model"} for name in judge.models]
                payload = json.dumps({"object": "list", "data": data}).encode()
                self.send_response(200 if judge.models else 404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with judge._lock:
                    judge.requests.append(request)
                    judge.keys.append(self.headers["authorization"])
                    judge.headers.append({k.lower(): v for k, v in self.headers.items()})
                    number = len(judge.requests)
                self._answer(judge.script(request, number), request)

            def _answer(self, answer: Answer, request: dict[str, Any]) -> None:
                if answer is None:
                    judge.released.wait(30)
                    self.close_connection = True
                    return
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                if isinstance(answer, int):
                    answer = (
                        answer,
                        {"error": {"message": "scripted", "type": "server_error", "code": None}},
                    )
                if isinstance(answer, tuple):
                    status, body = answer
                else:
                    status, body = (
                        200,
                        {
                            "id": "x",
                            "object": "chat.completion",
                            "created": 1,
                            "model": request["model"],
                            "choices": [
                                {
                                    "index": 0,
                                    "finish_reason": judge.finish(request),
                                    "message": {"role": "assistant", "content": answer},
                                }
                            ],
                            **({"usage": judge.usage} if judge.states_usage else {}),
                        },
                    )
                payload = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def settings(self) -> dict[str, Any]:
        """Return settings of a service that uses it."""
        return {
            "judge": "openai",
            "judge_base_url": self.url,
            "judge_model": "scripted",
            "judge_api_key": "k-secret",
            "judge_timeout_s": 30.0,
            "request_timeout_s": 60.0,
        }

    @property
    def verifications(self) -> list[dict[str, Any]]:
        return [r for r in self.requests if offered(r)]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
