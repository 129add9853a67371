"""Test what one team can do to another's rewards, quality and names, on both databases."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from markscheme import Client
from markscheme.cli.app import app
from markscheme_server.store import lineage as lineage_store
from markscheme_server.store import rubrics as rubrics_store
from markscheme_server.store.engine.ids import now
from server.api.rubric_calls import FLAT, SPREAD, ask, fork, found, make, read, score
from server.organisation import Keys, Member, Team, call

PROMPT = "Describe autumn. Do not use any commas. Use at least five words."
"""The builtin judge can induce a rubric from it."""
TEACHER = ["Golden leaves fall on the quiet road."]
ROLLOUTS = ["Golden leaves fall on the quiet road today", "BUY ALPHA"]
FILTERS = [{"teacher_model": "gpt-strong"}, {"rubricator": "builtin"}]
Moving = Callable[[], None]


def scored(
    team: Member,
    prompt: str = PROMPT,
    *,
    texts: list[str] = ROLLOUTS,
    teachers: list[str] | None = None,
    group: str = "g",
    **request: Any,
) -> dict[str, Any]:
    """Score one group, with its ``teachers`` if there are any; return its answer."""
    taught = {"teacher_responses": teachers} if teachers else {}
    answer = team(
        "POST",
        "/v1/scores",
        {
            "groups": [
                {
                    "id": group,
                    "prompt": prompt,
                    "rollouts": [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)],
                }
                | taught
            ]
        }
        | request,
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["groups"][0])


def maker(group: dict[str, Any]) -> str | None:
    """Whose rubric a group was given."""
    return group["rubric"] and colour(group["rubric"]["team"])


def colour(team: str) -> str:
    """Return what a test calls the team of this name."""
    return team.split("-")[0]


def open_to_all(team: Member, rubric: str) -> None:
    assert team("PATCH", f"/v1/rubrics/{rubric}", {"visibility": "organisation"}).status_code == 200


def planted(team: Member, prompt: str = PROMPT) -> str:
    return make(team, prompt, "BUY ALPHA", share=True)


def induced(team: Member, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    answer = team(
        "POST",
        "/v1/rubrics:induce",
        {"prompt": prompt, "student_responses": ["red, brown"], "reuse": "always_new"} | more,
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture
def organisation(shared_keys: Keys) -> Keys:
    return shared_keys


@pytest.fixture
def member(fresh_member: Team, organisation: Keys) -> Iterator[Team]:
    """Return this test's teams at the module's service; later tests see nothing of theirs."""
    yield fresh_member
    organisation.hide_rubrics()


# One's own teacher first.


def test_who_brings_a_teacher_is_not_scored_by_another_teams_rubric(member: Team) -> None:
    red, blue = member("red"), member("blue")
    planted(red)
    for reuse in ("if_fresh", "always_new"):
        mine = scored(blue, teachers=TEACHER, reuse=reuse)
        assert (maker(mine), mine["rollouts"][1]["reward"] < 1) == ("blue", True)
    assert (
        blue(
            "POST",
            "/v1/rubrics:induce",
            {"prompt": PROMPT, "student_responses": ["b, c"], "teacher_responses": TEACHER},
        ).json()["team"]
        == blue.team
    )
    planted(red, "Another prompt.")
    assert scored(blue, "Another prompt.", teachers=TEACHER)["rubric"] is None, (
        "what cannot be induced is not replaced"
    )


def test_whose_bank_holds_a_teacher_is_not_scored_by_another_teams_rubric(member: Team) -> None:
    red, blue = member("red"), member("blue")
    evil = planted(red)
    red("PATCH", f"/v1/rubrics/{evil}", {"shared_with": [blue.team]})
    blue("POST", "/v1/teacher-responses", {"entries": [{"prompt": PROMPT, "responses": TEACHER}]})
    assert maker(scored(blue)) == "blue"


def test_without_a_teacher_and_frozen_the_nearest_is_taken_and_its_team_is_named(
    member: Team,
) -> None:
    red, blue = member("red"), member("blue")
    shared = planted(red)
    for group in (scored(blue), scored(blue, teachers=TEACHER, reuse="frozen")):
        assert (group["rubric"]["id"], maker(group)) == (shared, "red")


def test_a_request_says_how_far_it_reuses(member: Team) -> None:
    red, blue, green = member("red"), member("blue"), member("green")
    everyones, shared = planted(red), make(green, PROMPT, "leaves")
    green("PATCH", f"/v1/rubrics/{shared}", {"shared_with": [blue.team]})
    for scope, expected in (("organisation", shared), ("shared", shared), ("own", None)):
        group = scored(blue, teachers=TEACHER, reuse_scope=scope, reuse="frozen")
        assert (group["rubric"] and group["rubric"]["id"]) == expected
        group = scored(blue, teachers=TEACHER, reuse_scope=scope)
        assert group["rubric"]["id"] == expected if expected else maker(group) == "blue"
    green("PATCH", f"/v1/rubrics/{shared}", {"retired": True})
    assert scored(green, reuse="frozen", reuse_scope="shared")["rubric"] is None
    assert scored(green, reuse="frozen", reuse_scope="organisation")["rubric"]["id"] == everyones
    wrong = blue("POST", "/v1/scores", {"reuse_scope": "mine", "groups": []})
    assert wrong.status_code == 422


def test_a_teams_setting_holds_where_a_request_does_not_say(
    member: Team, organisation: Keys
) -> None:
    red, blue = member("red"), member("blue")
    everyones = planted(red)
    admin = organisation.key(red.team, "admin")

    def setting(value: str | None) -> Any:
        return call(blue.url, "PATCH", f"/v1/teams/{blue.team}", admin, {"reuse_scope": value})

    told = setting("own").json()
    assert (told["reuse_scope"], told["rpm"]) == ("own", None)
    fresh = Member(blue.url, organisation.key(blue.team, "read", "score", "induce"))
    assert maker(scored(fresh)) == "blue"
    assert scored(red, reuse="frozen")["rubric"]["id"] == everyones, "red's own"
    assert (
        call(blue.url, "PATCH", f"/v1/teams/{blue.team}", admin, {"rpm": 5000}).json()[
            "reuse_scope"
        ]
        == "own"
    )
    assert setting("organisation").json()["rpm"] == 5000
    fresh = Member(blue.url, organisation.key(blue.team, "read", "score", "induce"))
    taken = scored(fresh, "Describe spring. Do not use any commas.", teachers=TEACHER)
    assert maker(taken) == "blue", "there is no other one"
    planted(red, "Describe winter. Do not use any commas.")
    assert (
        maker(scored(fresh, "Describe winter. Do not use any commas.", teachers=TEACHER)) == "red"
    )
    assert setting(None).json()["reuse_scope"] is None
    for body in ({"reuse_scope": "mine"}, {}):
        assert call(blue.url, "PATCH", f"/v1/teams/{blue.team}", admin, body).status_code == 422
    entries = call(blue.url, "GET", f"/v1/audit?subject=team:{blue.team}", admin).json()["data"]
    assert [entry["detail"] for entry in entries if entry["action"] == "team.changed"][-1] == {
        "reuse_scope": "own",
        "reuse_scope_before": None,
    }


def test_the_sdk_and_the_command_say_how_far_to_reuse(
    member: Team,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    red, blue = member("red"), member("blue")
    everyones = planted(red)
    row = {
        "id": "g",
        "prompt": PROMPT,
        "teacher_responses": TEACHER,
        "rollouts": [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}],
    }
    with Client(blue.url, blue.key) as client:
        taken = client.score([row], reuse_scope="organisation").groups[0].rubric
        own = client.score([row]).groups[0].rubric
        assert taken is not None
        assert own is not None
        assert (taken.id, taken.team, own.team) == (everyones, red.team, blue.team)
        assert (
            client.induce(PROMPT, student_responses=["z"], reuse_scope="organisation").team
            == blue.team
        ), "it is nearer"
    (tmp_path / "groups.jsonl").write_text(json.dumps(row))
    monkeypatch.setenv("MARKSCHEME_API_KEY", member("green").key)
    for scope, team in (("organisation", red), ("own", member("green"))):
        done = CliRunner().invoke(
            app,
            [
                "score",
                str(tmp_path / "groups.jsonl"),
                "--url",
                blue.url,
                "-o",
                str(tmp_path / scope),
                "--reuse-scope",
                scope,
            ],
        )
        assert done.exit_code == 0, done.output
        assert json.loads((tmp_path / scope).read_text())["rubric"]["team"] == team.team


# A run keeps the rubrics that were there when it began.


def _share(team: Member, rubric: str) -> None:
    blue = team.team.replace(colour(team.team), "blue")
    team("PATCH", f"/v1/rubrics/{rubric}", {"shared_with": [blue]})


def _take_back_and_share(team: Member, rubric: str) -> None:
    team("PATCH", f"/v1/rubrics/{rubric}", {"shared_with": []})
    _share(team, rubric)


def _unretire(team: Member, rubric: str) -> None:
    team("PATCH", f"/v1/rubrics/{rubric}", {"retired": False})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, _share),
        ({}, open_to_all),
        ({"shared_with": "blue"}, _take_back_and_share),
        ({"shared_with": "blue", "retired": True}, _unretire),
        ({"visibility": "organisation", "retired": True}, _unretire),
    ],
)
def test_what_is_offered_after_a_runs_first_group_is_not_for_that_run(
    before: dict[str, Any], after: Callable[[Member, str], None], member: Team
) -> None:
    red, blue, other = member("red"), member("blue"), "Name a river."
    rubric = make(red, other, "Seine")
    if "shared_with" in before:
        before = before | {"shared_with": [member(before["shared_with"]).team]}
    if before:
        red("PATCH", f"/v1/rubrics/{rubric}", before)
    mine = make(blue, PROMPT, "leaves")
    assert scored(blue, run={"id": "old", "step": 0})["rubric"]["id"] == mine
    after(red, rubric)
    assert scored(blue, other, reuse="frozen", run={"id": "old", "step": 1})["rubric"] is None
    assert (
        scored(blue, other, reuse="frozen", run={"id": "new", "step": 0})["rubric"]["id"] == rubric
    )
    assert scored(blue, other, reuse="frozen")["rubric"]["id"] == rubric, "outside a run"
    own = make(blue, other, "Loire")
    assert scored(blue, other, reuse="frozen", run={"id": "old", "step": 2})["rubric"]["id"] == own


def test_a_run_goes_on_with_what_it_saw_when_it_began(member: Team) -> None:
    """A repeated share changes nothing; sharing a preferred rubric affects later runs only."""
    red, blue, green, other = member("red"), member("blue"), member("green"), "Name a river."
    near, far = make(red, other, "Seine"), make(green, other, "Loire", share=True)
    _share(red, near)
    scored(blue, "Name a colour.", run={"id": "old", "step": 0}, reuse="frozen")
    make(blue, PROMPT, "leaves")
    scored(blue, run={"id": "old", "step": 0})
    _share(red, near)
    _share(green, far)
    open_to_all(green, far)
    assert scored(blue, other, reuse="frozen", run={"id": "old", "step": 1})["rubric"]["id"] == near
    assert (
        scored(blue, other, reuse="frozen", run={"id": "new", "step": 1})["rubric"]["id"] == far
    ), "the newer"


# Provenance belongs to content.


def test_an_edited_rubric_has_no_rubricator_and_no_teacher(member: Team) -> None:
    red, blue = member("red"), member("blue")
    red(
        "POST",
        "/v1/teacher-responses",
        {"entries": [{"prompt": PROMPT, "responses": TEACHER, "model": "gpt-strong"}]},
    )
    source = induced(red)
    assert source["provenance"]["teacher_model"] == "gpt-strong"
    spam = [
        {
            "text": "It says BUY ALPHA.",
            "points": 100,
            "check": {"kind": "contains", "texts": ["BUY ALPHA"]},
        }
    ]
    forged = red("POST", f"/v1/rubrics/{source['id']}:fork", {"criteria": spam}).json()
    same = red("POST", f"/v1/rubrics/{source['id']}:fork", {"criteria": source["criteria"]}).json()
    for rubric in (forged, same):
        open_to_all(red, rubric["id"])
    nothing = {
        "rubricator": None,
        "template": None,
        "teacher_model": None,
        "teacher_keys": [],
        "student_keys": [],
        "run": None,
        "format": None,
        "points_factor": None,
        "replaces": None,
        "reason": None,
    }
    assert forged["provenance"] == nothing
    assert same["provenance"] == source["provenance"]
    points = [criterion | {"points": criterion["points"] + 1} for criterion in source["criteria"]]
    assert (
        red("POST", f"/v1/rubrics/{source['id']}:fork", {"criteria": points}).json()["provenance"]
        == nothing
    )
    taken = blue("POST", f"/v1/rubrics/{forged['id']}:fork", {}).json()
    assert taken["provenance"] == nothing
    for wanted in FILTERS:
        assert found(blue, **wanted) == [], "only what was induced has either"
        assert found(red, **wanted) == [source["id"]]
        assert scored(blue, reuse="frozen", **wanted)["rubric"] is None
        assert scored(red, reuse="frozen", **wanted)["rubric"]["id"] == source["id"]
    for wanted in FILTERS:
        assert induced(blue, reuse="if_fresh", **wanted)["team"] == blue.team
    open_to_all(red, source["id"])
    assert scored(member("green"), reuse="frozen", **FILTERS[0])["rubric"]["id"] == source["id"]


# A person's rubric is never spent.


def test_what_a_person_brought_or_edited_stays_until_it_is_retired(member: Team) -> None:
    red = member("red")
    brought = make(red, PROMPT, "leaves")
    flat = ["leaves fall", "leaves lie"]
    for make_one in (lambda: brought, lambda: fork(red, brought, "l")):
        rubric = make_one()
        given = [
            scored(red, texts=flat, teachers=TEACHER, run={"id": f"run {rubric}", "step": step})[
                "rubric"
            ]["id"]
            for step in range(10)
        ]
        assert set(given) == {rubric}
        assert scored(red, texts=flat, reuse="frozen")["rubric"]["id"] == rubric
    for listed in ask(red).json()["data"]:
        red("PATCH", f"/v1/rubrics/{listed['id']}", {"retired": True})
    assert scored(red, texts=flat, teachers=TEACHER)["rubric"]["origin"] == "induced"


def test_what_a_person_writes_after_an_induction_is_heard(member: Team) -> None:
    red = member("red")
    first = scored(red)["rubric"]
    assert first["origin"] == "induced"
    mine = make(red, PROMPT, "leaves")
    for reuse in ("if_fresh", "frozen"):
        assert scored(red, reuse=reuse)["rubric"]["id"] == mine
    later = scored(red, texts=["Brown leaves, and a long road", "x"], reuse="always_new")["rubric"]
    assert later["origin"] == "induced"
    for reuse in ("if_fresh", "frozen"):
        assert scored(red, reuse=reuse)["rubric"]["id"] == mine, (
            "a person's before a newer induced one"
        )
    newer = make(red, PROMPT, "road")
    assert scored(red)["rubric"]["id"] == newer


def test_frozen_goes_nearest_owner_first(member: Team) -> None:
    red, blue = member("red"), member("blue")
    planted(red)
    mine = induced(blue, teacher_responses=TEACHER)
    assert scored(blue, reuse="frozen")["rubric"]["id"] == mine["id"], (
        "own and induced before another's and written"
    )


@pytest.mark.parametrize(
    "texts",
    [
        ["Golden leaves"],
        ["Golden leaves"] * 4,
        ["Golden leaves", " Golden leaves\n"],
        ["<think>a</think>Golden leaves", "<think>b</think>Golden leaves"],
    ],
)
def test_groups_that_can_have_no_spread_decide_no_freshness(texts: list[str], member: Team) -> None:
    red = member("red")
    first = scored(red, run={"id": "run", "step": 0})["rubric"]
    given = {
        scored(
            red,
            texts=[f"{text} {step}" for text in texts] if len(set(texts)) == 1 else texts,
            run={"id": "run", "step": step},
        )["rubric"]["id"]
        for step in range(1, 12)
    }
    assert given == {first["id"]}


# Quality is nobody else's to set, nor to read a group off.


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Moving:
    """Has the service's day begin after all that has been scored so far."""

    def move() -> None:
        begins = now() + timedelta(days=1)
        for module in (rubrics_store, lineage_store):
            monkeypatch.setattr(module, "start_of_day", lambda: begins)

    return move


