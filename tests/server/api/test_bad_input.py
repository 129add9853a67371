"""Test bad input: a 4xx in the one error shape, no change, and the connection stays open."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from markscheme import Client
from markscheme.schema import ErrorBody

SCORE = '{"groups":[{"id":"g","prompt":"Use no commas.","rollouts":[{"id":"r","text":%s}]}]%s}'
CREATE = '{"prompt":"p","criteria":[{"text":"t","points":%s%s}]}'
PATHS = ("/v1/scores", "/v1/rubrics", "/v1/rubrics:induce")

ANY_PATH: dict[str, bytes] = {
    "NaN": b'{"groups": NaN}',
    "Infinity": b'{"x": Infinity}',
    "-Infinity": b"[-Infinity]",
    "1e999": b'{"x": 1e999}',
    "NUL byte": b'{"x": "\x00"}',
    "bad UTF-8": b'{"x": "\xff\xfe"}',
    "BOM": b"\xef\xbb\xbf{}",
    "lone surrogate": b'{"x": "\\ud800"}',
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "huge integer": b'{"x": ' + b"9" * 5000 + b"}",
    "empty": b"",
    "no JSON": b"hello",
    "cut off": b'{"groups": [',
    "array": b"[]",
    "null": b"null",
    "number": b"1",
    "empty object": b"{}",
    "unknown field": b'{"tenant_id": 1}',
    "big key": b'{"' + b"k" * 1_000_000 + b'": 1}',
}
SCORES: dict[str, str] = {
    "lone surrogate in a prompt": (SCORE % ('"x"', "")).replace("Use no commas.", "\\ud800"),
    "NUL in a prompt": (SCORE % ('"x"', "")).replace("Use no commas.", "\\u0000"),
    "lone surrogate in an id": (SCORE % ('"x"', "")).replace('"g"', '"\\ud800"'),
    "number for a text": SCORE % ("1", ""),
    "null for a text": SCORE % ("null", ""),
    "unknown field": SCORE % ('"x"', ',"tenant":1'),
    "unknown policy": SCORE % ('"x"', ',"reuse":"sometimes"'),
    "string for a boolean": SCORE % ('"x"', ',"score_teachers":"true"'),
    "number for a boolean": SCORE % ('"x"', ',"score_teachers":1'),
    "NaN step": SCORE % ('"x"', ',"run":{"id":"r","step":NaN}'),
    "float step": SCORE % ('"x"', ',"run":{"id":"r","step":1.5}'),
    "huge step": SCORE % ('"x"', ',"run":{"id":"r","step":99999999999999999999}'),
    "negative step": SCORE % ('"x"', ',"run":{"id":"r","step":-1}'),
    "no groups": '{"groups":[]}',
    "no rollouts": '{"groups":[{"id":"g","prompt":"p","rollouts":[]}]}',
    "empty prompt": '{"groups":[{"id":"g","prompt":"","rollouts":[{"id":"r","text":"x"}]}]}',
    "wrong role": (
        '{"groups":[{"id":"g","prompt":[{"role":"god","content":"x"}],'
        '"rollouts":[{"id":"r","text":"x"}]}]}'
    ),
    "a deep part beside half a character": (SCORE % ('"\\ud800"', "")).replace(
        '"Use no commas."',
        '[{"role":"user","content":[{"type":"x","a":' + '{"a":' * 800 + "1" + "}" * 800 + "}]}]",
    ),
    "deep calls in a text": (SCORE % ('"x"', "")).replace(
        '"text":"x"',
        '"messages":[{"role":"assistant","tool_calls":"' + "[" * 800 + "]" * 800 + '"}]',
    ),
    "twin groups": json.dumps(
        {"groups": [{"id": "g", "prompt": "p", "rollouts": [{"id": "r", "text": "x"}]}] * 2}
    ),
    "twin rollouts": json.dumps(
        {"groups": [{"id": "g", "prompt": "p", "rollouts": [{"id": "r", "text": "x"}] * 2}]}
    ),
    "unknown rubric": json.dumps(
        {
            "groups": [
                {
                    "id": "g",
                    "prompt": "p",
                    "rubric_id": "rub_none",
                    "rollouts": [{"id": "r", "text": "x"}],
                }
            ]
        }
    ),
    "a million rollouts": '{"groups":[{"id":"g","prompt":"p","rollouts":['
    + '{"id":"r","text":"x"},' * 999_999
    + '{"id":"r","text":"x"}]}]}',
}
RUBRICS: dict[str, str] = {
    "NaN points": CREATE % ("NaN", ""),
    "zero points": CREATE % ("0", ""),
    "only pitfalls": CREATE % ("-3", ""),
    "string points": CREATE % ('"3"', ""),
    "boolean points": CREATE % ("true", ""),
    "unknown check": CREATE % ("1", ',"check":{"kind":"magic"}'),
    "check without its value": CREATE % ("1", ',"check":{"kind":"max_words"}'),
    "bad regex": CREATE % ("1", ',"check":{"kind":"regex","pattern":"(("}'),
    "look-ahead": CREATE % ("1", ',"check":{"kind":"regex","pattern":"(?=a)"}'),
    "no criteria": '{"prompt":"p","criteria":[]}',
    "blank criterion": (CREATE % ("1", "")).replace('"t"', '"  "'),
    "criterion that cannot be seen": (CREATE % ("1", "")).replace('"t"', '"\\u200b\\u2060"'),
    "lone surrogate in a criterion": CREATE.replace('"t"', '"\\ud800"') % ("1", ""),
    "lone surrogate in a tag": (
        '{"prompt":"p","tags":["\\ud800"],"criteria":[{"text":"t","points":1}]}'
    ),
    "half the ids": (
        '{"prompt":"p","criteria":[{"id":"c1","text":"a","points":1},{"text":"b","points":1}]}'
    ),
}
CASES = [
    pytest.param(path, body, id=f"{path} {name}")
    for path in PATHS
    for name, body in ANY_PATH.items()
]
CASES += [
    pytest.param("/v1/scores", body.encode(), id=f"/v1/scores {name}")
    for name, body in SCORES.items()
]
CASES += [
    pytest.param("/v1/rubrics", body.encode(), id=f"/v1/rubrics {name}")
    for name, body in RUBRICS.items()
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Serve without a judge, once for all cases; return host and port."""
    from fakes.service import running
    from markscheme_server.config import Settings

    home = tmp_path_factory.mktemp("home")
    with running(Settings(_env_file=None, home=home, judge="builtin")) as url:
        parts = urlsplit(url)
        yield parts.hostname or "", parts.port or 0


