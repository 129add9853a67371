"""Who sees which rubric, and what a team's choice depends on: over the wire, on both databases."""

from typing import Any

import pytest

from server.organisation import SCORE, Member, Team, rubric

PROMPT = "Name a colour."


def test_a_rubric_is_its_teams_until_it_is_shared(member: Team) -> None:
    red, blue, green = (member(name) for name in ("red", "blue", "green"))
    made = red.make("red")
    assert [team.sees(made) for team in (red, blue, green)] == [True, False, False]
    shared = red("PATCH", f"/v1/rubrics/{made}", {"shared_with": ["blue"]}).json()
    assert (shared["team"], shared["visibility"], shared["shared_with"]) == (
        "red",
        "private",
        ["blue"],
    )
    assert [team.sees(made) for team in (red, blue, green)] == [True, True, False]
    assert blue("GET", f"/v1/rubrics/{made}").json()["shared_with"] == [], (
        "with whom else is not blue's to know"
    )
    everyone = red(
        "PATCH", f"/v1/rubrics/{made}", {"visibility": "organisation", "shared_with": []}
    ).json()
    assert (everyone["visibility"], everyone["shared_with"]) == ("organisation", [])
    assert [team.sees(made) for team in (red, blue, green)] == [True, True, True]
    red("PATCH", f"/v1/rubrics/{made}", {"visibility": "private"})
    assert [team.sees(made) for team in (red, blue, green)] == [True, False, False]


def test_another_team_is_told_which_models_made_a_rubric_and_not_from_what(member: Team) -> None:
    red, blue = member("red"), member("blue")
    red.make("red")
    induced = red(
        "POST",
        "/v1/rubrics:induce",
        {
            "prompt": "Describe autumn. Do not use any commas.",
            "student_responses": ["red, brown"],
            "teacher_responses": ["Golden leaves fall"],
            "run": "secret run",
            "reuse": "always_new",
        },
    ).json()
    edited = red(
        "POST", f"/v1/rubrics/{induced['id']}:fork", {"criteria": rubric("leaves")["criteria"]}
    ).json()
    again = red(
        "POST", f"/v1/rubrics/{edited['id']}:fork", {"criteria": induced["criteria"]}
    ).json()
    red("PATCH", f"/v1/rubrics/{induced['id']}", {"visibility": "organisation"})
    own, seen = (team("GET", f"/v1/rubrics/{induced['id']}").json() for team in (red, blue))
    assert own["provenance"]["run"] == "secret run"
    assert (seen["parent_id"], seen["provenance"]["run"], seen["provenance"]["teacher_keys"]) == (
        None,
        None,
        [],
    )
    assert seen["provenance"]["rubricator"] == own["provenance"]["rubricator"] is not None
    assert (again["parent_id"], again["provenance"]["run"]) == (edited["id"], None)
    taken = blue("POST", f"/v1/rubrics/{induced['id']}:fork", {}).json()
    assert (taken["parent_id"], taken["provenance"]["run"]) == (induced["id"], None)
    assert taken["provenance"]["rubricator"] == own["provenance"]["rubricator"], "the same criteria"


def test_only_its_team_changes_a_rubric(member: Team) -> None:
    red, blue = member("red"), member("blue")
    made = red.make("red")
    change = {"visibility": "organisation"}
    missing, others = (blue("PATCH", f"/v1/rubrics/{name}", change) for name in ("rub_none", made))
    assert (missing.status_code, missing.json()["error"]) == (404, others.json()["error"])
    red("PATCH", f"/v1/rubrics/{made}", {"shared_with": ["blue"]})
    refused = blue("PATCH", f"/v1/rubrics/{made}", change)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_your_rubric")
    assert red("GET", f"/v1/rubrics/{made}").json()["visibility"] == "private"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"visibility": "public"}, 422),
        ({"criteria": []}, 422),
        ({"shared_with": ["Blue!"]}, 422),
        ({"retired": "yes"}, 422),
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(
    body: dict[str, Any], status: int, member: Team
) -> None:
    red = member("red")
    made = red.make("red")
    before = red("GET", f"/v1/rubrics/{made}")
    # Beside what is wrong there is something that could be done.
    assert red("PATCH", f"/v1/rubrics/{made}", {"tags": ["new"]} | body).status_code == status
    assert red("GET", f"/v1/rubrics/{made}").json() == before.json()


