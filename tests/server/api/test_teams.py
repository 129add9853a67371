"""Who may call what: every route with every kind of key, on both databases, over the wire."""

from collections.abc import Callable
from typing import Any

import pytest

from fakes.clock import Clock
from markscheme_server.accounts.auth import CACHE_S
from markscheme_server.app import create_app
from markscheme_server.config import Settings
from markscheme_server.domain import keys
from server.organisation import OPERATOR, PEPPER, PROMPT, RUBRIC, SCORE, Keys, call, dump

CALLS: dict[tuple[str, str], tuple[str, dict[str, Any] | None]] = {
    ("POST", "/v1/rubrics"): ("induce", RUBRIC),
    ("GET", "/v1/rubrics"): ("read", None),
    ("GET", "/v1/rubrics/{rubric_id}"): ("read", None),
    ("POST", "/v1/rubrics/{rubric_id}:fork"): ("induce", {}),
    ("PATCH", "/v1/rubrics/{rubric_id}"): ("induce", {"tags": ["t"]}),
    ("POST", "/v1/rubrics:import"): (
        "induce",
        {
            "format": "rar",
            "content": {
                "question": PROMPT,
                "rubric": [{"title": "c1", "description": "It names red.", "weight": 1}],
            },
        },
    ),
    ("GET", "/v1/rubrics/{rubric_id}/export"): ("read", None),
    ("GET", "/v1/rubrics/{rubric_id}/lineage"): ("read", None),
    ("POST", "/v1/rubrics:induce"): (
        "induce",
        {"prompt": "Use no commas.", "student_responses": ["a, b"]},
    ),
    ("POST", "/v1/scores"): ("score", SCORE),
    ("POST", "/v1/rollouts"): (
        "score",
        {
            "group": {"key": "g", "size": 1},
            "prompt": PROMPT,
            "rollout": {"id": "a", "text": "red"},
            "reuse": "frozen",
        },
    ),
    ("POST", "/v1/teacher-responses"): (
        "induce",
        {"entries": [{"prompt": PROMPT, "responses": ["red"]}]},
    ),
    ("GET", "/v1/teacher-responses"): ("read", None),
    ("POST", "/v1/teacher-responses:sample"): ("induce", {"prompt": PROMPT}),
    ("POST", "/v1/teams"): ("admin", {"name": "green"}),
    ("GET", "/v1/teams"): ("admin", None),
    ("PATCH", "/v1/teams/{name}"): ("admin", {"rpm": 100_000}),
    ("POST", "/v1/keys"): ("admin", {"team": "red", "scopes": ["read"]}),
    ("GET", "/v1/keys"): ("admin", None),
    ("POST", "/v1/keys/{prefix}:rotate"): ("admin", {}),
    ("DELETE", "/v1/keys/{prefix}"): ("admin", None),
    ("GET", "/v1/judges"): ("read", None),
    ("GET", "/v1/judges/report"): ("read", None),
    ("GET", "/v1/rubrics/{rubric_id}/health"): ("read", None),
    ("PUT", "/v1/runs/{run_id}"): ("score", {"steps": 10}),
    ("POST", "/v1/runs/{run_id}/records"): (
        "score",
        {"records": [{"step": 0, "metrics": {"loss": 1.0}}]},
    ),
    ("GET", "/v1/runs"): ("read", None),
    ("GET", "/v1/runs:compare"): ("read", None),
    ("GET", "/v1/runs/{run_id}"): ("read", None),
    ("GET", "/v1/runs/{run_id}/steps"): ("read", None),
    ("GET", "/v1/runs/{run_id}/criteria"): ("read", None),
    ("GET", "/v1/runs/{run_id}/findings"): ("read", None),
    ("GET", "/v1/runs/{run_id}/groups"): ("read", None),
    ("GET", "/v1/replays/estimate"): ("read", None),
    ("POST", "/v1/replays"): ("score", {"run_id": "r/1", "verify": "group"}),
    ("GET", "/v1/replays"): ("read", None),
    ("GET", "/v1/replays/{replay_id}"): ("read", None),
    ("POST", "/v1/replays/{replay_id}:cancel"): ("score", None),
    ("GET", "/v1/groups/{group_id}"): ("read", None),
    ("GET", "/v1/groups/{group_id}/judge-prompt"): ("read", None),
    ("GET", "/v1/usage"): ("read", None),
    ("PUT", "/v1/teams/{name}/budget"): ("admin", {"hard_usd": 5, "window": "day"}),
    ("GET", "/v1/teams/{name}/budget"): ("read", None),
    ("DELETE", "/v1/teams/{name}/budget"): ("admin", None),
    ("GET", "/v1/audit"): ("admin", None),
    ("DELETE", "/v1/teams/{name}"): ("admin", None),
}
"""Every route: the scope that it takes, and a body that is in order."""


