"""A mock judge behind a proxy: it follows the schema, in a manner that its model names.

`good` replies in JSON, `thinks` with a thought that looks like JSON and then JSON in a code fence,
`prose` in words.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_VERDICTS = {"verdicts": [{"id": "c1", "met": True}, {"id": "c2", "met": False}]}
_RUBRIC = {
    "criteria": [
        {"criterion": text, "points": points, "category": "task_fulfilment"}
        for text, points in (
            ("It names a colour.", 5),
            ("It is one sentence.", 2),
            ("It gives an example.", 2),
            ("It has no filler.", 1),
        )
    ]
}
REPLIES: Mapping[str, Callable[[str], str]] = {
    "good": lambda json_text: json_text,
    "thinks": lambda json_text: (
        '<think>c1: {"met": maybe}. Fine.</think>```json\n' + json_text + "\n```"
    ),
    "prose": lambda _json_text: "Sure! c1 is met, c2 is not.",
}


def reply_to(request: dict[str, Any]) -> str:
    """Return the reply to a chat-completions request."""
    schema = (request.get("response_format") or {}).get("json_schema", {}).get("schema", {})
    asked = schema.get("properties", {})
    if "word" in asked:  # doctor's question
        content: Any = {"word": asked["word"]["enum"][0]}
    elif "criteria" in asked:
        content = _RUBRIC
    else:
        content = _VERDICTS
    return REPLIES.get(request["model"], REPLIES["good"])(json.dumps(content))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = {"role": "assistant", "content": reply_to(request)}
        body = json.dumps(
            {
                "id": "mock",
                "object": "chat.completion",
                "created": 1,
                "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 600, "completion_tokens": 40, "total_tokens": 640},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@contextmanager
def mocking() -> Iterator[str]:
    """Serve the mock on loopback and yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
