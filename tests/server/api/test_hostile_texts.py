"""Test hostile texts in every text field: stored unchanged or refused, on both databases."""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from markscheme.text import replace_invalid
from server.api.hostile_texts import HOSTILE_TEXTS

OPERATOR = {"api_key": "the operator's own key"}
PROMPT = "Name a colour."
CRITERION = {"text": "It names red.", "points": 1, "check": {"kind": "contains", "texts": ["red"]}}
RUBRIC = {"prompt": PROMPT, "criteria": [CRITERION]}
Body = dict[str, Any]
EACH = pytest.mark.parametrize("each", [12, pytest.param(1, marks=pytest.mark.slow)])
"""Every twelfth of the texts, others for each field, or (slow) all of them."""


@dataclass(frozen=True)
class Field:
    """A text field: where it is sent, in which body, and where it is told, if it is told."""

    method: str
    path: str
    body: Callable[[str], Body]
    told: Callable[[Any], str | None] = lambda answer: None
    models: bool = False
    """What a model wrote: NUL and half surrogate pairs are made visible and not refused."""


def group(**more: Any) -> Body:
    return {"id": "g", "prompt": PROMPT, "rollouts": [{"id": "r", "text": "red"}]} | more


def scored(**more: Any) -> Body:
    return {"reuse": "frozen", "groups": [group()]} | more


def induced(**more: Any) -> Body:
    return {"prompt": "Use no commas.", "student_responses": ["a, b"], "reuse": "always_new"} | more


def taught(**more: Any) -> Body:
    return {"entries": [{"prompt": PROMPT, "responses": ["red"]} | more]}


def arriving(**more: Any) -> Body:
    rollout = {"prompt": PROMPT, "reuse": "frozen", "rollout": {"id": "r", "text": "red"}}
    return rollout | {"group": {"key": secrets.token_hex(8), "size": 1, "wait_s": 0}} | more


