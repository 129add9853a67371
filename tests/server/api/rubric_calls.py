"""Rubrics made, found, forked, read and scored by over the wire."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import httpx

from server.organisation import Member

SPREAD, FLAT = ("red", "grey"), ("red", "red, red")


def make(
    team: Member,
    prompt: str,
    word: str = "red",
    *,
    tags: Sequence[str] = (),
    category: str = "task_fulfilment",
    share: bool = False,
) -> str:
    made = team(
        "POST",
        "/v1/rubrics",
        {
            "prompt": prompt,
            "tags": list(tags),
            "criteria": [
                {
                    "text": f"It mentions {word}.",
                    "points": 1,
                    "category": category,
                    "check": {"kind": "contains", "texts": [word]},
                }
            ],
        },
    ).json()["id"]
    if share:
        team("PATCH", f"/v1/rubrics/{made}", {"visibility": "organisation"})
    return str(made)


def ask(team: Member, /, **filters: Any) -> httpx.Response:
    answer: httpx.Response = team("GET", f"/v1/rubrics?{urlencode(filters, doseq=True)}")
    return answer


def found(team: Member, /, **filters: Any) -> list[str]:
    answer = ask(team, **filters)
    assert answer.status_code == 200, answer.text
    return [rubric["id"] for rubric in answer.json()["data"]]


def score(
    team: Member, rubric: str, prompt: str, *groups: Sequence[str], run: str = "run", step: int = 0
) -> None:
    """Score groups of rollouts by the rubric; each text is one rollout."""
    done = team(
        "POST",
        "/v1/scores",
        {
            "run": {"id": run, "step": step},
            "groups": [
                {
                    "id": f"g{i}",
                    "prompt": prompt,
                    "rubric_id": rubric,
                    "rollouts": [{"id": f"r{j}", "text": text} for j, text in enumerate(texts)],
                }
                for i, texts in enumerate(groups)
            ],
        },
    )
    assert done.status_code == 200, done.text


def criteria(word: str) -> list[dict[str, Any]]:
    return [
        {
            "text": f"It mentions {word}.",
            "points": 1,
            "check": {"kind": "contains", "texts": [word]},
        }
    ]


def fork(team: Member, rubric: str, word: str) -> str:
    return str(
        team("POST", f"/v1/rubrics/{rubric}:fork", {"criteria": criteria(word)}).json()["id"]
    )


def read(team: Member, rubric: str) -> dict[str, Any]:
    answer = team("GET", f"/v1/rubrics/{rubric}/lineage")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