@pytest.fixture
def connection(address: tuple[str, int]) -> Iterator[http.client.HTTPConnection]:
    """Return a keep-alive connection: a request that breaks it breaks the test's next one."""
    made = http.client.HTTPConnection(*address, timeout=60)
    yield made
    made.close()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    connection.request(method, path, body, {"content-type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize(("path", "body"), CASES)
def test_bad_bodies(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    status, answer = ask(connection, "POST", path, body)
    assert 400 <= status < 500
    ErrorBody.model_validate(answer)
    assert ask(connection, "GET", "/v1/rubrics") == (
        200,
        {"object": "list", "data": [], "has_more": False, "quality": {}},
    )


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\ud83d"', '"\\udc00 x"'])
def test_what_models_write_is_made_visible_and_judged(client: Client, text: str) -> None:
    body = SCORE.replace("Use no commas.", "Describe autumn. Do not use any commas.") % (text, "")
    response = httpx.post(
        f"{client.base_url}/v1/scores",
        timeout=60,
        content=body,
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 200
    assert response.json()["counts"]["scored"] == 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (SCORES["wrong role"], "groups.0.prompt.0.role", "'system'"),
        (
            '{"groups":[{"id":"g","prompt":7,"rollouts":[{"id":"r","text":"x"}]}]}',
            "groups.0.prompt",
            "a text or a list of messages",
        ),
        (
            '{"groups":[{"id":"g","prompt":[{"role":"user"}],"rollouts":[{"id":"r","text":"x"}]}]}',
            "groups.0.prompt.0.content",
            "required",
        ),
    ],
)
def test_an_error_names_the_field_at_fault(
    connection: http.client.HTTPConnection, body: str, param: str, words: str
) -> None:
    status, answer = ask(connection, "POST", "/v1/scores", body.encode())
    assert status == 422
    assert answer["error"]["param"] == param
    assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/runs?after=%00", "query.after: must not contain the NUL character"),
        ("/v1/runs/a%09b", "path.run_id: must not contain a control character"),
        ("/v1/replays?run_id=a%0Ab", "query.run_id: must not contain a control character"),
        ("/v1/rubrics?prompt_key=F", "query.prompt_key: must be 64 hexadecimal digits"),
    ],
)
def test_an_error_says_in_words_what_a_text_must_be(
    connection: http.client.HTTPConnection, path: str, words: str
) -> None:
    status, answer = ask(connection, "GET", path)
    assert status == 422
    assert answer["error"]["message"].startswith(words)


@pytest.mark.parametrize("value", ["0", "1.5", "soon"])
def test_an_error_names_the_header_at_fault(
    connection: http.client.HTTPConnection, value: str
) -> None:
    body = (SCORE % ('"x"', "")).encode()
    status, answer = ask(connection, "POST", "/v1/scores", body, **{"X-Deadline-Ms": value})
    assert status == 422
    assert answer["error"]["param"] == "header.X-Deadline-Ms"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/rubrics/none", 404),
        ("GET", "/v1/rubrics/%00", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/rubrics", 405),
        ("GET", "/v1/rubrics?limit=0", 422),
        ("GET", "/v1/rubrics?limit=x", 422),
        ("GET", "/v1/rubrics?prompt=%00", 422),
        ("GET", "/v1/rubrics?after=%00", 422),
        ("GET", "/v1/rubrics?prompt_key=abc", 422),
        ("GET", "/v1/rubrics?origin=stolen", 422),
    ],
)
def test_bad_paths_and_queries(
    connection: http.client.HTTPConnection, method: str, path: str, expected: int
) -> None:
    status, answer = ask(connection, method, path)
    assert status == expected
    ErrorBody.model_validate(answer)


def test_other_content_types_and_encodings(connection: http.client.HTTPConnection) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        status, answer = ask(connection, "POST", "/v1/rubrics", b'{"prompt":"p"}', **headers)
        assert 400 <= status < 500
        ErrorBody.model_validate(answer)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_60_mb_is_refused(client: Client, declared: bool) -> None:
    host = urlsplit(client.base_url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=20)
    chunk = b" " * 1_000_000
    chunks = (chunk for _ in range(60))
    headers = {"content-type": "application/json"} | (
        {"content-length": "60000000"} if declared else {}
    )
    # Refused before all of it was sent; the answer is there to be read all the same.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/scores", chunks, headers, encode_chunked=not declared)
    response = connection.getresponse()
    assert response.status == 413
    ErrorBody.model_validate_json(response.read())
    connection.close()
    assert client.rubrics().data == []