def test_the_table_of_calls_is_whole() -> None:
    paths = create_app(Settings(_env_file=None, judge="builtin")).openapi()["paths"]
    assert {
        (method.upper(), path)
        for path, methods in paths.items()
        if path.startswith("/v1/")
        for method in methods
    } == set(CALLS)


def test_every_route_with_every_kind_of_key(
    organisation: Keys, start: Callable[..., str], request: pytest.FixtureRequest
) -> None:
    """Expect 401 without a valid key, 403 without the scope and 404 for another team's rows.

    Keys without access are missing, malformed, unknown, revoked or expired.
    """
    one_of_each = {
        scope: organisation.key("red", scope) for scope in ("read", "score", "induce", "admin")
    }
    another_teams = {
        scope: organisation.key("blue", scope) for scope in ("read", "score", "induce")
    }
    revoked = organisation.key("red", "read", "score", "induce", "admin")
    organisation.revoke(revoked)
    expired = organisation.key("red", "read", "score", "induce", "admin")
    organisation.expire(expired)
    foreign = Keys(organisation.url, "another pepper of the tests")
    request.addfinalizer(foreign.close)
    url = start()
    made = call(url, "POST", "/v1/rubrics", one_of_each["induce"], RUBRIC).json()["id"]
    spare = keys.prefix(organisation.key("blue", "read"))
    wrong = {
        None: "no_key",
        "mk_nonsense": "malformed_key",
        one_of_each["read"][:-1] + "?": "malformed_key",
        keys.new_key(): "unknown_key",
        foreign.key("red", "admin"): "unknown_key",
        revoked: "revoked_key",
        expired: "expired_key",
    }
    for (method, path), (scope, body) in CALLS.items():
        place = _place(method, path, made, spare)
        for key, code in wrong.items():
            answer = call(url, method, place, key, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), (
                method,
                path,
                code,
            )
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for other in set(one_of_each) - {scope}:
            answer = call(url, method, place, one_of_each[other], body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), (
                method,
                path,
                other,
            )
            if method == "POST":
                # The key before the body: the trainer asks so whether its key has the scopes.
                empty = call(url, method, place, one_of_each[other], {})
                assert empty.json()["error"]["code"] == "missing_scope", (path, other)
        if (
            any(name in path for name in ("{rubric_id}", "{group_id}", "{replay_id}"))
            or (method, path) == ("GET", "/v1/teams/{name}/budget")
            or (method == "GET" and "{run_id}" in path)
        ):
            answer = call(url, method, place, another_teams[scope], body)
            assert answer.status_code == 404, (method, path)
    # Nothing of all this was done: not a team made, not a key ended.
    assert [
        t["name"] for t in call(url, "GET", "/v1/teams", one_of_each["admin"]).json()["data"]
    ] == ["blue", "default", "red"]
    for (method, path), (scope, body) in CALLS.items():
        place = _place(method, path, made, spare)
        answer = call(url, method, place, one_of_each[scope], body)
        expected = {"POST": 201, "DELETE": 204 if "budget" in path else 200}.get(method, 200)
        if path in (
            "/v1/scores",
            "/v1/rollouts",
            "/v1/rubrics:induce",
            "/v1/teacher-responses",
        ):
            expected = 200
        elif path == "/v1/teacher-responses:sample":
            expected = 422
        elif path.endswith("/records"):
            expected = 204
        elif "{group_id}" in path or "{replay_id}" in path:
            expected = 404  # their ids are not known before something is scored
        elif path == "/v1/replays/estimate" or (method, path) == ("POST", "/v1/replays"):
            expected = 422  # the run has no group
        elif path == "/v1/runs:compare":
            expected = 400  # one run alone
        assert answer.status_code == expected, (method, path, answer.text)