RUBRICS, SCORES, INDUCE, TEACH, RUN, ROLLOUTS, REPLAYS = (
    "/v1/rubrics",
    "/v1/scores",
    "/v1/rubrics:induce",
    "/v1/teacher-responses",
    "/v1/runs/r",
    "/v1/rollouts",
    "/v1/replays",
)
FIELDS = {
    "rubric prompt": Field(
        "POST", RUBRICS, lambda t: RUBRIC | {"prompt": t}, lambda a: a["prompt"][0]["content"]
    ),
    "rubric message": Field(
        "POST",
        RUBRICS,
        lambda t: RUBRIC | {"prompt": [{"role": "user", "content": t}]},
        lambda a: a["prompt"][0]["content"],
    ),
    "criterion": Field(
        "POST",
        RUBRICS,
        lambda t: RUBRIC | {"criteria": [{"text": t, "points": 1}]},
        lambda a: a["criteria"][0]["text"],
    ),
    "criterion id": Field(
        "POST", RUBRICS, lambda t: RUBRIC | {"criteria": [CRITERION | {"id": t}]}
    ),
    "criterion category": Field(
        "POST", RUBRICS, lambda t: RUBRIC | {"criteria": [CRITERION | {"category": t}]}
    ),
    "criterion source": Field(
        "POST",
        RUBRICS,
        lambda t: (
            RUBRIC
            | {
                "criteria": [
                    CRITERION | {"source": t, "text": f"It is text {HOSTILE_TEXTS.index(t)}."}
                ]
            }
        ),  # of the same words: one rubric
        lambda a: a["criteria"][0]["source"],
    ),
    "contained text": Field(
        "POST",
        RUBRICS,
        lambda t: (
            RUBRIC | {"criteria": [CRITERION | {"check": {"kind": "contains", "texts": [t]}}]}
        ),
        lambda a: a["criteria"][0]["check"]["texts"][0],
    ),
    "pattern": Field(
        "POST",
        RUBRICS,
        lambda t: RUBRIC | {"criteria": [CRITERION | {"check": {"kind": "regex", "pattern": t}}]},
        lambda a: a["criteria"][0]["check"]["pattern"],
    ),
    "rubric tag": Field(
        "POST",
        RUBRICS,
        lambda t: {
            "prompt": PROMPT,
            "tags": [t],
            "criteria": [{"text": f"It is tag {HOSTILE_TEXTS.index(t)}.", "points": 1}],
        },
        lambda a: a["tags"][0],
    ),
    "shared with": Field("PATCH", "/v1/rubrics/{rubric}", lambda t: {"shared_with": [t]}),
    "fork": Field(
        "POST",
        "/v1/rubrics/{rubric}:fork",
        lambda t: {"criteria": [{"text": t, "points": 1}]},
        lambda a: a["criteria"][0]["text"],
    ),
    "import": Field(
        "POST",
        "/v1/rubrics:import",
        lambda t: {
            "format": "rar",
            "content": {"question": t, "rubric": [{"title": t, "description": t, "weight": 1}]},
        },
    ),
    "scored prompt": Field("POST", SCORES, lambda t: scored(groups=[group(prompt=t)])),
    "group id": Field(
        "POST", SCORES, lambda t: scored(groups=[group(id=t)]), lambda a: a["groups"][0]["id"]
    ),
    "rollout id": Field(
        "POST",
        SCORES,
        lambda t: scored(groups=[group(rollouts=[{"id": t, "text": "red"}])]),
        lambda a: a["groups"][0]["rollouts"][0]["id"],
    ),
    "rollout": Field(
        "POST",
        SCORES,
        lambda t: scored(groups=[group(rollouts=[{"id": "r", "text": t}])]),
        models=True,
    ),
    "rubric id": Field("POST", SCORES, lambda t: scored(groups=[group(rubric_id=t)])),
    "run": Field("POST", SCORES, lambda t: scored(run={"id": t, "step": 1})),
    "judge": Field("POST", SCORES, lambda t: scored(judge=t)),
    "wanted teacher": Field("POST", SCORES, lambda t: scored(teacher_model=t)),
    "wanted rubricator": Field("POST", SCORES, lambda t: scored(rubricator=t)),
    "teacher of a group": Field(
        "POST", SCORES, lambda t: scored(groups=[group(teacher_responses=[t])]), models=True
    ),
    "induced prompt": Field("POST", INDUCE, lambda t: induced(prompt=t)),
    "student response": Field(
        "POST", INDUCE, lambda t: induced(student_responses=[t]), models=True
    ),
    "teacher response": Field(
        "POST", INDUCE, lambda t: induced(teacher_responses=[t]), models=True
    ),
    "run of an induction": Field("POST", INDUCE, lambda t: induced(run=t)),
    "bank prompt": Field("POST", TEACH, lambda t: taught(prompt=t)),
    "bank response": Field("POST", TEACH, lambda t: taught(responses=[t]), models=True),
    "bank model": Field("POST", TEACH, lambda t: taught(model=t)),
    "reason of a run": Field(
        "PUT", RUN, lambda t: {"state": "failed", "reason": t}, lambda a: a["reason"]
    ),
    "fact": Field("PUT", RUN, lambda t: {"facts": {"f": t}}, lambda a: a["facts"]["f"]),
    "name of a fact": Field("PUT", RUN, lambda t: {"facts": {t: 1}}, lambda a: [*a["facts"]][0]),
    "metric": Field(
        "POST", f"{RUN}/records", lambda t: {"records": [{"step": 0, "metrics": {t: 1.0}}]}
    ),
    "key of a group": Field(
        "POST",
        ROLLOUTS,
        lambda t: arriving(group={"key": t, "size": 1, "wait_s": 0}),
        lambda a: a["group"]["key"],
    ),
    "arriving rollout": Field(
        "POST", ROLLOUTS, lambda t: arriving(rollout={"id": "r", "text": t}), models=True
    ),
    "arriving prompt": Field("POST", ROLLOUTS, lambda t: arriving(prompt=t)),
    "run of a replay": Field("POST", REPLAYS, lambda t: {"run_id": t, "verify": "group"}),
    "rubric of a replay": Field("POST", REPLAYS, lambda t: {"run_id": "r", "rubric_id": t}),
    "judge of a replay": Field("POST", REPLAYS, lambda t: {"run_id": "r", "judge": t}),
    "team": Field("POST", "/v1/teams", lambda t: {"name": t}, lambda a: a["name"]),
    "team of a key": Field("POST", "/v1/keys", lambda t: {"team": t, "scopes": ["read"]}),
    "label of a key": Field(
        "POST",
        "/v1/keys",
        lambda t: {"team": "default", "scopes": ["read"], "label": t},
        lambda a: a["label"],
    ),
    "scope of a key": Field("POST", "/v1/keys", lambda t: {"team": "default", "scopes": [t]}),
}
QUERIES = {
    RUBRICS: (
        "prompt",
        "text",
        "tag",
        "category",
        "team",
        "teacher_model",
        "rubricator",
        "origin",
        "after",
        "prompt_key",
    ),
    TEACH: ("prompt",),
    "/v1/usage": ("run", "team", "judge", "group_by", "since"),
    "/v1/audit": ("team", "after"),
    "/v1/teams/default/budget": ("run",),
    "/v1/runs": ("after",),
    f"{RUN}/groups": ("after", "criterion", "sort", "first_step"),
    f"{RUN}/criteria": ("after", "criterion", "bins"),
    f"{RUN}/steps": ("bins", "last_step"),
    REPLAYS: ("run_id", "after", "limit"),
    f"{REPLAYS}/estimate": ("run_id", "judge", "rubric_id", "view"),
    "/pages/": ("after",),
    "/pages/runs/r": ("after", "criterion", "sort", "last", "criteria"),
    "/pages/rubrics": ("text", "tag", "retired", "after"),
    "/pages/signin": ("next",),
}


