"""What endpoints really send: recorded replies and refusals, read by the real judge over loopback.

Each entry of ``dialects/*.json`` is one answer that the endpoint gives to every call. ``want`` says
what must become of it: verdicts (``met``), a number of ``criteria``, a ``text``, or a ``reason``
with the class that it ``follows`` from. ``calls_most`` is how often the endpoint may be asked;
``says`` is a part of the failure's message; ``parameter`` is the parameter that was refused.

``content`` stands for a well-formed completion with that text, ``body`` for a body as it is. The
``built_`` forms are lists of ``[text, times]``, joined: for what is too long to be written out.
``settings`` are more of the service's settings.

A refusal of a parameter or of structured output also stands for an endpoint that answers once the
call is as it wants it; ``at_most`` is the longest reply that it then allows to be asked for.
"""

import asyncio
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from markscheme_server.app import make_judge
from markscheme_server.config import Settings
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge import gateway, retry
from markscheme_server.judge.base import InductionTask, JudgeFailure, StudentResponse, VerifyTask
from markscheme_server.judge.openai import OpenAIJudge

CORPUS = Path(__file__).parent / "dialects"
DIALECTS = (
    "openai",
    "azure",
    "anthropic",
    "gemini",
    "mistral",
    "deepseek",
    "groq",
    "openrouter",
    "litellm",
    "vllm",
    "sglang",
    "llama_cpp",
    "ollama",
    "transformers",
)
OUTCOMES = ("met", "criteria", "text", "reason")
FOLLOWS = (
    "refused",
    "too_large",
    "rate_limited",
    "quota",
    "unavailable",
    "parameter",
    "form",
    "generation",
    "misconfigured",
)
PATIENCE_S = 4.0
LENGTHS = ("max_tokens", "max_completion_tokens")
MENDED = "mended/"
"""Before an entry's name: the endpoint that answers once the call is as it wants it."""

Entry = dict[str, Any]


def read_corpus() -> dict[str, list[Entry]]:
    """Return the entries of each file, by its name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(CORPUS.glob("*.json"))
    }


ENTRIES: list[Entry] = [entry for entries in read_corpus().values() for entry in entries]

PROMPT = ({"role": "user", "content": "Which colour is the sky, and why?"},)
VERIFY = VerifyTask(
    prompt=PROMPT,
    responses=("Blue, because air scatters short waves.",),
    criteria=(Criterion("c1", "It names a colour.", 3), Criterion("c2", "It gives a reason.", 1)),
)
INDUCE = InductionTask(
    PROMPT, ("It is blue since air scatters short waves.",), (StudentResponse("Blue."),)
)


VERDICTS = {"verdicts": [{"id": "c1", "met": True}, {"id": "c2", "met": False}]}
RUBRIC = {
    "criteria": [
        {"criterion": text, "category": "task_fulfilment", "points": 2}
        for text in (
            "It names a colour.",
            "It gives a reason.",
            "It is one sentence.",
            "It names the air.",
        )
    ]
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "verifier": (json.dumps(VERDICTS), {"met": {"c1": True, "c2": False}}),
    "rubricator": (json.dumps(RUBRIC), {"criteria": 4}),
    "teacher": ("Blue.", {"text": "Blue."}),
}
"""A plain reply to each role, and what it becomes."""


def role_of(entry: Entry) -> str:
    return str(entry.get("role", "verifier"))


def can_be_mended(entry: Entry) -> bool:
    """Whether the service can ask so that this endpoint answers."""
    want = entry["want"]
    return "at_most" in entry or "parameter" in want or want.get("follows") == "form"


def is_as_wanted(request: dict[str, Any], entry: Entry) -> bool:
    """Whether the endpoint of an entry that can be mended would answer this request."""
    if "at_most" in entry:
        return all(request.get(name, 0) <= entry["at_most"] for name in LENGTHS)
    return entry["want"].get("parameter", "response_format") not in request


def build_text(parts: list[tuple[str, int]]) -> str:
    return "".join(text * times for text, times in parts)


def plain_entry(role: str) -> Entry:
    """Return an endpoint's plain answer to a role."""
    return {"name": "plain", "content": PLAIN[role][0]}


def body_of(entry: Entry) -> bytes:
    """Return the bytes of the endpoint's answer."""
    if "built_body" in entry:
        return build_text(entry["built_body"]).encode()
    if "body" in entry:
        body = entry["body"]
        return (body if isinstance(body, str) else json.dumps(body)).encode()
    message: dict[str, Any] = {"role": "assistant", "content": entry.get("content")}
    if "built_content" in entry:
        message["content"] = build_text(entry["built_content"])
    if "reasoning_content" in entry:
        message["reasoning_content"] = entry["reasoning_content"]
    choice = {"index": 0, "message": message, "finish_reason": entry.get("finish_reason", "stop")}
    usage = {"prompt_tokens": 420, "completion_tokens": 31, "total_tokens": 451}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1764164000,
            "model": entry["name"],
            "choices": [choice],
            "usage": usage,
        }
    ).encode()


