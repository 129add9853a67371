"""Test the ledger and budgets over HTTP: all spending is recorded, and none exceeds a budget."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from fakes.clock import Clock
from fakes.judge import ScriptedJudge, offered, verdicts, well_behaved
from markscheme import Client
from markscheme.errors import InsufficientQuota
from markscheme_server.accounts.budgets import CACHE_S
from markscheme_server.store import usage as usage_store
from server.deployment import CALL_USD, CRITERIA, Deployment, run, score
from server.organisation import OPERATOR, PROMPT


def test_what_was_spent_and_saved_is_told_by_whatever_one_asks_for(
    deployment: Deployment, judge: ScriptedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    red, blue = deployment.team("red"), deployment.team("blue")
    url = deployment.start()
    judge.script = lambda request, number: (
        verdicts(request, lambda _, text: "Red" in text)
        if offered(request)
        else well_behaved(request, number)
    )
    with Client(url, red) as client, Client(url, blue) as other, Client(url, OPERATOR) as operator:
        induced = client.induce(PROMPT, student_responses=["Blue."])
        client.change_rubric(induced.id, visibility="organisation")
        paid = score(url, red, ["Red.", "Blue."], run=run("r1"), reuse="if_fresh").json()
        assert paid["usage"] == {
            "judge_calls": 2,
            "prompt_tokens": 20,
            "cached_tokens": 8,
            "completion_tokens": 10,
            "cached_verdicts": 0,
            "cost_usd": pytest.approx(2 * CALL_USD),
            "saved_usd": pytest.approx(CALL_USD),
        }  # the rubric was there
        again = score(url, red, ["Red.", "Blue."], run=run("r1", 1), reuse="if_fresh").json()[
            "usage"
        ]
        assert (again["judge_calls"], again["cost_usd"]) == (0, 0.0)
        assert again["saved_usd"] == pytest.approx(3 * CALL_USD)
        judge.script = lambda request, _number: "no JSON"
        assert score(url, red, ["Green."], run=run("r2")).json()["counts"]["unscored"] == 1
        judge.script = lambda request, number: verdicts(request)
        score(url, blue, ["Red."], run=run("r1"))

        report = client.usage(["role", "run"])
        assert {
            (b.role, b.run): (
                b.calls,
                b.failed_calls,
                b.prompt_tokens,
                b.cached_tokens,
                b.completion_tokens,
            )
            for b in report.data
            if b.role
        } == {
            ("rubricator", None): (1, 0, 10, 4, 5),
            ("verifier", "r1"): (2, 0, 20, 8, 10),
            ("verifier", "r2"): (3, 1, 30, 12, 15),
        }
        assert report.total.cost_usd == pytest.approx(6 * CALL_USD)
        assert report.total.saved_usd == pytest.approx(
            4 * CALL_USD
        )  # the rubric twice, two verdicts of four criteria
        assert report.total.cached_verdicts == 8
        assert report.total.unpriced_calls == 0
        today = datetime.now(UTC).date()
        [by_day] = client.usage(["day"]).data
        assert by_day.day == today
        assert by_day.cost_usd == report.total.cost_usd
        [by_month] = client.usage(["month"]).data
        assert by_month.month == f"{today:%Y-%m}"
        assert {b.rubric for b in client.usage(["rubric"]).data} == {induced.id}
        with monkeypatch.context() as patch:
            patch.setattr(usage_store, "MAX_BUCKETS", 1)
            cut = client.usage(["run", "role"])
            assert (len(cut.data), cut.truncated, cut.total) == (1, True, report.total)
        assert client.usage(["judge"], until=today).data == []
        assert client.usage(["judge"], since=today + timedelta(days=1)).total.calls == 0

        assert {b.team: b.calls for b in other.usage().data} == {"blue": 1}
        assert {b.team: b.calls for b in operator.usage().data} == {"red": 6, "blue": 1}
        assert operator.usage([], team="blue").total.calls == 1
        assert operator.usage([], team="blue").data == []
    refused = httpx.get(
        f"{url}/v1/usage?team=red", headers={"Authorization": f"Bearer {blue}"}, timeout=60
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    for wrong in ("colour", "team,team", "team;run"):
        assert (
            deployment.admin(url, "GET", "/v1/usage", params={"group_by": wrong}).status_code == 422
        )


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/audit", "/v1/keys"])
def test_a_team_that_does_not_exist_has_no_empty_report(deployment: Deployment, path: str) -> None:
    red = deployment.team("red-team")
    url = deployment.start()
    unknown = deployment.admin(url, "GET", path, params={"team": "redteam"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "team")
    assert "there is no team 'redteam'; did you mean 'red-team'?" in unknown.text
    assert deployment.admin(url, "GET", path, params={"team": "red-team"}).status_code == 200
    # A key of a team is not told which teams there are.
    own = httpx.get(
        url + path,
        params={"team": "redteam"},
        headers={"Authorization": f"Bearer {red}"},
        timeout=60,
    )
    assert own.status_code == 403
    assert "red-team" not in own.text


def test_nothing_more_is_asked_once_a_hard_budget_is_spent(
    deployment: Deployment, judge: ScriptedJudge, clock: Clock
) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
        put = deployment.admin(
            url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 2.5 * CALL_USD, "window": "day"}
        )
        assert put.status_code == 200, put.text
        assert put.json()["unpriced_judges"] == []
        batch = score(url, red, [f"text {i}" for i in range(8)]).json()["groups"][0]
        paid = len(judge.requests)
        assert paid == 3  # the one that reaches the limit is the last one
        assert [r["reason"] for r in batch["rollouts"]].count("budget") == 5
        assert [r["reward"] is None for r in batch["rollouts"]] == [
            r["reason"] is not None for r in batch["rollouts"]
        ]
        assert batch["status"] == "partial"
        clock.advance(CACHE_S)
        more = score(url, red, ["another"])
        assert more.headers["X-Budget-Warning"].startswith("hard budget of")
        assert more.json()["groups"][0]["error"]["code"] == "insufficient_quota"
        with pytest.raises(InsufficientQuota) as caught:
            client.induce("Another prompt.", student_responses=["x"])
        assert (caught.value.status, caught.value.code) == (402, "insufficient_quota")
        assert len(judge.requests) == paid
        known = [
            t for t, r in zip(range(8), batch["rollouts"], strict=True) if r["reward"] is not None
        ]
        stored = score(url, red, [f"text {i}" for i in known]).json()["counts"]
        assert (stored["scored"], len(judge.requests)) == (
            3,
            paid,
        )  # what is paid for is answered as before
        deployment.admin(
            url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 1.0, "window": "day"}
        )
        shown = httpx.get(
            f"{url}/v1/teams/red/budget", headers={"Authorization": f"Bearer {red}"}, timeout=60
        ).json()
        assert shown["spent_usd"] == pytest.approx(3 * CALL_USD)
        clock.advance(CACHE_S)
        assert score(url, red, [f"text {i}" for i in range(8)]).json()["counts"]["scored"] == 8
        assert len(judge.requests) == 8  # nothing was paid twice


def test_a_soft_budget_warns_and_lets_pass(
    deployment: Deployment, capfd: pytest.CaptureFixture[str], clock: Clock
) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    deployment.admin(url, "PUT", "/v1/teams/red/budget?run=r1", json={"soft_usd": CALL_USD / 2})
    first = score(url, red, ["Red."], run=run("r1"))
    assert "X-Budget-Warning" not in first.headers
    clock.advance(CACHE_S)
    assert "X-Budget-Warning" in score(url, red, ["Red."], run=run("r1", 1)).headers
    warned = score(url, red, ["Blue."], run=run("r1", 2))
    assert re.fullmatch(
        r"soft budget of \S+ USD of run r1 reached: \S+ USD spent",
        warned.headers["X-Budget-Warning"],
    )
    assert warned.json()["counts"]["scored"] == 1
    alone = httpx.post(
        f"{url}/v1/rollouts",
        json={
            "group": {"key": "g", "size": 1},
            "prompt": PROMPT,
            "rollout": {"id": "r", "text": "Blue."},
            "reuse": "frozen",
            "run": run("r1", 3),
        },
        headers={"Authorization": f"Bearer {red}"},
        timeout=60,
    )
    assert alone.headers["X-Budget-Warning"] == warned.headers["X-Budget-Warning"]
    assert "X-Budget-Warning" not in score(url, red, ["Blue."], run=run("r2")).headers
    assert capfd.readouterr().out.count("budget_reached") == 1


def test_a_budget_is_overrun_by_one_call_a_worker_at_most(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    """Two services, a hundred calls wanted at once, money for ten."""
    red = deployment.team("red")
    urls = [deployment.start(), deployment.start()]
    with Client(urls[0], red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    deployment.admin(
        urls[0], "PUT", "/v1/teams/red/budget", json={"hard_usd": 10 * CALL_USD, "window": "month"}
    )
    with ThreadPoolExecutor(4) as pool:
        batches = list(
            pool.map(
                lambda i: score(urls[i % 2], red, [f"{i} {j}" for j in range(25)]).json(), range(4)
            )
        )
    assert 10 <= len(judge.requests) <= 10 + len(urls)
    assert sum(b["counts"]["scored"] for b in batches) == len(judge.requests)
    reasons = {r["reason"] for b in batches for g in b["groups"] for r in g["rollouts"]}
    assert reasons == {None, "budget"}
    report = deployment.admin(urls[1], "GET", "/v1/usage").json()["total"]
    assert report["cost_usd"] == pytest.approx(len(judge.requests) * CALL_USD)


def test_a_failed_call_gives_back_what_was_set_aside(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    deployment.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": CALL_USD, "window": "day"}
    )
    judge.script = lambda request, number: 400
    assert score(url, red, ["Red."]).json()["groups"][0]["rollouts"][0]["reason"] == "misconfigured"
    judge.script = lambda request, number: verdicts(request) if offered(request) else 500
    assert score(url, red, ["Red."]).json()["counts"]["scored"] == 1
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"


def test_a_call_that_began_before_there_was_a_budget_counts(
    deployment: Deployment, judge: ScriptedJudge, clock: Clock
) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)

    def budget_first(request: dict[str, Any], number: int) -> str:
        put = deployment.admin(
            url, "PUT", "/v1/teams/red/budget", json={"hard_usd": CALL_USD, "window": "day"}
        )
        assert put.json()["spent_usd"] == 0.0
        return verdicts(request)

    judge.script = budget_first
    assert score(url, red, ["Red."]).json()["counts"]["scored"] == 1
    judge.script = well_behaved
    assert deployment.admin(url, "GET", "/v1/teams/red/budget").json()[
        "spent_usd"
    ] == pytest.approx(CALL_USD)
    clock.advance(CACHE_S)
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"


def test_what_an_endpoint_does_not_state_is_not_free(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    deployment.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": CALL_USD, "window": "day"}
    )
    judge.states_usage = False
    assert score(url, red, ["Red."]).json()["usage"]["cost_usd"] is None
    total = deployment.admin(url, "GET", "/v1/usage").json()["total"]
    assert (total["calls"], total["unpriced_calls"]) == (1, 1)
    assert (
        deployment.admin(url, "GET", "/v1/teams/red/budget").json()["spent_usd"] > CALL_USD
    )  # what was set aside
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"


def test_budgets_that_make_no_sense_and_budgets_of_others(deployment: Deployment) -> None:
    red, blue = deployment.team("red"), deployment.team("blue")
    url = deployment.start(judge_price_output=None)
    for body in (
        {},
        {"hard_usd": -1},
        {"hard_usd": 1, "soft_usd": 2},
        {"hard_usd": 1, "window": "year"},
        {"hard_usd": "1"},
        {"hard_usd": 1e12},
    ):
        assert deployment.admin(url, "PUT", "/v1/teams/red/budget", json=body).status_code == 422, (
            body
        )
    assert deployment.admin(url, "GET", "/v1/teams/red/budget").status_code == 404
    missing = deployment.admin(url, "PUT", "/v1/teams/green/budget", json={"hard_usd": 1})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "team_not_found")
    made = deployment.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 1, "soft_usd": 0.5}
    ).json()
    assert (made["window"], made["run"], made["unpriced_judges"]) == ("month", None, ["default"])
    of_run = deployment.admin(
        url, "PUT", "/v1/teams/red/budget?run=a/b", json={"hard_usd": 1}
    ).json()
    assert (of_run["window"], of_run["run"]) == ("total", "a/b")
    seen = {
        name: httpx.get(
            f"{url}/v1/teams/red/budget", headers={"Authorization": f"Bearer {key}"}, timeout=60
        ).status_code
        for name, key in (("red", red), ("blue", blue))
    }
    assert seen == {"red": 200, "blue": 404}
    assert deployment.admin(url, "DELETE", "/v1/teams/red/budget?run=a/b").status_code == 204
    assert deployment.admin(url, "DELETE", "/v1/teams/red/budget?run=a/b").status_code == 404
    assert deployment.admin(url, "GET", "/v1/teams/red/budget").status_code == 200