@pytest.fixture
def asking(start: Callable[..., str]) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=start(**OPERATOR),
        timeout=30,
        headers={"Authorization": f"Bearer {OPERATOR['api_key']}"},
    ) as made:
        yield made


def send(asking: httpx.Client, method: str, path: str, body: Body) -> httpx.Response:
    """Send the body as ASCII, so that half a surrogate pair can be sent."""
    return asking.request(
        method, path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )


def test_there_are_a_hundred() -> None:
    assert len(set(HOSTILE_TEXTS)) >= 100


@EACH
def test_a_field_keeps_them_or_refuses_them(
    each: int, asking: httpx.Client, record_property: Callable[[str, str], None]
) -> None:
    """Never a 5xx; what is told again is what was sent; what holds no text is refused."""
    rubric = send(asking, "POST", RUBRICS, RUBRIC).json()["id"]
    taken = refused = 0
    for number, (name, field) in enumerate(FIELDS.items()):
        path = field.path.replace("{rubric}", rubric)
        for text in HOSTILE_TEXTS[number % each :: each]:
            answer = send(asking, field.method, path, field.body(text))
            assert answer.status_code in (200, 201, 204, 400, 404, 409, 422), (
                name,
                text[:60],
                answer.text[:300],
            )
            if answer.status_code >= 400:
                refused += 1
                assert not (field.models and text), (name, text[:60], answer.text[:300])
                continue
            taken += 1
            assert field.models or replace_invalid(text) == text, (
                name,
                "what cannot be stored was taken",
            )
            told = field.told(answer.json()) if answer.content else None
            assert told in (None, text), (name, text[:60], told and told[:60])
    assert asking.get(f"/v1/rubrics/{rubric}").json()["criteria"][0]["text"] == CRITERION["text"]
    assert min(taken, refused) > 1000 / each
    record_property(
        "figure",
        f"1 in {each} of {len(HOSTILE_TEXTS)} texts in {len(FIELDS)} fields: {taken} taken, "
        f"{refused} refused, no 5xx",
    )


def test_what_was_stored_is_read_back_unchanged(asking: httpx.Client) -> None:
    kept = {}
    for text in HOSTILE_TEXTS:
        made = send(
            asking, "POST", RUBRICS, {"prompt": text, "criteria": [{"text": "t", "points": 1}]}
        )
        if made.status_code == 201:
            kept[made.json()["id"]] = text
    for name, text in kept.items():
        assert asking.get(f"/v1/rubrics/{name}").json()["prompt"] == [
            {"role": "user", "content": text}
        ]
    bank = [text for text in HOSTILE_TEXTS if text]
    assert send(asking, "POST", TEACH, taught(responses=["red"])).status_code == 200
    entries = [{"prompt": PROMPT, "responses": [text]} for text in bank]
    assert send(asking, "POST", TEACH, {"entries": entries}).status_code == 200
    told = [r["text"] for r in asking.get(TEACH, params={"prompt": PROMPT}).json()["data"]]
    assert set(told) == {"red", *(replace_invalid(text) for text in bank)}


@EACH
def test_a_query_or_a_path_finds_nothing_by_them_and_changes_nothing(
    each: int, asking: httpx.Client
) -> None:
    rubric = send(asking, "POST", RUBRICS, RUBRIC).json()["id"]
    send(asking, "PUT", RUN, {"state": "running"})
    queries = [f"{path}?{name}={{}}" for path, names in QUERIES.items() for name in names]
    paths = ["/v1/rubrics/{}", "/v1/rubrics/{}/lineage", "/v1/teams/{}/budget"]
    paths += ["/v1/runs/{}", "/v1/replays/{}", "/v1/groups/{}/judge-prompt?rollout=r"]
    paths += ["/pages/runs/{}", "/pages/runs/{}/report", "/pages/groups/{}", "/pages/replays/{}"]
    asked = [("GET", where) for where in (*queries, *paths)] + [("DELETE", "/v1/teams/{}")]
    for number, (method, where) in enumerate(asked):
        for text in HOSTILE_TEXTS[number % each :: each]:
            sent = quote(text.encode("utf-8", "surrogatepass")[:4000])
            answer = asking.request(
                method, where.format(sent if "?" in where else quote(sent, safe="%"))
            )
            expected = (200, 400, 404, 422) if method == "GET" else (400, 404, 405, 422)
            assert answer.status_code in expected, (where, text[:60], answer.text[:300])
    assert [r["id"] for r in asking.get(RUBRICS).json()["data"]] == [rubric]