def test_the_nearest_rubric_is_taken(member: Team) -> None:
    """Own before shared before the organisation's; each the newest; a retired one by nobody."""
    red, blue, green = (member(name) for name in ("red", "blue", "green"))
    everyones = green.make("green")
    assert red.chosen() is None
    green("PATCH", f"/v1/rubrics/{everyones}", {"visibility": "organisation"})
    assert red.chosen() == everyones
    shared = blue.make("blue")
    blue("PATCH", f"/v1/rubrics/{shared}", {"shared_with": ["red"]})
    newer = green.make("lime")
    green("PATCH", f"/v1/rubrics/{newer}", {"visibility": "organisation"})
    assert red.chosen() == shared
    own = red.make("red")
    assert [red.chosen(), blue.chosen(), green.chosen()] == [own, shared, newer]
    red("PATCH", f"/v1/rubrics/{own}", {"retired": True})
    assert red.chosen() == shared
    assert red("GET", f"/v1/rubrics/{own}").json()["retired_at"] is not None
    blue("PATCH", f"/v1/rubrics/{shared}", {"shared_with": []})
    assert red.chosen() == newer
    red("PATCH", f"/v1/rubrics/{own}", {"retired": False})
    assert red.chosen() == own


def test_a_shared_rubric_spares_the_induction_and_one_teams_runs_do_not_change_anothers_choice(
    member: Team,
) -> None:
    red, blue = member("red"), member("blue")
    made = red.make("red")
    red("PATCH", f"/v1/rubrics/{made}", {"shared_with": ["blue"]})

    def step(team: Member, number: int) -> str:
        body = SCORE | {"reuse": "if_fresh", "run": {"id": "run", "step": number}}
        body["groups"] = [
            {
                "id": "g",
                "prompt": PROMPT,
                "rollouts": [  # type: ignore[index]
                    {"id": "a", "text": "red"},
                    {"id": "b", "text": "red, red"},
                ],
            }
        ]
        found = team("POST", "/v1/scores", body).json()["groups"][0]["rubric"]
        return str(found["id"]) if found else "none"

    # Every rollout meets it: were it induced, it would be spent. A person wrote it, so it stays.
    assert [step(red, 0), step(red, 1)] == [made, made]
    assert step(blue, 0) == made
    red("PATCH", f"/v1/rubrics/{made}", {"shared_with": []})
    again = blue(
        "POST",
        "/v1/scores",
        SCORE
        | {
            "run": {"id": "run", "step": 0},
            "groups": [{"id": "g", "prompt": PROMPT, "rollouts": [{"id": "a", "text": "red"}]}],
        },
    ).json()["groups"][0]
    assert (again["rubric"], again["rollouts"][0]["reason"]) == (None, "no_rubric")


def test_marks_brought_again_after_their_rubric_was_retired_are_a_new_version(member: Team) -> None:
    red = member("red")
    first = red.make("red")
    assert red.make("red") == first
    red("PATCH", f"/v1/rubrics/{first}", {"retired": True})
    second = red("POST", "/v1/rubrics", rubric("red")).json()
    assert (second["version"], second["parent_id"], second["retired_at"]) == (2, first, None)


def test_a_rubric_is_forked_as_a_new_version_and_for_another_team(member: Team) -> None:
    red, blue = member("red"), member("blue")
    first = red.make("red")
    edited = red(
        "POST", f"/v1/rubrics/{first}:fork", {"criteria": rubric("crimson")["criteria"]}
    ).json()
    assert (edited["team"], edited["version"], edited["parent_id"], edited["origin"]) == (
        "red",
        2,
        first,
        "forked",
    )
    assert blue("POST", f"/v1/rubrics/{first}:fork", {}).status_code == 404
    red("PATCH", f"/v1/rubrics/{first}", {"shared_with": ["blue"], "tags": ["colours"]})
    taken = blue("POST", f"/v1/rubrics/{first}:fork", {}).json()
    assert (taken["team"], taken["version"], taken["parent_id"], taken["visibility"]) == (
        "blue",
        1,
        first,
        "private",
    )
    source = red("GET", f"/v1/rubrics/{first}").json()
    assert (taken["tags"], taken["criteria"]) == (["colours"], source["criteria"])
    red("PATCH", f"/v1/rubrics/{first}", {"shared_with": []})
    assert blue.chosen() == taken["id"], "what was taken over stays"
    bad = red("POST", f"/v1/rubrics/{first}:fork", {"criteria": [{"text": "x", "points": 0}]})
    assert bad.status_code == 422
