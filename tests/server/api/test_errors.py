"""Every answer that is no success has the one error shape, on every route.

The service of every test is watched for it too (``fakes.service.OneErrorShape``).
"""

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.responses import PlainTextResponse

from fakes.service import OneErrorShape, running
from markscheme.schema import ErrorBody
from markscheme.vocabulary import UnscoredReason
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.api.errors import judge_error
from markscheme_server.app import create_app
from markscheme_server.config import Settings
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.scoring.rubric_library import RubricLibrary
from markscheme_server.store.engine.database import DatabaseUnreachable

KEY = "the operator's own key"
PATHS = create_app(Settings(_env_file=None, judge="builtin")).openapi()["paths"]
OPERATIONS = [(method.upper(), path) for path, methods in PATHS.items() for method in methods]
GUARDED = [operation for operation in OPERATIONS if operation[1].startswith("/v1/")]
WITH_BODY = [
    (method, path) for method, path in GUARDED if "requestBody" in PATHS[path][method.lower()]
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("home"),
        judge="builtin",
        api_key=KEY,
        key_pepper="a pepper for the tests",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("markscheme_server.app.MAX_BODY_BYTES", 2000)
        with running(settings) as url:
            yield url


@pytest.fixture(scope="module")
def http_client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as made:
        yield made


def shaped(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    body = ErrorBody.model_validate_json(answer.content)
    assert body.error.message
    assert body.request_id == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"


def at(path: str) -> str:
    return (
        path.replace("{rubric_id}", "rub_none")
        .replace("{prefix}", "mk_none0")
        .replace("{name}", "none")
    )


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_without_a_key(http_client: httpx.Client, method: str, path: str) -> None:
    shaped(http_client.request(method, at(path), headers={"Authorization": ""}), 401)
    shaped(
        http_client.request(method, at(path), headers={"Authorization": "Bearer mk_nonsense"}), 401
    )


@pytest.mark.parametrize("path", sorted({path for _, path in OPERATIONS}))
def test_a_method_that_there_is_not(http_client: httpx.Client, path: str) -> None:
    place = at(path.replace("{key}", KEY))
    shaped(http_client.request("TRACE", place), 405)
    shaped(http_client.request("PROPFIND", place), 405)
    shaped(http_client.request("BREW", place), 400)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"unknown": 1}',
        b'{"x": NaN}',
        b'"\\ud800"',
        b"\xff",
        b"[" * 1000,
        b'{"prompt": "\\u0000"}',
    ],
)
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_that_is_none(
    http_client: httpx.Client, method: str, path: str, content: bytes
) -> None:
    shaped(
        http_client.request(
            method, at(path), content=content, headers={"Content-Type": "application/json"}
        ),
        400,
        422,
    )


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_of_another_kind_or_too_long(
    http_client: httpx.Client, method: str, path: str
) -> None:
    shaped(
        http_client.request(
            method, at(path), content=b"{}", headers={"Content-Type": "text/plain"}
        ),
        400,
        415,
        422,
    )
    shaped(http_client.request(method, at(path), content=b" " * 2001), 413)
    shaped(http_client.request(method, at(path), content=iter([b" " * 1500] * 2)), 413)


@pytest.mark.parametrize(("method", "path"), [o for o in GUARDED if o[0] == "GET"])
def test_a_query_that_is_none(http_client: httpx.Client, method: str, path: str) -> None:
    wrong = {
        "limit": "x",
        "after": "\x00",
        "prompt": "\x00",
        "group_by": "?",
        "since": "never",
        "format": "none",
        "run": "\x00",
        "generations": "x",
        "before": "\x00",
    }
    answer = http_client.request(method, at(path), params=wrong)
    if answer.status_code >= 400:
        shaped(answer, 404, 422)
    else:
        assert path in ("/v1/teams", "/v1/keys", "/v1/judges", "/v1/judges/report")


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v1/rubrics/",
        "/v1/rubrics/%00",
        "/v1/../etc",
        "/%ff",
        "/v1/rubrics/rub_none",
        "/v1/teams/none/budget",
        "//v1//rubrics",
    ],
)
def test_a_place_that_there_is_not(http_client: httpx.Client, path: str) -> None:
    shaped(http_client.get(path), 404)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/scores", {"X-Deadline-Ms": "soon"}),
        ("/v1/scores", {"X-Deadline-Ms": "-1"}),
        ("/v1/rubrics", {"Idempotency-Key": "k" * 256}),
    ],
)
def test_a_header_that_is_none(
    http_client: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    bodies = {
        "/v1/rubrics": {"prompt": "p", "criteria": [{"text": "t", "points": 1}]},
        "/v1/scores": {
            "groups": [{"id": "g", "prompt": "p", "rollouts": [{"id": "r", "text": "x"}]}]
        },
    }
    shaped(http_client.post(path, json=bodies[path], headers=headers), 400, 422)


def test_two_lengths(url: str) -> None:
    host = urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=20)
    connection.request(
        "POST",
        "/v1/rubrics",
        headers={
            "Content-Length": "5",
            "Transfer-Encoding": "chunked",
            "Authorization": f"Bearer {KEY}",
        },
    )
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    assert answer.status == 400
    ErrorBody.model_validate(json.loads(answer.read()))
    connection.close()


@pytest.mark.parametrize(("status", "noted"), [(500, 1), (404, 1), (499, 0), (200, 0)])
def test_another_shape_is_noted(status: int, noted: int) -> None:
    """The watch over the services of all tests does see it."""
    app = OneErrorShape(PlainTextResponse("no", status))
    transport = httpx.ASGITransport(app)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asking:
            await asking.get("/")

    asyncio.run(ask())
    assert len(app.faults) == noted


@pytest.mark.parametrize("reason", UnscoredReason)
def test_an_answer_without_a_reward_is_503_only_where_waiting_may_help(
    reason: UnscoredReason,
) -> None:
    passes = {UnscoredReason.TIMEOUT, UnscoredReason.RATE_LIMITED, UnscoredReason.UNAVAILABLE}
    assert (judge_error(JudgeFailure(reason, "why")).status == 503) == (reason in passes)


def test_an_error_that_nobody_expects_tells_nothing_of_itself(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("the password is 1234")

    monkeypatch.setattr(RubricLibrary, "get", fail)
    answer = httpx.get(f"{serve()}/v1/rubrics/rub_one", headers={"X-Request-ID": "req-of-mine"})
    shaped(answer, 500)
    assert answer.json()["error"]["code"] == "internal"
    assert "1234" not in answer.text
    assert answer.headers["x-request-id"] == "req-of-mine"


def test_a_request_whose_time_runs_out_may_be_sent_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_out(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(RubricLibrary, "get", run_out)
    answer = httpx.get(f"{url}/v1/rubrics/rub_1", headers={"Authorization": f"Bearer {KEY}"})
    shaped(answer, 503)
    assert (answer.json()["error"]["code"], answer.headers["Retry-After"]) == ("timeout", "1")
    assert answer.json()["error"]["message"] == "the request's time ran out"


def test_a_key_that_cannot_be_looked_up_is_not_said_to_be_wrong(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnreachable("at 10.0.0.7")

    monkeypatch.setattr(Authenticator, "authenticate", fail)
    answer = httpx.get(f"{url}/v1/rubrics", headers={"Authorization": f"Bearer {KEY}"})
    shaped(answer, 503)
    assert "10.0.0.7" not in answer.text