def _place(method: str, path: str, rubric: str, prefix: str) -> str:
    """Return the path of a call; the team to erase is one that an earlier call made."""
    name = "green" if (method, path) == ("DELETE", "/v1/teams/{name}") else "red"
    names = {"rubric_id": rubric, "prefix": prefix, "name": name, "run_id": "r%2F1"}
    place = path.format(**names, group_id="asg_none", replay_id="rpl_none")
    if path == "/v1/runs:compare":
        return f"{place}?runs=r%2F1"
    if path == "/v1/replays/estimate":
        return f"{place}?run_id=r%2F1&verify=group"
    return f"{place}?rollout=r1" if path.endswith("/judge-prompt") else place


def test_another_teams_rubric_is_not_there(organisation: Keys, start: Callable[..., str]) -> None:
    red, blue = (organisation.key(team, "read", "induce", "score") for team in ("red", "blue"))
    url = start()
    made = call(url, "POST", "/v1/rubrics", red, RUBRIC).json()["id"]
    assert call(url, "GET", f"/v1/rubrics/{made}", red).status_code == 200
    missing, others = (call(url, "GET", f"/v1/rubrics/{name}", blue) for name in ("rub_0", made))
    assert missing.status_code == others.status_code == 404
    assert missing.json()["error"] == others.json()["error"]
    assert call(url, "GET", "/v1/rubrics", blue).json()["data"] == []
    score = {**SCORE, "groups": [SCORE["groups"][0] | {"rubric_id": made}]}  # type: ignore[index]
    assert call(url, "POST", "/v1/scores", blue, score).status_code == 404
    frozen = call(url, "POST", "/v1/scores", blue, SCORE).json()["groups"][0]
    assert frozen["rollouts"][0]["reason"] == "no_rubric"