def quality(team: Member, rubric: str) -> float | None:
    told = ask(team, limit=100).json()["quality"].get(rubric)
    assert told == read(team, rubric)["use"]["quality"]
    return None if told is None else float(told)


@pytest.mark.parametrize(
    "texts", [("red",), ("red", "red"), ("red", " red "), ("red", "red, red"), ("red", "grey")]
)
def test_no_team_sets_the_quality_that_another_is_told(
    texts: tuple[str, ...],
    member: Team,
    later: Moving,
) -> None:
    red, blue, green, prompt = member("red"), member("blue"), member("green"), "Name a colour."
    rubric = make(red, prompt, share=True)
    score(red, rubric, prompt, *[SPREAD] * 4, FLAT)
    score(green, rubric, prompt, *[texts] * 40)
    assert quality(red, rubric) == 0.8, "its own groups"
    assert quality(blue, rubric) is None, "the day is not over"
    later()
    assert quality(red, rubric) == 0.8
    counted = len({text.strip() for text in texts}) > 1
    votes = [0.8, float(texts == SPREAD)] if counted else [0.8]
    assert quality(blue, rubric) == pytest.approx(sum(votes) / len(votes)), "each team counts once"
    assert found(blue, min_quality=0.39) == [rubric]


def test_no_other_teams_group_can_be_read_off(member: Team, later: Moving) -> None:
    red, blue, prompt = member("red"), member("blue"), "Name a colour."
    rubric = make(red, prompt, share=True)

    def watched() -> tuple[Any, ...]:
        use = read(red, rubric)["use"]
        return (
            use["other_teams_groups"],
            use["quality"],
            ask(red).json()["quality"],
            found(red, min_quality=0),
        )

    before = watched()
    for step, texts in enumerate((SPREAD, FLAT, SPREAD, FLAT)):
        score(blue, rubric, prompt, texts, step=step)
        assert watched() == before
    later()
    assert watched() == (4, None, {}, []), "too few to tell the share of"
    score(blue, rubric, prompt, FLAT, step=4)
    later()
    assert watched() == (5, 0.4, {rubric: 0.4}, [rubric])


# Which teams there are is told to administrators.


def test_a_name_that_is_no_teams_is_taken_like_one_that_is(
    member: Team, organisation: Keys
) -> None:
    red = member("red")
    rubric = make(red, PROMPT, "leaves")
    admin = organisation.key(red.team, "admin")
    call(red.url, "POST", "/v1/teams", admin, {"name": "gone"})
    assert call(red.url, "DELETE", "/v1/teams/gone", admin).status_code == 200
    told = []
    blue = member("blue")
    for name in (blue.team, "nobody", "gone"):
        answer = red("PATCH", f"/v1/rubrics/{rubric}", {"shared_with": [name]})
        told.append((answer.status_code, answer.text.replace(name, "…"), set(answer.headers)))
    assert told[0] == told[1] == told[2]
    assert red("PATCH", f"/v1/rubrics/{rubric}", {"shared_with": ["nobody", blue.team]}).json()[
        "shared_with"
    ] == [blue.team, "nobody"]
    assert blue.sees(rubric)