class Endpoint:
    """A loopback endpoint: the model that is asked for is the entry that it answers with."""

    def __init__(self, entries: list[Entry]) -> None:
        by_name = {entry["name"]: entry for entry in entries}
        self.requests: dict[str, list[dict[str, Any]]] = defaultdict(list)
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                requests[request["model"]].append(request)
                entry = by_name[request["model"].removeprefix(MENDED)]
                if request["model"].startswith(MENDED) and is_as_wanted(request, entry):
                    entry = plain_entry(role_of(entry))
                body = body_of(entry)
                headers = {"content-type": "application/json"} | entry.get("headers", {})
                self.send_response(entry.get("status", 200))
                for name, value in (headers | {"content-length": str(len(body))}).items():
                    self.send_header(name, value)
                try:
                    self.end_headers()
                    self.wfile.write(body)
                except ConnectionError:
                    self.close_connection = True  # the service reads no body that is too long

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(ENTRIES)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (retry, gateway):
        monkeypatch.setattr(module, "backoff_s", lambda attempt: 0.0, raising=False)


async def ask(entry: Entry, model: str, url: str) -> tuple[dict[str, Any], JudgeFailure | None]:
    """Return the judge's reading of the endpoint's answers, in the terms of ``want``."""
    settings = Settings(
        _env_file=None,
        judge="openai",
        judge_base_url=url,
        judge_model=model,
        judge_api_key="k",
        judge_timeout_s=60,
        **entry.get("settings", {}),
    )
    judge = make_judge(settings, "default", owner="t", secret=b"s" * 16)
    assert isinstance(judge, OpenAIJudge)
    context = CallContext(Deadline(asyncio.get_running_loop().time() + PATIENCE_S))
    try:
        match role_of(entry):
            case "rubricator":
                return {"criteria": len(await judge.induce(INDUCE, context))}, None
            case "teacher":
                text = await judge.respond(PROMPT, context)
                return {"text": text.strip()}, None
        (decisions,) = await judge.verify(VERIFY, context)
        return {"met": {name: decision.met for name, decision in decisions.items()}}, None
    except JudgeFailure as failure:
        return {"reason": str(failure.reason)}, failure
    finally:
        await judge.aclose()


def refusal_class(failure: JudgeFailure) -> str | None:
    """Return the class of the refusal behind a failure, if the failure names one."""
    outcome = getattr(failure, "outcome", None)
    if outcome is None:
        return None
    return str(getattr(outcome, "value", getattr(outcome, "kind", outcome)))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["name"] for entry in ENTRIES])
async def test_an_endpoints_answer_becomes_what_the_entry_wants(
    entry: Entry, endpoint: Endpoint
) -> None:
    want = dict(entry["want"])
    follows, most, says, parameter = (
        want.pop(key, None) for key in ("follows", "calls_most", "says", "parameter")
    )
    found, failure = await ask(entry, entry["name"], endpoint.url)
    requests = endpoint.requests[entry["name"]]
    assert found == want, f"{failure}; {len(requests)} calls"
    assert 1 <= len(requests) <= (most or 1)
    if failure is not None:
        assert refusal_class(failure) in (None, follows)
        assert says is None or says in str(failure)
        if parameter in requests[0] and "at_most" not in entry:
            assert parameter not in requests[-1], f"{parameter} was refused and sent again"


MENDABLE = [entry for entry in ENTRIES if can_be_mended(entry)]


@pytest.mark.parametrize("entry", MENDABLE, ids=[entry["name"] for entry in MENDABLE])
async def test_an_endpoint_that_refuses_how_it_is_asked_is_asked_as_it_wants(
    entry: Entry, endpoint: Endpoint
) -> None:
    model = MENDED + entry["name"]
    found, failure = await ask(entry, model, endpoint.url)
    calls = len(endpoint.requests[model])
    assert found == PLAIN[role_of(entry)][1], f"{failure}; {calls} calls"
    assert calls <= (3 if entry["want"].get("follows") == "form" else 2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_has_six_entries_at_least(dialect: str) -> None:
    assert len(read_corpus()[dialect]) >= 6


def test_the_corpus_has_enough_entries_with_a_name_of_their_own() -> None:
    names = Counter(entry["name"] for entry in ENTRIES)
    assert [name for name, times in names.items() if times > 1] == []
    assert len(names) >= 120


def test_each_entry_has_a_source() -> None:
    assert [entry["name"] for entry in ENTRIES if not entry.get("source", "").strip()] == []


def test_each_entry_wants_one_outcome_in_words_that_are_known() -> None:
    for entry in ENTRIES:
        want = entry["want"]
        assert sum(key in want for key in OUTCOMES) == 1, entry["name"]
        assert want.get("follows") in (None, *FOLLOWS), entry["name"]
        known = {*OUTCOMES, "follows", "calls_most", "parameter", "says"}
        assert want.keys() <= known, entry["name"]
        assert "parameter" not in want or want.get("follows") == "parameter", entry["name"]
        assert role_of(entry) in PLAIN, entry["name"]