def test_scoring_without_the_right_to_make_rubrics(
    organisation: Keys, start: Callable[..., str]
) -> None:
    maker, scorer = organisation.key("red", "induce"), organisation.key("red", "score")
    url = start()
    call(url, "POST", "/v1/rubrics", maker, RUBRIC)
    refused = call(url, "POST", "/v1/scores", scorer, SCORE | {"reuse": "if_fresh"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "reuse")
    assert (
        call(url, "POST", "/v1/scores", scorer, SCORE).json()["groups"][0]["rollouts"][0]["reward"]
        == 1.0
    )


def test_a_revoked_key_opens_nothing_within_a_second_at_any_worker(
    organisation: Keys, start: Callable[..., str], clock: Clock
) -> None:
    key, admin = organisation.key("red", "read"), organisation.key("red", "admin")
    urls = [start(), start()]
    assert [call(url, "GET", "/v1/rubrics", key).status_code for url in urls] == [200, 200]
    assert (
        call(urls[0], "DELETE", f"/v1/keys/{keys.prefix(key)}", admin).json()["revoked_at"]
        is not None
    )
    clock.advance(1)
    assert [call(url, "GET", "/v1/rubrics", key).status_code for url in urls] == [401, 401]


def test_a_rotated_key_and_the_new_one_live_side_by_side_for_a_while(
    organisation: Keys, start: Callable[..., str], clock: Clock
) -> None:
    old = organisation.key("red", "read", label="nightly")
    url = start()
    new = organisation.rotate(old, overlap_s=3600)
    assert [call(url, "GET", "/v1/rubrics", key).status_code for key in (old, new)] == [200, 200]
    organisation.expire(old)
    clock.advance(CACHE_S)
    assert [call(url, "GET", "/v1/rubrics", key).status_code for key in (old, new)] == [401, 200]
    admin = organisation.key("red", "admin")
    again = call(url, "POST", f"/v1/keys/{keys.prefix(old)}:rotate", admin, {})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_ended")
    shown = {k["prefix"]: k for k in call(url, "GET", "/v1/keys", admin).json()["data"]}
    assert shown[keys.prefix(new)]["label"] == "nightly"
    assert shown[keys.prefix(new)]["last_used_at"] is not None


def test_a_new_key_lives_as_long_as_the_old_one_and_times_are_kept_in_utc(
    organisation: Keys, start: Callable[..., str]
) -> None:
    url = start(api_key=OPERATOR)
    made = call(
        url,
        "POST",
        "/v1/keys",
        OPERATOR,
        {"team": "red", "scopes": ["read"], "expires_at": "2999-01-01T00:00:00+14:00"},
    ).json()
    assert made["expires_at"] == "2998-12-31T10:00:00Z"
    listed = call(url, "GET", "/v1/keys", OPERATOR).json()["data"]
    assert [key["expires_at"] for key in listed] == ["2998-12-31T10:00:00Z"]
    never = call(
        url,
        "POST",
        "/v1/keys",
        OPERATOR,
        {"team": "red", "scopes": ["read"], "expires_at": "9999-12-31T23:59:59-14:00"},
    )
    assert never.status_code == 422
    new = call(url, "POST", f"/v1/keys/{made['prefix']}:rotate", OPERATOR, {}).json()
    assert new["expires_at"][:4] in ("2998", "2999")


def test_a_key_that_lives_to_the_end_of_the_calendar_can_be_rotated(
    organisation: Keys, start: Callable[..., str]
) -> None:
    url = start(api_key=OPERATOR)
    end = "9999-12-31T23:59:59.999999Z"
    body = {"team": "red", "scopes": ["read"], "expires_at": end}
    made = call(url, "POST", "/v1/keys", OPERATOR, body).json()
    new = call(url, "POST", f"/v1/keys/{made['prefix']}:rotate", OPERATOR, {})
    assert (new.status_code, new.json()["expires_at"][:16]) == (201, end[:16])


def test_who_may_not_induce_does_not_fill_the_bank(
    organisation: Keys, start: Callable[..., str]
) -> None:
    maker, scorer = organisation.key("red", "induce", "read"), organisation.key("red", "score")
    url = start()
    call(url, "POST", "/v1/rubrics", maker, RUBRIC)
    brought = {**SCORE, "groups": [SCORE["groups"][0] | {"teacher_responses": ["bad"]}]}  # type: ignore[index]
    assert (
        call(url, "POST", "/v1/scores", scorer, brought).json()["groups"][0]["rollouts"][0][
            "reward"
        ]
        == 1.0
    )
    assert call(url, "GET", "/v1/teacher-responses", maker).json()["data"] == []


def test_beyond_loopback_a_key_is_asked_for_even_before_there_is_one(
    organisation: Keys, start: Callable[..., str]
) -> None:
    assert call(start(require_api_key=True), "GET", "/v1/rubrics", None).status_code == 401


def test_an_id_longer_than_any_is_not_there(organisation: Keys, start: Callable[..., str]) -> None:
    key = organisation.key("red", "read", "score", "induce")
    url = start()
    long = "a" * 190
    assert call(url, "GET", f"/v1/rubrics/{long}", key).status_code == 404
    assert call(url, "PATCH", f"/v1/rubrics/{long}", key, {"tags": []}).status_code == 404
    score = {**SCORE, "groups": [SCORE["groups"][0] | {"rubric_id": long}]}  # type: ignore[index]
    assert call(url, "POST", "/v1/scores", key, score).status_code == 404


def test_until_the_first_key_there_is_one_user_and_then_no_more(
    organisation: Keys, start: Callable[..., str], clock: Clock
) -> None:
    url = start()
    assert call(url, "GET", "/v1/rubrics", None).status_code == 200
    assert call(url, "GET", "/v1/rubrics", "whatever").status_code == 200
    key = organisation.key("red", "read")
    clock.advance(CACHE_S)
    assert [call(url, "GET", "/v1/rubrics", k).status_code for k in (None, key)] == [401, 200]
    organisation.revoke(key)
    clock.advance(CACHE_S)
    assert [call(url, "GET", "/v1/rubrics", k).status_code for k in (None, key)] == [401, 401]


def test_the_operators_key_does_everything_and_makes_the_others(start: Callable[..., str]) -> None:
    url = start(api_key=OPERATOR)
    assert call(url, "GET", "/v1/rubrics", None).status_code == 401
    assert call(url, "POST", "/v1/teams", OPERATOR, {"name": "green"}).status_code == 201
    twice = call(url, "POST", "/v1/teams", OPERATOR, {"name": "green"})
    assert (twice.status_code, twice.json()["error"]["code"]) == (409, "team_exists")
    made = call(
        url,
        "POST",
        "/v1/keys",
        OPERATOR,
        {"team": "green", "scopes": ["read", "read"], "expires_at": "2999-01-01T00:00:00Z"},
    ).json()
    assert (made["scopes"], made["team"]) == (["read"], "green")
    assert call(url, "GET", "/v1/rubrics", made["key"]).status_code == 200
    assert "key" not in call(url, "GET", "/v1/keys?team=green", OPERATOR).json()["data"][0]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"team": "nobody", "scopes": ["read"]}, 404),
        ({"team": "red", "scopes": []}, 422),
        ({"team": "red", "scopes": ["all"]}, 422),
        ({"team": "Red!", "scopes": ["read"]}, 422),
        ({"team": "red", "scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"}, 422),
        ({"team": "red", "scopes": ["read"], "expires_at": "2999-01-01T00:00:00"}, 422),
    ],
)
def test_a_key_that_cannot_be_made_is_not(
    body: dict[str, Any], status: int, organisation: Keys, start: Callable[..., str]
) -> None:
    url = start(api_key=OPERATOR)
    assert call(url, "POST", "/v1/keys", OPERATOR, body).status_code == status
    assert call(url, "GET", "/v1/keys", OPERATOR).json()["data"] == []


def test_without_a_pepper_no_key_is_made_and_none_is_believed(
    organisation: Keys, start: Callable[..., str]
) -> None:
    key = organisation.key("red", "admin")
    url = start(api_key=OPERATOR, key_pepper=None)
    answer = call(url, "POST", "/v1/keys", OPERATOR, {"team": "red", "scopes": ["read"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_pepper")
    assert call(url, "GET", "/v1/rubrics", key).status_code == 401


def test_the_database_holds_no_key(organisation: Keys, start: Callable[..., str]) -> None:
    made = organisation.key("red", "read", "admin")
    url = start(api_key=OPERATOR)
    shown = call(url, "POST", "/v1/keys", made, {"team": "red", "scopes": ["read"]}).json()["key"]
    assert call(url, "GET", "/v1/rubrics", shown).status_code == 200
    everything = dump(organisation.url)
    assert keys.prefix(made) in everything
    assert keys.key_hash(made, PEPPER) in everything
    for secret in (made, shown, made[11:], shown[11:], PEPPER, OPERATOR):
        assert secret not in everything
