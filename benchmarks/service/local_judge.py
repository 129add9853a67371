"""A small real model as a judge: an OpenAI-compatible server that always fits the schema.

    python -m service.local_judge --model build/smollm2 [--port 0]

The model reads the prompt once and decides each `met` by comparing the logits of true and false
(`service.constrained`). Greedy and sequential: the same question has the same answer. `GET
/decisions` returns the decisions since the last such call, with margins. Threads:
`OMP_NUM_THREADS`.
"""

import argparse
import json
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.constrained import FALSE, TRUE, Decision, Unsupported, decide, skeleton
from service.replies import text_of


class SmallModel:
    """A causal language model that reads on and is asked for its next token now and then."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self._true, self._false = (self._encode(word)[0] for word in (TRUE, FALSE))
        if self._true == self._false:
            raise ValueError("this tokenizer begins both booleans with the same token")
        self._cache: Any = None
        self.tokens_read = 0

    def start(self, messages: list[dict[str, str]]) -> str:
        """Reset the model; return the prompt in chat form, to be read with the first margin."""
        self._cache, self.tokens_read = None, 0
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )

    @torch.inference_mode()
    def margin(self, text: str) -> float:
        """Read on; return logit(true) − logit(false) of the next token."""
        tokens = torch.tensor([self._encode(text)])
        read = self._model(
            input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = read.past_key_values
        self.tokens_read += tokens.shape[1]
        logits = read.logits[0, -1]
        return float(logits[self._true] - logits[self._false])

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens


class LocalJudge:
    """Answers verifier requests one at a time and records its decisions."""

    def __init__(self, model: SmallModel) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._decisions: list[Decision] = []

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return a chat completion. Raises `Unsupported`."""
        criteria, pieces = skeleton(request, text_of(request))
        with self._lock:
            unread = self._model.start(request["messages"])

            def margin(text: str) -> float:
                nonlocal unread
                text, unread = unread + text, ""
                return self._model.margin(text)

            reply, decisions = decide(criteria, pieces, margin)
            self._decisions += decisions
            read = self._model.tokens_read
        return {
            "id": "local",
            "object": "chat.completion",
            "created": 1,
            "model": request.get("model", "local"),
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": reply},
                }
            ],
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": len(criteria),
                "total_tokens": read + len(criteria),
            },
        }

    def take_decisions(self) -> list[dict[str, Any]]:
        """Return the decisions since the last call."""
        with self._lock:
            taken, self._decisions = self._decisions, []
        return [asdict(decision) for decision in taken]


def serve(judge: LocalJudge, port: int) -> None:
    """Listen on loopback until ended, and print the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._write(200, judge.take_decisions())

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self._write(200, judge.complete(request))
            except Unsupported as error:
                self._write(
                    400,
                    {
                        "error": {
                            "message": str(error),
                            "type": "invalid_request_error",
                            "code": None,
                        }
                    },
                )

        def _write(self, status: int, body: Any) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_arguments: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


def main() -> None:
    """Serve the model."""
    parser = argparse.ArgumentParser(prog="python -m service.local_judge")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    serve(LocalJudge(SmallModel(arguments.model)), arguments.port)


if __name__ == "__main__":
    main()
