"""Test runs and groups over HTTP: figures equal what the scores said, whatever the run's id."""

import csv
import json
import statistics
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from markscheme import Client
from markscheme.errors import Conflict, NotFound
from markscheme_server.scoring import runs
from server.organisation import OPERATOR, Keys, Member, Team, call

HOSTILE = [
    "plain-1",
    "a/b",
    "a/steps",
    "a%2Fb",
    "..",
    "~..",
    "a?b#c",
    "a b+c&d",
    "läuft/日本",
    "a:fork",
    "<img src=x onerror=alert(1)>",
    '"; DROP TABLE runs; --',
    "x" * 200,
]
PROMPT = "Use no commas. Write at least 3 words."
GOOD, SHORT, BAD = "red green blue grey", "red", "red, green"
UNREADABLE = [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


def body(run: str, step: int, *texts: Any, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {
        "groups": [
            {
                "id": f"g{step}",
                "prompt": prompt,
                "teacher_responses": [GOOD],
                "rollouts": [
                    {"id": f"r{i}", "truncated": text == BAD}
                    | ({"text": text} if isinstance(text, str) else {"messages": text})
                    for i, text in enumerate(texts)
                ],
            }
        ],
        "run": {"id": run, "step": step},
        "score_teachers": True,
    } | more


def scored(team: Member, run: str, step: int, *texts: Any) -> dict[str, Any]:
    answer = team("POST", "/v1/scores", body(run, step, *texts))
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["groups"][0]
    return made


def get_page(team: Member, path: str) -> str:
    answer = team("GET", path)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def get(team: Member, path: str) -> Any:
    answer = team("GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def member(fresh_member: Team) -> Team:
    return fresh_member


@pytest.fixture
def client(member: Team) -> Client:
    red = member("red")
    return Client(red.url, red.key)


@pytest.mark.parametrize("run", HOSTILE)
def test_a_run_is_found_by_any_id_and_by_its_own_team_only(run: str, member: Team) -> None:
    red, blue = member("red"), member("blue")
    scored(red, run, 0, GOOD, BAD)
    ours, theirs = Client(red.url, red.key), Client(blue.url, blue.key)
    assert [each.id for each in ours.runs().data] == [run]
    assert ours.run(run).id == run
    assert ours.run(run).groups == len(ours.run_groups(run).data) == 1
    assert ours.run_steps(run).data[0].rollouts == 2
    assert ours.run_criteria(run).total > 0
    assert ours.run_findings(run).data == []
    ours.add_run_records(run, {0: {"loss": 0.5, "kl": float("nan")}})
    assert ours.run_steps(run).data[0].metrics == {"loss": 0.5, "kl": None}
    group = ours.run_groups(run).data[0].id
    assert theirs.runs().data == []
    for ask in (theirs.run, theirs.run_steps, theirs.run_criteria, theirs.run_findings):
        with pytest.raises(NotFound):
            ask(run)
    for ask in (theirs.run_groups,):
        with pytest.raises(NotFound):
            ask(run)
    for read in (lambda: theirs.group(group), lambda: theirs.judge_prompt(group, "r0")):
        with pytest.raises(NotFound):
            read()
    for each in (ours, theirs):
        each.close()


def test_a_part_of_a_run_is_not_the_run_of_that_name(client: Client, member: Team) -> None:
    scored(member("red"), "a", 0, GOOD, BAD)
    scored(member("red"), "a/steps", 0, GOOD)
    assert client.run_steps("a").data[0].rollouts == 2
    assert client.run("a/steps").rollouts == 1


def test_figures_are_those_of_the_scores(member: Team) -> None:
    red, run = member("red"), "figures"
    groups = [
        scored(red, run, step, *texts)
        for step, texts in enumerate([(GOOD, BAD), (BAD, SHORT, GOOD), (GOOD, GOOD), (SHORT, BAD)])
    ]
    rewards = [[r["reward"] for r in group["rollouts"]] for group in groups]
    every = [reward for each in rewards for reward in each]
    path = f"/v1/runs/{run}"
    found = get(red, path)
    assert (found["groups"], found["rollouts"], found["unscored"]) == (4, len(every), 0)
    assert (found["first_step"], found["last_step"]) == (0, 3)
    assert found["reward_first"] == pytest.approx(statistics.mean(rewards[0]))
    assert found["reward_now"] == pytest.approx(statistics.mean(rewards[-1]))
    assert found["teacher"] == pytest.approx(groups[-1]["teacher"]["rewards"][0])
    assert found["curve"] == pytest.approx([statistics.mean(each) for each in rewards])
    assert (found["comparable_groups"], found["flat_groups"]) == (
        3,
        sum(len(set(each)) == 1 for each in (rewards[0], rewards[1], rewards[3])),
    )
    spans = get(red, f"{path}/steps?bins=2")["data"]
    assert [(s["first_step"], s["last_step"], s["rollouts"]) for s in spans] == [
        (0, 1, 5),
        (2, 3, 4),
    ]
    for span, both in zip(spans, (rewards[0] + rewards[1], rewards[2] + rewards[3]), strict=True):
        tenths = statistics.quantiles(both, n=10, method="inclusive")
        assert span["reward"] == pytest.approx(statistics.mean(both), abs=1e-12)
        assert (span["low"], span["high"]) == pytest.approx((tenths[0], tenths[-1]))
    assert spans[0]["words"] == pytest.approx((4 + 2 + 2 + 1 + 4) / 5)
    assert [s["truncated"] for s in spans] == [2, 1]
    answer = get(red, f"{path}/criteria?bins=2")
    criteria = answer["data"]
    by_category: dict[str, list[Any]] = {}
    for each in criteria:
        by_category.setdefault(each["category"], []).append(each)
    assert {each["category"] for each in answer["categories"]} == by_category.keys()
    for added in answer["categories"]:
        parts = by_category[added["category"]]
        assert added["criteria"] == len(parts)
        for name in ("total", "first", "now", "teacher"):
            assert added[name]["met"] == sum(each[name]["met"] for each in parts)
            assert added[name]["judged"] == sum(each[name]["judged"] for each in parts)
        assert [s["met"] for s in added["spans"]] == [
            sum(spans)
            for spans in zip(*([s["met"] for s in c["spans"]] for c in parts), strict=True)
        ]
    first = get(red, f"{path}/criteria?bins=2&limit=1")
    assert first["categories"] == answer["categories"]
    assert len(criteria) == len(groups[0]["rubric"]["criteria"])
    for criterion in criteria:
        said = [
            verdict["met"]
            for group in groups
            for rollout in group["rollouts"]
            for verdict in rollout["verdicts"]
            if verdict["criterion_id"] == criterion["criterion_id"]
        ]
        assert (criterion["total"]["met"], criterion["total"]["judged"]) == (sum(said), len(said))
        assert sum(span["judged"] for span in criterion["spans"]) == len(said)
        assert criterion["teacher"] == {"met": 4, "judged": 4, "unknown": 0}


def test_an_unknown_reward_is_in_no_mean(member: Team) -> None:
    red, run = member("red"), "unknown"
    scored(red, run, 0, GOOD, UNREADABLE)
    known = scored(red, run, 1, GOOD, BAD)["rollouts"]
    first, second = get(red, f"/v1/runs/{run}/steps")["data"]
    assert (first["rollouts"], first["unscored"], first["reward"]) == (2, 1, 1.0)
    assert first["reasons"] == {"not_supported": 1}
    assert second["reward"] == pytest.approx(statistics.mean(r["reward"] for r in known))
    for criterion in get(red, f"/v1/runs/{run}/criteria")["data"]:
        assert (criterion["total"]["judged"], criterion["total"]["unknown"]) == (3, 1)
    group = get(red, f"/v1/runs/{run}/groups?sort=unknown")["data"][0]
    assert [r["reward"] for r in group["rollouts"]] == [1.0, None]
    detail = get(red, f"/v1/groups/{group['id']}")
    assert [r["advantage"] for r in detail["rollouts"]] == [0.0, None]


def test_a_step_that_is_sent_again_replaces_itself(member: Team) -> None:
    red, run = member("red"), "again"
    scored(red, run, 0, BAD, SHORT)
    assert get(red, f"/v1/runs/{run}")["rollouts"] == 2
    again = scored(red, run, 0, GOOD, SHORT)["rollouts"]
    found = get(red, f"/v1/runs/{run}")
    assert (found["groups"], found["rollouts"]) == (1, 2)
    assert found["reward_now"] == pytest.approx(statistics.mean(r["reward"] for r in again))


def test_a_group_shows_what_its_score_said(member: Team) -> None:
    red, run = member("red"), "group"
    made = [scored(red, run, step, f"<think>Hm, so.</think>{GOOD}", BAD) for step in range(3)]
    listed = get(red, f"/v1/runs/{run}/groups")["data"]
    assert [group["group_id"] for group in listed] == ["g2", "g1", "g0"]
    found = get(red, f"/v1/groups/{listed[1]['id']}")
    assert (found["previous_id"], found["next_id"]) == (listed[2]["id"], listed[0]["id"])
    assert found["rubric"]["id"] == made[1]["rubric"]["id"]
    assert found["prompt"][0]["content"] == PROMPT
    first = found["rollouts"][0]
    assert (first["text"], first["thought"]) == (GOOD, "<think>Hm, so.</think>")
    for rollout, score in zip(found["rollouts"], made[1]["rollouts"], strict=True):
        assert rollout["reward"] == score["reward"]
        assert [(v["criterion_id"], v["met"], v["evidence"]) for v in rollout["verdicts"]] == [
            (v["criterion_id"], v["met"], v["evidence"]) for v in score["verdicts"]
        ]
        assert rollout["advantage"] == pytest.approx(score["reward"] - found["mean"])
    assert [(t["text"], t["reward"]) for t in found["teachers"]] == [
        (GOOD, made[1]["teacher"]["rewards"][0])
    ]
    prompt = get(red, f"/v1/groups/{found['id']}/judge-prompt?rollout=r0")
    assert (prompt["messages"], prompt["reason"]) == (
        None,
        "This judge has no model: code decides.",
    )
    assert red("GET", f"/v1/groups/{found['id']}/judge-prompt?rollout=r9").status_code == 404


def test_groups_are_filtered_and_paged(client: Client, member: Team) -> None:
    red, run = member("red"), "pages"
    for step in range(5):
        scored(red, run, step, GOOD, BAD if step % 2 else GOOD + " too")
    spread = client.run_groups(run, sort="spread", limit=2)
    assert [group.step for group in spread.data] == [3, 1]
    assert spread.has_more
    flat = client.run_groups(run, sort="flat")
    assert [group.step for group in flat.data] == [4, 2, 0]
    second = client.run_groups(run, limit=3, after=client.run_groups(run, limit=3).data[-1].id)
    assert [group.step for group in second.data] == [1, 0]
    assert not second.has_more
    some = client.run_groups(run, first_step=1, last_step=2)
    assert [group.step for group in some.data] == [2, 1]
    key = client.run_criteria(run).data[0].key
    assert len(client.run_groups(run, criterion=key).data) == 5
    assert client.run_groups(run, criterion="0" * 64).data == []


def test_a_list_does_not_go_on_after_what_is_not_in_it(client: Client, member: Team) -> None:
    blue = member("blue")
    scored(blue, "blues", 0, GOOD)
    (strange,) = get(blue, "/v1/runs/blues/groups")["data"]
    for run in ("one", "two"):
        scored(member("red"), run, 0, GOOD)
    lists: dict[str, Callable[[str], Any]] = {
        "blues": lambda after: client.runs(after=after),
        strange["id"]: lambda after: client.run_groups("one", after=after),
        "0" * 64: lambda after: client.run_criteria("one", after=after),
        "f" * 64: lambda after: client.compare_runs(["one", "two"], after=after),
    }
    assert client.runs(after="one").data == []  # it is the last one
    for after, listed in lists.items():
        with pytest.raises(NotFound, match="begin again") as refused:
            listed(after)
        assert refused.value.code == "after_not_found"


def test_a_run_may_have_steps_as_far_apart_as_numbers_go(client: Client, member: Team) -> None:
    steps = [0, 1, 10**6, 2**31 - 2, 2**31 - 1]
    for step in steps:
        scored(member("red"), "wide", step, GOOD)
    assert client.run("wide").last_step == steps[-1]
    assert [run.groups for run in client.runs().data] == [5]
    assert [group.step for group in client.run_groups("wide").data] == steps[::-1]
    assert sum(span.groups for span in client.run_steps("wide", bins=1000).data) == 5
    assert client.run_criteria("wide").data[0].total.judged == 5
    table = get_page(member("red"), "/pages/runs/wide/steps.csv")
    assert [int(line.split(",")[0]) for line in table.splitlines()[1:]] == steps


def test_a_trainers_metrics_do_not_hide_the_services_figures_in_a_table(
    client: Client, member: Team
) -> None:
    scored(member("red"), "r", 0, GOOD, BAD)
    client.add_run_records("r", {0: {"reward": 7.0, "rollouts": 9.0, "=1+1": 2.0, "a,b": None}})
    header, row = csv.reader(get_page(member("red"), "/pages/runs/r/steps.csv").splitlines())
    assert len(set(header)) == len(header)
    assert not [name for name in header if not name[0].isalpha()]
    table = dict(zip(header, row, strict=True))
    assert (table["reward"], table["rollouts"]) == (str(client.run("r").reward_now), "2")
    assert (table["metrics.reward"], table["metrics.=1+1"], table["metrics.a,b"]) == (
        "7.0",
        "2.0",
        "",
    )


def test_a_run_says_what_it_is(client: Client) -> None:
    made = client.put_run("new", steps=10, facts={"student": "one", "lr": 1e-6})
    assert (made.state, made.steps, made.groups, made.reward_now) == ("running", 10, 0, None)
    ended = client.put_run("new", state="stopped", reason="the budget is spent")
    assert (ended.state, ended.reason, ended.steps) == ("stopped", "the budget is spent", 10)
    assert client.put_run("new", state="running").reason is None  # it goes on
    assert ended.facts == {"student": "one", "lr": 1e-6}
    assert client.runs().data[0].findings is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"state": None},
        {"facts": None},
        {"facts": {"student": "a\0b"}},
        {"facts": {"student": "\ud800"}},
        {"facts": {"student": "x" * 4001}},
        {"facts": {"seed": 10**400}},
    ],
)
def test_what_cannot_be_shown_of_a_run_is_refused(fields: dict[str, Any], member: Team) -> None:
    red = member("red")
    facts = {"student": "Qwen3-8B", "seed": 2**63 - 1, "lr": 1e-6, "lora": True, "note": None}
    assert red("PUT", "/v1/runs/r", {"facts": facts}).status_code == 200
    answer = httpx.put(
        f"{red.url}/v1/runs/r",
        content=json.dumps(fields),
        headers={"Authorization": f"Bearer {red.key}", "Content-Type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == 422
    assert get(red, "/v1/runs")["data"][0]["facts"] == facts


def test_a_team_stores_so_many_runs_and_metrics_of_so_many_steps(
    client: Client, member: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_RUNS", 2)
    monkeypatch.setattr(runs, "MAX_RECORDS", 3)
    client.put_run("one", steps=1)
    client.add_run_records("two", {0: {"loss": 1.0}, 1: {"loss": 1.0}})
    for more in (
        lambda: client.put_run("three"),
        lambda: client.add_run_records("three", {0: {"loss": 1.0}}),
    ):
        with pytest.raises(Conflict) as refused:
            more()
        assert refused.value.code == "too_many_runs"
    client.put_run("one", steps=2)
    client.add_run_records("two", {1: {"loss": 2.0}, 2: {"loss": 2.0}})
    with pytest.raises(Conflict) as refused:
        client.add_run_records("two", {2: {"loss": 3.0}, 3: {"loss": 3.0}})
    assert refused.value.code == "too_many_records"
    for step in range(3):
        scored(member("red"), "two", step, GOOD)
    assert [s.metrics["loss"] for s in client.run_steps("two").data] == [1.0, 2.0, 2.0]
    scored(member("red"), "three", 0, GOOD)  # what was judged is kept
    assert client.run("three").groups == 1


def test_a_run_stores_metrics_of_so_many_characters(
    client: Client, member: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(member("red"), "r", 0, GOOD)
    metrics = {f"name {number}": 1.0 for number in range(10)}
    monkeypatch.setattr(runs, "MAX_METRICS", 2 * len(json.dumps(metrics)) + 10)
    client.add_run_records("r", {0: metrics, 1: metrics})
    client.add_run_records("r", {0: metrics})
    with pytest.raises(Conflict) as refused:
        client.add_run_records("r", {2: metrics})
    assert refused.value.code == "too_many_records"
    client.add_run_records("r", {0: {"loss": 1.0}})
    client.add_run_records("r", {2: {"loss": 1.0}})
    assert client.run_steps("r").data[0].metrics == {"loss": 1.0}


def test_metrics_whose_sum_is_out_of_range_have_no_mean(client: Client, member: Team) -> None:
    for step in (0, 1):
        scored(member("red"), "r", step, GOOD)
    client.add_run_records("r", {step: {"norm": 1.7e308, "kl": 0.5} for step in (0, 1)})
    assert client.run_steps("r", bins=1).data[0].metrics == {"norm": None, "kl": 0.5}


def test_runs_are_paged_the_last_heard_of_first(client: Client, member: Team) -> None:
    for name in ("a", "b", "c"):
        scored(member("red"), name, 0, GOOD)
    scored(member("red"), "a", 1, GOOD)
    first = client.runs(limit=2)
    assert [run.id for run in first.data] == ["a", "c"]
    assert first.has_more
    rest = client.runs(limit=2, after="c")
    assert [run.id for run in rest.data] == ["b"]
    assert not rest.has_more


def test_a_rubric_shows_how_its_criteria_do(client: Client, member: Team) -> None:
    made = [scored(member("red"), run, 0, GOOD, BAD) for run in ("one", "two")]
    health = client.rubric_health(made[0]["rubric"]["id"])
    said = [v for group in made for r in group["rollouts"] for v in r["verdicts"]]
    assert (health.groups, health.runs) == (2, ["one", "two"])
    for criterion in health.criteria:
        met = [v["met"] for v in said if v["criterion_id"] == criterion.criterion_id]
        assert (criterion.rollouts.met, criterion.rollouts.judged) == (sum(met), len(met))
        assert (criterion.teacher.met, criterion.teacher.judged) == (2, 2)


def test_a_judge_that_was_called_is_reported(
    organisation: Keys,
    start: Callable[..., str],
    model_settings: dict[str, Any],
) -> None:
    url = start(**model_settings)
    team = Member(url, organisation.key("red", "read", "score", "induce"))
    answer = team("POST", "/v1/scores", body("judged", 0, GOOD, BAD))
    assert answer.status_code == 200, answer.text
    report = get(team, "/v1/judges/report")
    (judge,) = report["data"]
    assert judge["name"] == "default"
    assert judge["calls"] > 0
    assert judge["breaker"] == "closed"
    assert judge["latency_p50_s"] is not None
    assert judge["agreement"] == []
    assert report["disagreements"] == []
    group = get(team, "/v1/runs/judged/groups")["data"][0]["id"]
    shown = get(team, f"/v1/groups/{group}/judge-prompt?rollout=r0")
    assert GOOD in shown["messages"][0]["content"], shown["reason"]


def test_a_prompt_that_a_judge_did_not_get_alone_is_not_shown(
    organisation: Keys,
    start: Callable[..., str],
    model_settings: dict[str, Any],
) -> None:
    def reason(run: str) -> str:
        group = get(team, f"/v1/runs/{run}/groups")["data"][0]["id"]
        shown = get(team, f"/v1/groups/{group}/judge-prompt?rollout=r0")
        assert shown["messages"] is None
        return str(shown["reason"])

    team = Member(start(**model_settings), organisation.key("red", "read", "score", "induce"))
    assert team("POST", "/v1/scores", body("of a group", 0, GOOD, BAD, verify="group")).is_success
    assert reason("of a group") == "The judge saw all rollouts of the group in one call."
    asked = body("by checks", 0, GOOD)
    asked["groups"][0]["rubric_id"] = team.make("red")
    assert team("POST", "/v1/scores", asked | {"reuse": "frozen"}).is_success
    assert reason("by checks") == "All criteria have checks: code decides."
    team.url = start(**model_settings | {"judge_model": "another"})
    assert reason("of a group") == (
        "The service no longer has a judge with this model and template."
    )


@pytest.fixture
def ask(organisation: Keys, start: Callable[..., str]) -> Callable[..., httpx.Response]:
    """Return what sends a request to a service with keys: `ask(key, method, path, body)`."""
    url = start(api_key=OPERATOR)
    return lambda key, method, path, body=None: call(url, method, path, key, body)


FINDINGS, REPORT = "/v1/runs/night-1/findings", "/pages/runs/night-1/report"


def test_a_key_that_may_only_score_reads_the_run_that_it_created(
    ask: Callable[..., httpx.Response], organisation: Keys
) -> None:
    trainer, neighbour = (organisation.key("red", "score", "induce") for _ in range(2))
    assert ask(trainer, "PUT", "/v1/runs/night-1", {"state": "running"}).status_code == 200
    assert ask(trainer, "POST", "/v1/scores", body("night-1", 0, GOOD, BAD)).status_code == 200
    # Naming it later makes nobody else its creator.
    assert ask(neighbour, "PUT", "/v1/runs/night-1", {"steps": 9}).status_code == 200
    for path in (FINDINGS, REPORT):
        assert ask(trainer, "GET", path).status_code == 200, path
        refused = ask(neighbour, "GET", path)
        assert refused.status_code == 403, path
        assert "created the run" in refused.json()["error"]["message"]
        assert ask(organisation.key("red", "read"), "GET", path).status_code == 200, path
    assert "red green blue grey" in ask(trainer, "GET", REPORT).text
    run = "/v1/runs/night-1"
    for path in (
        "/v1/runs",
        run,
        f"{run}/steps",
        f"{run}/groups",
        "/pages/",
        "/pages/runs/night-1",
    ):
        assert ask(trainer, "GET", path).status_code == 403, path
    (entry,) = ask(OPERATOR, "GET", "/v1/audit?subject=run:night-1").json()["data"]
    assert (entry["action"], entry["team"]) == ("run.created", "red")
    assert trainer.startswith(entry["key"])


def test_a_run_that_a_score_made_is_read_with_the_scope_read_only(
    ask: Callable[..., httpx.Response], organisation: Keys
) -> None:
    trainer = organisation.key("red", "score", "induce")
    assert ask(trainer, "POST", "/v1/scores", body("night-1", 0, GOOD)).status_code == 200
    assert ask(trainer, "PUT", "/v1/runs/night-1", {"steps": 9}).status_code == 200
    assert ask(trainer, "GET", FINDINGS).status_code == 403


def test_a_run_of_the_same_name_in_another_team_is_another_run(
    ask: Callable[..., httpx.Response], organisation: Keys
) -> None:
    red, blue = (organisation.key(team, "score", "induce") for team in ("red", "blue"))
    for key, text in ((red, "violet maroon indigo"), (blue, "pink purple brown")):
        assert ask(key, "PUT", "/v1/runs/night-1", {}).status_code == 200
        assert ask(key, "POST", "/v1/scores", body("night-1", 0, text)).status_code == 200
    assert "violet" not in ask(blue, "GET", REPORT).text
    other = organisation.key("blue", "induce")
    assert ask(other, "GET", FINDINGS).status_code == 403
    assert ask(blue, "GET", "/v1/runs/nobody/findings").status_code == 403
