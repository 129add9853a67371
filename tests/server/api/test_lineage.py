"""The history of a rubric as each of three teams may know it: over the wire, on both databases."""

from typing import Any

import pytest

from markscheme_server.store import lineage as lineage_store
from server.api.rubric_calls import FLAT, SPREAD, criteria, fork, make, read, score
from server.organisation import Member, Team

PROMPT = "Name a colour."
THOUGHT = "<think>warm or cold?</think> red, brown"


def share(team: Member, rubric: str, *teams: str) -> None:
    assert team("PATCH", f"/v1/rubrics/{rubric}", {"shared_with": list(teams)}).status_code == 200


def nodes(graph: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [node for node in graph["nodes"] if node["kind"] == kind]


def family(graph: dict[str, Any]) -> tuple[set[str], set[tuple[str, str, str]]]:
    """Which rubrics are told, and how they are related."""
    told = {node["id"] for node in nodes(graph, "rubric")}
    return told, {
        (edge["source"], edge["target"], edge["kind"])
        for edge in graph["edges"]
        if edge["kind"] in ("version", "fork")
    }


def test_a_chain_over_three_teams_as_each_sees_it(member: Team) -> None:
    red, blue, green = (member(name) for name in ("red", "blue", "green"))
    first = make(red, PROMPT, "red")
    second = fork(red, first, "crimson")
    share(red, second, "blue", "green")
    taken = fork(blue, second, "azure")
    later = fork(blue, taken, "navy")
    share(blue, later, "red")
    chain = {(first, second, "version"), (second, taken, "fork"), (taken, later, "version")}

    # Red does not see blue's private fork, nor the shared version that follows it.
    assert family(read(red, first)) == ({first, second}, {(first, second, "version")})
    assert taken not in str(read(red, second))
    assert family(read(red, later)) == ({later}, set())
    assert nodes(read(red, later), "rubric")[0]["parent_hidden"] is False, (
        "only blue is told that it has one"
    )
    # Blue sees red's second version, not the first.
    assert family(read(blue, later)) == (
        {second, taken, later},
        chain - {(first, second, "version")},
    )
    assert not any(node["parent_hidden"] for node in nodes(read(blue, later), "rubric"))
    assert family(read(green, second)) == ({second}, set())
    for team, hidden in ((blue, first), (green, taken), (red, taken)):
        missing, others = (
            team("GET", f"/v1/rubrics/{name}/lineage") for name in ("rub_none", hidden)
        )
        assert (others.status_code, others.json()["error"]) == (404, missing.json()["error"])

    share(blue, taken, "red")
    everything = read(red, first)
    assert family(everything) == ({first, second, taken, later}, chain)
    assert [node["id"] for node in nodes(everything, "rubric")] == [later, taken, second, first]
    share(red, second)
    withdrawn = read(blue, taken)
    assert family(withdrawn) == ({taken, later}, {(taken, later, "version")})
    assert {node["id"]: node["parent_hidden"] for node in nodes(withdrawn, "rubric")} == {
        taken: True,
        later: False,
    }


def test_what_a_rubric_was_made_from_is_its_own_teams(member: Team) -> None:
    red, blue, prompt = member("red"), member("blue"), "Describe autumn. Do not use any commas."
    scored = red(
        "POST",
        "/v1/scores",
        {
            "reuse": "always_new",
            "run": {"id": "secret run", "step": 0},
            "groups": [
                {
                    "id": "g",
                    "prompt": prompt,
                    "teacher_responses": ["Golden leaves fall"],
                    "rollouts": [
                        {"id": "a", "text": THOUGHT},
                        {"id": "b", "text": " Leaves, all over. "},
                    ],
                }
            ],
        },
    ).json()["groups"][0]
    induced = scored["rubric"]["id"]
    edited = fork(red, induced, "leaves")
    share(red, edited, "blue")
    graph = read(red, edited)
    said = {(node["role"], node["text"]) for node in nodes(graph, "response")}
    assert said == {
        ("teacher", "Golden leaves fall"),
        ("student", "red, brown"),
        ("student", "Leaves, all over."),
    }
    contrasted = [edge for edge in graph["edges"] if edge["kind"] == "contrasted"]
    assert {edge["target"] for edge in contrasted} == {induced}
    assert len(contrasted) == 3
    assert {node["id"]: node["run"] for node in nodes(graph, "rubric")} == {
        induced: "secret run",
        edited: None,
    }
    makers = {(node["role"], node["name"]) for node in nodes(graph, "maker")}
    provenance = red("GET", f"/v1/rubrics/{induced}").json()["provenance"]
    assert ("rubricator", provenance["rubricator"]) in makers
    assert {edge["target"] for edge in graph["edges"] if edge["kind"] == "made"} == {induced}

    told = read(blue, edited)
    assert family(told) == ({edited}, set())
    assert (nodes(told, "response"), nodes(told, "run")) == ([], [])
    assert nodes(told, "maker") == [], "no model made what a person edited"
    for secret in (
        "secret run",
        induced,
        "Golden",
        provenance["teacher_keys"][0],
        provenance["student_keys"][0],
    ):
        assert secret not in str(told)


def test_a_text_that_the_team_has_no_more_is_a_hash(member: Team) -> None:
    red, blue, prompt = member("red"), member("blue"), "Describe winter. Do not use any commas."
    blue(
        "POST",
        "/v1/teacher-responses",
        {"entries": [{"prompt": "Another.", "responses": ["cold, white"]}]},
    )
    made = red(
        "POST",
        "/v1/rubrics:induce",
        {
            "prompt": prompt,
            "student_responses": ["cold, white"],
            "teacher_responses": ["Snow falls"],
        },
    ).json()
    assert {(node["role"], node["text"]) for node in nodes(read(red, made["id"]), "response")} == {
        ("teacher", "Snow falls"),
        ("student", None),
    }, "that blue said it too is blue's"


def test_runs_verdicts_and_others_use(member: Team) -> None:
    red, blue = member("red"), member("blue")
    rubric = make(red, PROMPT, "red", share=True)
    score(
        red, rubric, PROMPT, ("red", "grey", "grey", "grey"), ("grey", "grey"), run="long", step=3
    )
    score(red, rubric, PROMPT, FLAT, run="long", step=5)
    score(red, rubric, PROMPT, SPREAD, run="long", step=7)
    score(red, rubric, PROMPT, SPREAD, run="short")
    score(blue, rubric, PROMPT, SPREAD, ("grey", "green"), run="blue's run")
    graph = read(red, rubric)
    runs = {node["run"]: node for node in nodes(graph, "run")}
    assert set(runs) == {"long", "short"}
    long, short = runs["long"], runs["short"]
    assert (long["groups"], long["groups_with_spread"], long["first_step"], long["last_step"]) == (
        4,
        2,
        3,
        7,
    )
    assert (long["first_reward"], long["last_reward"], long["reward_change"]) == pytest.approx(
        (0.125, 0.5, 0.375)
    )
    assert (short["first_reward"], short["last_reward"], short["reward_change"]) == (0.5, 0.5, None)
    assert {
        (edge["source"], edge["target"]) for edge in graph["edges"] if edge["kind"] == "scored"
    } == {(rubric, long["id"]), (rubric, short["id"])}
    # Of verdicts there is one for a text, however often it was said: red, grey, "red, red".
    assert graph["verdicts"] == {
        "met": 2,
        "not_met": 1,
        "not_applicable": 0,
        "unscored": 0,
        "criteria": [{"criterion_id": "c1", "met": 2, "not_met": 1, "not_applicable": 0}],
    }
    assert graph["use"] == {"groups": 5, "other_teams_groups": 0, "quality": pytest.approx(3 / 4)}
    assert nodes(graph, "rubric")[0]["quality"] == graph["use"]["quality"]
    told = read(blue, rubric)
    assert [node["run"] for node in nodes(told, "run")] == ["blue's run"]
    assert (told["use"]["groups"], told["use"]["other_teams_groups"]) == (2, 0), (
        "others' are told when the day is over"
    )
    assert (told["verdicts"]["met"], told["verdicts"]["not_met"]) == (1, 2)
    assert "long" not in str(told)


def test_rollouts_without_a_reward_are_counted(member: Team) -> None:
    red = member("red")
    words = {"text": "It is kind.", "points": 1}
    rubric = red(
        "POST", "/v1/rubrics", {"prompt": PROMPT, "criteria": [*criteria("red"), words]}
    ).json()["id"]
    score(red, rubric, PROMPT, SPREAD, run="blind", step=1)
    graph = read(red, rubric)
    (run,) = nodes(graph, "run")
    assert (run["groups"], run["first_step"], run["first_reward"], run["reward_change"]) == (
        1,
        1,
        None,
        None,
    )
    assert graph["verdicts"]["unscored"] == 2
    assert graph["use"]["quality"] is None


def test_a_long_history_is_told_in_part(member: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage_store, "MAX_RELATIVES", 2)
    monkeypatch.setattr(lineage_store, "MAX_RUNS", 1)
    red = member("red")
    chain = [make(red, PROMPT, f"word{i}") for i in range(7)]
    graph = read(red, chain[3])
    assert (family(graph)[0], graph["truncated"]) == (set(chain[1:6]), True)
    assert not any(node["parent_hidden"] for node in nodes(graph, "rubric")), (
        "what is cut off is not hidden"
    )
    graph = read(red, chain[0])
    assert (family(graph)[0], graph["truncated"]) == (set(chain[:3]), True)
    monkeypatch.setattr(lineage_store, "MAX_RELATIVES", 6)
    assert (family(read(red, chain[3]))[0], read(red, chain[3])["truncated"]) == (set(chain), False)
    for name in ("one", "two"):
        score(red, chain[6], PROMPT, ("word6", "grey"), run=name)
    graph = read(red, chain[6])
    assert ([node["run"] for node in nodes(graph, "run")], graph["truncated"]) == (["two"], True)
