"""Rubrics in other formats over the wire: who may, what is refused, what is told."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from markscheme import AsyncClient, Client
from markscheme.errors import ConnectionFailed, InvalidRequest, NotFound
from markscheme.exchange import LOSSES_HEADER, decode_losses
from server.organisation import Keys, call

PROMPT = "Name a colour."
CRITERIA = [{"id": f"c{i}", "text": f"It is {i}.", "points": i} for i in range(1, 5)]
CHECKED = [
    {
        "text": "It says rød; blå.",
        "points": 3,
        "source": "a colour",
        "category": "observable_quality",
        "check": {"kind": "contains", "texts": ["rød"], "match": "any"},
    },
    {"text": "It is rude.", "points": -2},
]
RAR = {"question": PROMPT, "rubric": [{"title": "c1", "description": "It names red.", "weight": 1}]}
ROPD = {
    "schema_version": "ropd.rubric.v1",
    "maximum_score": 10,
    "rubrics": [
        {
            "criterion_id": f"c{i}",
            "category": "task_fulfilment",
            "criterion": f"It is {i}.",
            "points": i,
        }
        for i in range(1, 5)
    ],
}


@pytest.fixture
def send(service: str) -> Callable[..., httpx.Response]:
    def post(body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{service}/v1/rubrics:import", json=body, headers=headers, timeout=30)

    return post


def test_native_goes_out_and_comes_in_unchanged(client: Client) -> None:
    made = client.create_rubric(PROMPT, CHECKED, tags=["colours"])
    exported = client.export_rubric(made.id)
    assert exported.losses == ()
    assert exported.content["criteria"][0]["check"] == {
        "kind": "contains",
        "texts": ["rød"],
        "match": "any",
    }
    again = client.import_rubric(exported.content, "native")
    assert again.rubric == made, "the same marks need no new version"
    other = client.import_rubric(
        exported.content | {"prompt": [{"role": "user", "content": "Another."}]},
        "native",
        tags=["moved"],
    ).rubric
    assert (other.content_hash, other.tags, other.origin) == (
        made.content_hash,
        ["moved", "colours"],
        "imported",
    )
    assert other.criteria == made.criteria


def test_an_export_is_the_bare_file_and_tells_its_losses(service: str, client: Client) -> None:
    made = client.create_rubric(PROMPT, CHECKED, tags=["colours"])
    url = f"{service}/v1/rubrics/{made.id}/export?format=rar"
    refused = httpx.get(url, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_representable")
    assert "criterion c1: Rubrics as Rewards knows no checks" in refused.json()["error"]["message"]
    answer = httpx.get(f"{url}&allow_loss=true", timeout=60)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text) == {
        "question": PROMPT,
        "rubric": [
            {"title": "c1", "description": "It says rød; blå.", "weight": 3},
            {"title": "c2", "description": "It is rude.", "weight": -2},
        ],
    }
    losses = decode_losses(answer.headers[LOSSES_HEADER])
    assert losses[-1] == "Rubrics as Rewards has no place for tags: colours"
    assert client.export_rubric(made.id, "rar", allow_loss=True).losses == losses
    for format in ("ropd", "verifiers"):
        with pytest.raises(InvalidRequest, match="knows no negative points") as caught:
            client.export_rubric(made.id, format, allow_loss=True)  # type: ignore[arg-type]
        assert caught.value.code == "not_representable"


async def test_the_async_client_does_the_same(service: str) -> None:
    async with AsyncClient(service) as client:
        made = await client.import_rubric(ROPD, "ropd", prompt=PROMPT)
        assert (made.rubric.origin, made.losses, made.rubric.maximum_score) == ("imported", [], 10)
        assert (await client.export_rubric(made.rubric.id, "ropd")).content == ROPD
        with pytest.raises(NotFound):
            await client.export_rubric("rub_none", "ropd")
        with pytest.raises(InvalidRequest, match="is there twice"):
            await client.import_rubric(
                ROPD
                | {
                    "rubrics": [*ROPD["rubrics"][:3], ROPD["rubrics"][0]],  # type: ignore[index]
                    "maximum_score": 7,
                },
                "ropd",
                prompt=PROMPT,
            )


def test_losses_of_an_import_are_told(send: Callable[..., httpx.Response]) -> None:
    row = RAR | {"reference_answer": "Red."}
    refused = send({"format": "rar", "content": row}).json()["error"]
    assert (refused["code"], refused["param"]) == ("not_representable", "content")
    taken = send({"format": "rar", "content": row, "allow_loss": True})
    assert taken.status_code == 201
    assert taken.json()["losses"] == ["the row: we have no place for 'reference_answer'"]
    assert taken.json()["rubric"]["prompt"] == [{"role": "user", "content": PROMPT}]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"content": {}}, "malformed_content", "content"),
        ({"content": RAR | {"rubric": []}}, "malformed_content", "content"),
        ({"content": []}, "invalid_value", "content"),
        ({"content": RAR | {"note": "a\u0000"}}, "invalid_value", "content"),
        ({"content": RAR | {"note": [0] * 100_001}}, "invalid_value", "content"),
        ({"content": RAR | {"note": 2**60}}, "invalid_value", "content"),
        ({"prompt": PROMPT}, "malformed_content", "prompt"),
        ({"format": "ropd", "content": ROPD}, "malformed_content", "prompt"),
        ({"format": "toml"}, "invalid_value", "format"),
        ({"note": 1}, "invalid_value", "note"),
        ({"tags": ["two words"]}, "invalid_value", "tags.0"),
        (
            {
                "format": "healthbench",
                "tags": ["a"],
                "content": {
                    "prompt": [{"role": "user", "content": "x"}],
                    "rubrics": [{"criterion": "y", "points": 1}],
                    "example_tags": [f"t{i}" for i in range(32)],
                },
            },
            "too_many_tags",
            "tags",
        ),
        (
            {
                "format": "native",
                "content": {
                    "schema_version": "markscheme.rubric.v1",
                    "prompt": "x",
                    "criteria": [
                        {"text": "y", "points": 1, "check": {"kind": "regex", "pattern": "("}}
                    ],
                },
            },
            "invalid_check",
            "criteria",
        ),
    ],
)
def test_what_cannot_be_imported_says_why(
    change: dict[str, Any], code: str, param: str, send: Callable[..., httpx.Response]
) -> None:
    answer = send({"format": "rar", "content": RAR} | change)
    assert (
        answer.status_code,
        answer.json()["error"]["code"],
        answer.json()["error"]["param"],
    ) == (422, code, param)


def test_an_import_sent_again_under_its_key_is_done_once(
    service: str, send: Callable[..., httpx.Response]
) -> None:
    headers = {"Idempotency-Key": "one"}
    first = send({"format": "rar", "content": RAR}, **headers)
    changed = RAR | {"rubric": [{"title": "c1", "description": "It names blue.", "weight": 1}]}
    newer = send({"format": "rar", "content": changed})
    replayed = send({"format": "rar", "content": RAR}, **headers)
    assert (replayed.json(), replayed.headers["Idempotent-Replayed"]) == (first.json(), "true")
    other = send({"format": "rar", "content": changed}, **headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    listed = httpx.get(f"{service}/v1/rubrics", timeout=60).json()["data"]
    assert [r["id"] for r in listed] == [newer.json()["rubric"]["id"], first.json()["rubric"]["id"]]


def test_who_may_and_what_of_another_teams(organisation: Keys, start: Callable[..., str]) -> None:
    red, blue = (organisation.key(team, "read", "induce") for team in ("red", "blue"))
    reader, inducer = organisation.key("red", "read"), organisation.key("red", "induce")
    url = start()
    body = {"format": "rar", "content": RAR}
    assert (
        call(url, "POST", "/v1/rubrics:import", reader, body).json()["error"]["code"]
        == "missing_scope"
    )
    made = call(url, "POST", "/v1/rubrics:import", inducer, body).json()["rubric"]
    export = f"/v1/rubrics/{made['id']}/export"
    assert call(url, "GET", export, inducer).json()["error"]["code"] == "missing_scope"
    assert call(url, "GET", f"{export}?format=rar", reader).json() == RAR
    missing, others = (
        call(url, "GET", path, blue) for path in ("/v1/rubrics/rub_0/export", export)
    )
    assert missing.status_code == others.status_code == 404
    assert missing.json()["error"] == others.json()["error"]
    assert call(url, "GET", "/v1/rubrics/%00/export", blue).status_code == 404
    call(url, "PATCH", f"/v1/rubrics/{made['id']}", red, {"shared_with": ["blue"]})
    seen = call(url, "GET", export, blue)
    assert seen.status_code == 200
    assert set(seen.json()) == {"schema_version", "prompt", "criteria", "tags"}
    taken = call(
        url, "POST", "/v1/rubrics:import", blue, {"format": "native", "content": seen.json()}
    ).json()
    assert (taken["rubric"]["team"], taken["rubric"]["parent_id"], taken["losses"]) == (
        "blue",
        None,
        [],
    )
    assert taken["rubric"]["content_hash"] == made["content_hash"]


def test_an_answer_that_is_no_export_is_said_plainly() -> None:
    page = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    with (
        Client("http://host", http_client=httpx.Client(transport=page)) as client,
        pytest.raises(ConnectionFailed, match="not JSON"),
    ):
        client.export_rubric("rub_1")
