"""Erasing a team over the wire and from a shell, also while one of its requests runs."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fakes.judge import ScriptedJudge, text_of, well_behaved
from fakes.processes import PATIENCE_S, eventually
from server.organisation import OPERATOR, Keys, call, dump

WORDS = "canary of red"
BODY = {
    "prompt": f"Use no commas. {WORDS}",
    "student_responses": [f"one, {WORDS}"],
    "teacher_responses": [f"two {WORDS}"],
}


def test_a_team_is_erased_and_told_what_went(organisation: Keys, start: Callable[..., str]) -> None:
    red, blue = (
        organisation.key(team, "read", "induce", "score", label=f"{team}'s")
        for team in ("red", "blue")
    )
    url = start(api_key=OPERATOR)
    made = call(url, "POST", "/v1/rubrics:induce", red, BODY).json()["id"]
    call(
        url,
        "PATCH",
        f"/v1/rubrics/{made}",
        red,
        {"visibility": "organisation", "tags": ["colours"]},
    )
    assert call(url, "GET", f"/v1/rubrics/{made}", blue).status_code == 200
    erased = call(url, "DELETE", "/v1/teams/red", OPERATOR)
    assert erased.status_code == 200
    said = erased.json()
    assert (said["object"], said["name"], said["tombstones"]) == ("team.erased", "red", 0)
    assert (
        said["removed"]["rubrics"],
        said["removed"]["inductions"],
        said["removed"]["prompts"],
    ) == (1, 1, 1)
    assert call(url, "GET", f"/v1/rubrics/{made}", blue).status_code == 404
    refused = call(url, "GET", "/v1/rubrics", red)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "revoked_key")
    again = call(url, "POST", "/v1/teams", OPERATOR, {"name": "red"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "team_erased")
    assert (
        call(url, "POST", "/v1/keys", OPERATOR, {"team": "red", "scopes": ["read"]}).status_code
        == 404
    )
    own = call(
        url, "POST", "/v1/rubrics", blue, {"prompt": "p", "criteria": [{"text": "x", "points": 1}]}
    ).json()["id"]
    share = call(url, "PATCH", f"/v1/rubrics/{own}", blue, {"shared_with": ["red"]})
    assert share.status_code == 200  # as with any name
    once_more = call(url, "DELETE", "/v1/teams/red", OPERATOR).json()
    assert once_more["erased_at"] == said["erased_at"]
    assert set(once_more["removed"].values()) == {0}
    left = dump(organisation.url)
    assert [mark for mark in (WORDS, "red's", "colours") if mark in left] == []
    assert "blue's" in left


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("default", 409, "operators_team"), ("nobody", 404, "team_not_found"), ("Red!", 422, None)],
)
def test_what_cannot_be_erased_is_said(
    name: str,
    status: int,
    code: str | None,
    organisation: Keys,
    start: Callable[..., str],
) -> None:
    answer = call(start(api_key=OPERATOR), "DELETE", f"/v1/teams/{name}", OPERATOR)
    assert answer.status_code == status
    assert code is None or answer.json()["error"]["code"] == code


def test_a_request_that_runs_meanwhile_leaves_nothing_behind(
    organisation: Keys,
    start: Callable[..., str],
    judge: ScriptedJudge,
    model_settings: dict[str, Any],
) -> None:
    """The judge answers only after the team is erased; another team's request is scored."""
    keys = {team: organisation.key(team, "read", "induce", "score") for team in ("red", "blue")}
    url = start(api_key=OPERATOR, **model_settings)
    asked, go_on = threading.Event(), threading.Event()

    def script(request: dict[str, Any], number: int) -> Any:
        if "canary" in text_of(request):
            asked.set()
            go_on.wait(PATIENCE_S)
        return well_behaved(request, number)

    judge.script = script
    for team, key in keys.items():
        call(
            url,
            "POST",
            "/v1/rubrics",
            key,
            {
                "prompt": f"Name a colour, {team}.",
                "criteria": [{"text": "It is red.", "points": 1}],
            },
        )
    answers: dict[str, Any] = {}

    def score(team: str) -> None:
        answers[team] = call(
            url,
            "POST",
            "/v1/scores",
            keys[team],
            {
                "reuse": "frozen",
                "run": {"id": f"canary run of {team}", "step": 0},
                "groups": [
                    {
                        "id": "g",
                        "prompt": f"Name a colour, {team}.",
                        "rollouts": [{"id": "r", "text": f"canary rollout of {team}"}],
                    }
                ],
            },
        )

    threads = [threading.Thread(target=score, args=(team,)) for team in keys]
    for thread in threads:
        thread.start()
    assert asked.wait(PATIENCE_S)
    for attempt in eventually():
        with attempt:
            assert len(judge.requests) == 2
    assert call(url, "DELETE", "/v1/teams/red", OPERATOR).status_code == 200
    go_on.set()
    for thread in threads:
        thread.join()
    assert (answers["red"].status_code, answers["red"].json()["error"]["code"]) == (
        401,
        "team_erased",
    )
    assert answers["blue"].json()["groups"][0]["rollouts"][0]["reward"] == 1.0
    left = dump(organisation.url)
    assert "canary rollout of blue" in left
    assert "of red" not in left
    assert "colour, red" not in left
