"""The ledger and budgets, over the wire, on both databases: what was spent is known, and no more than was allowed."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.judge import ScriptedJudge, offered, verdicts, well_behaved
from fakes.processes import PATIENCE_S, command
from fakes.service import running
from markscheme import Client
from markscheme.errors import InsufficientQuota, NotFound
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.config import Settings
from markscheme_server.domain.usage import to_nano
from markscheme_server.store import usage as usage_store
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.budgets import BudgetStore, HoldRequest
from markscheme_server.store.engine.database import ALL_TEAMS, NO_TEAM, team_scope
from markscheme_server.store.maintenance.migrate import migrate
from markscheme_server.store.store import Store
from markscheme_server.store.tables import audit_entries, budgets, holds

PEPPER, OPERATOR = "a pepper for the tests", "the operator's own key"
PRICES = {"judge_price_input": 1000.0, "judge_price_cached": 500.0, "judge_price_output": 1000.0}
CALL_USD = (6 * 1000 + 4 * 500 + 5 * 1000) / 1e6
"""The scripted judge states 10 tokens in, 4 of them cached, and 5 out."""
PROMPT = "Name a colour."
CRITERIA = [{"text": "It names red.", "points": 1}]


class Office:
    """Teams with a key each, and services on one database whose judge has prices."""

    def __init__(self, url: str, serve: Callable[..., str]) -> None:
        self.url, self._serve = url, serve
        self.keys: dict[str, str] = {}

    def team(self, name: str, *scopes: str) -> str:
        async def make() -> str:
            store = Store(Settings(_env_file=None, database_url=self.url).sqlalchemy_url)
            try:
                await migrate(store.database)
                identity = Authenticator(store.teams, operator_key=None, pepper=PEPPER)
                await identity.create_team(name, actor=Actor())
                chosen: Any = scopes or ("read", "score", "induce")
                secret, _ = await identity.create_key(name, chosen, actor=Actor())
                return secret
            finally:
                await store.close()

        self.keys[name] = asyncio.run(make())
        return self.keys[name]

    def start(self, **settings: Any) -> str:
        return self._serve(**settings)

    def admin(self, url: str, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(
            method, url + path, headers={"Authorization": f"Bearer {OPERATOR}"}, timeout=30, **more
        )


@pytest.fixture
def office(database_url: str, model_settings: dict[str, Any]) -> Iterator[Office]:
    with ExitStack() as stack:
        yield Office(
            database_url,
            lambda **settings: stack.enter_context(
                running(
                    Settings(
                        _env_file=None,
                        database_url=database_url,
                        key_pepper=PEPPER,
                        api_key=OPERATOR,
                        **(model_settings | PRICES | settings),
                    )
                )
            ),
        )


def group(texts: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": "g",
        "prompt": PROMPT,
        "rollouts": [{"id": f"r{i}", "text": t} for i, t in enumerate(texts)],
    } | more


def run(name: str, step: int = 0) -> dict[str, Any]:
    return {"id": name, "step": step}


def score(url: str, key: str, texts: list[str], **more: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/scores",
        json={"groups": [group(texts)], "reuse": "frozen"} | more,
        timeout=30,
        headers={"Authorization": f"Bearer {key}"},
    )


def test_what_was_spent_and_saved_is_told_by_whatever_one_asks_for(
    office: Office, judge: ScriptedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    red, blue = office.team("red"), office.team("blue")
    url = office.start()
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
            patch.setattr(usage_store, "MOST_BUCKETS", 1)
            cut = client.usage(["run", "role"])
            assert (len(cut.data), cut.truncated, cut.total) == (1, True, report.total)
        assert client.usage(["judge"], until=today).data == []
        assert client.usage(["judge"], since=today + timedelta(days=1)).total.calls == 0

        assert {b.team: b.calls for b in other.usage().data} == {"blue": 1}
        assert {b.team: b.calls for b in operator.usage().data} == {"red": 6, "blue": 1}
        assert operator.usage([], team="blue").total.calls == 1
        assert operator.usage([], team="blue").data == []
    refused = httpx.get(f"{url}/v1/usage?team=red", headers={"Authorization": f"Bearer {blue}"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    for wrong in ("colour", "team,team", "team;run"):
        assert office.admin(url, "GET", "/v1/usage", params={"group_by": wrong}).status_code == 422


def test_nothing_more_is_asked_once_a_hard_budget_is_spent(
    office: Office, judge: ScriptedJudge
) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
        put = office.admin(
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
        assert _settles(
            lambda: score(url, red, ["another"]).headers.get("X-Budget-Warning", "")[:14],
            "hard budget of",
        )
        more = score(url, red, ["another"])
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
        office.admin(url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 1.0, "window": "day"})
        shown = httpx.get(
            f"{url}/v1/teams/red/budget", headers={"Authorization": f"Bearer {red}"}
        ).json()
        assert shown["spent_usd"] == pytest.approx(3 * CALL_USD)
        assert _settles(
            lambda: score(url, red, [f"text {i}" for i in range(8)]).json()["counts"]["scored"], 8
        )
        assert len(judge.requests) == 8  # nothing was paid twice


def test_a_soft_budget_warns_and_lets_pass(
    office: Office, capfd: pytest.CaptureFixture[str]
) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    office.admin(url, "PUT", "/v1/teams/red/budget?run=r1", json={"soft_usd": CALL_USD / 2})
    first = score(url, red, ["Red."], run=run("r1"))
    assert "X-Budget-Warning" not in first.headers
    assert _settles(
        lambda: "X-Budget-Warning" in score(url, red, ["Red."], run=run("r1", 1)).headers, True
    )
    warned = score(url, red, ["Blue."], run=run("r1", 2))
    assert re.fullmatch(
        r"soft budget of \S+ USD of run r1 reached: \S+ USD spent",
        warned.headers["X-Budget-Warning"],
    )
    assert warned.json()["counts"]["scored"] == 1
    assert "X-Budget-Warning" not in score(url, red, ["Blue."], run=run("r2")).headers
    assert capfd.readouterr().out.count("budget_reached") == 1


def test_a_budget_is_overrun_by_one_call_a_worker_at_most(
    office: Office, judge: ScriptedJudge
) -> None:
    """Two services, a hundred calls wanted at once, money for ten."""
    red = office.team("red")
    urls = [office.start(), office.start()]
    with Client(urls[0], red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    office.admin(
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
    report = office.admin(urls[1], "GET", "/v1/usage").json()["total"]
    assert report["cost_usd"] == pytest.approx(len(judge.requests) * CALL_USD)


def test_a_failed_call_gives_back_what_was_set_aside(office: Office, judge: ScriptedJudge) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    office.admin(url, "PUT", "/v1/teams/red/budget", json={"hard_usd": CALL_USD, "window": "day"})
    judge.script = lambda request, number: 400
    assert score(url, red, ["Red."]).json()["groups"][0]["rollouts"][0]["reason"] == "misconfigured"
    judge.script = lambda request, number: verdicts(request) if offered(request) else 500
    assert score(url, red, ["Red."]).json()["counts"]["scored"] == 1
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"


def test_a_call_that_began_before_there_was_a_budget_counts(
    office: Office, judge: ScriptedJudge
) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)

    def budget_first(request: dict[str, Any], number: int) -> str:
        put = office.admin(
            url, "PUT", "/v1/teams/red/budget", json={"hard_usd": CALL_USD, "window": "day"}
        )
        assert put.json()["spent_usd"] == 0.0
        return verdicts(request)

    judge.script = budget_first
    assert score(url, red, ["Red."]).json()["counts"]["scored"] == 1
    judge.script = well_behaved
    assert office.admin(url, "GET", "/v1/teams/red/budget").json()["spent_usd"] == pytest.approx(
        CALL_USD
    )
    time.sleep(0.6)  # a budget is known everywhere within the second
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"


def test_what_an_endpoint_does_not_state_is_not_free(office: Office, judge: ScriptedJudge) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    office.admin(url, "PUT", "/v1/teams/red/budget", json={"hard_usd": CALL_USD, "window": "day"})
    judge.states_usage = False
    assert score(url, red, ["Red."]).json()["usage"]["cost_usd"] is None
    total = office.admin(url, "GET", "/v1/usage").json()["total"]
    assert (total["calls"], total["unpriced_calls"]) == (1, 1)
    assert (
        office.admin(url, "GET", "/v1/teams/red/budget").json()["spent_usd"] > CALL_USD
    )  # what was set aside
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"


def test_budgets_that_make_no_sense_and_budgets_of_others(office: Office) -> None:
    red, blue = office.team("red"), office.team("blue")
    url = office.start(judge_price_output=None)
    for body in (
        {},
        {"hard_usd": -1},
        {"hard_usd": 1, "soft_usd": 2},
        {"hard_usd": 1, "window": "year"},
        {"hard_usd": "1"},
        {"hard_usd": 1e12},
    ):
        assert office.admin(url, "PUT", "/v1/teams/red/budget", json=body).status_code == 422, body
    assert office.admin(url, "GET", "/v1/teams/red/budget").status_code == 404
    missing = office.admin(url, "PUT", "/v1/teams/green/budget", json={"hard_usd": 1})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "team_not_found")
    made = office.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 1, "soft_usd": 0.5}
    ).json()
    assert (made["window"], made["run"], made["unpriced_judges"]) == ("month", None, ["default"])
    of_run = office.admin(url, "PUT", "/v1/teams/red/budget?run=a/b", json={"hard_usd": 1}).json()
    assert (of_run["window"], of_run["run"]) == ("total", "a/b")
    seen = {
        name: httpx.get(
            f"{url}/v1/teams/red/budget", headers={"Authorization": f"Bearer {key}"}
        ).status_code
        for name, key in (("red", red), ("blue", blue))
    }
    assert seen == {"red": 200, "blue": 404}
    assert office.admin(url, "DELETE", "/v1/teams/red/budget?run=a/b").status_code == 204
    assert office.admin(url, "DELETE", "/v1/teams/red/budget?run=a/b").status_code == 404
    assert office.admin(url, "GET", "/v1/teams/red/budget").status_code == 200


def test_who_did_what_is_on_the_trail_for_good(office: Office) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        made = client.create_rubric(PROMPT, CRITERIA)
        client.change_rubric(made.id, visibility="organisation", retired=True)
        client.fork_rubric(made.id, [{"text": "It names blue.", "points": 1}])
        with pytest.raises(NotFound):
            client.change_rubric("rub_0", retired=True)
    office.admin(url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 1, "window": "day"})
    entries = office.admin(url, "GET", "/v1/audit").json()["data"]
    prefix = red[:11]
    of_rubrics = [
        (e["action"], e["team"], e["key"]) for e in entries if e["subject"].startswith("rubric:")
    ]
    assert of_rubrics == [
        ("rubric.forked", "red", prefix),
        ("rubric.changed", "red", prefix),
        ("rubric.imported", "red", prefix),
    ]
    changed = office.admin(url, "GET", "/v1/audit", params={"action": "rubric.changed"}).json()[
        "data"
    ]
    assert [e["detail"] for e in changed] == [{"visibility": "organisation", "retired": True}]
    budget = office.admin(url, "GET", "/v1/audit", params={"action": "budget.set"}).json()["data"]
    assert [(e["team"], e["key"], e["detail"]["hard_usd"]) for e in budget] == [
        ("default", None, 1.0)
    ]
    first = office.admin(url, "GET", "/v1/audit", params={"limit": 2, "team": "red"}).json()
    rest = office.admin(
        url, "GET", "/v1/audit", params={"after": first["data"][-1]["id"], "team": "red"}
    ).json()
    assert first["has_more"]
    assert not rest["has_more"]
    assert [e["id"] for e in first["data"] + rest["data"]] == [
        e["id"] for e in entries if e["team"] == "red"
    ]
    assert (
        httpx.get(f"{url}/v1/audit", headers={"Authorization": f"Bearer {red}"}).status_code == 403
    )


def _settles(look: Callable[[], Any], to: Any) -> bool:
    """Whether it comes to that: a budget is remembered for half a second."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if look() == to:
            return True
    return False


@pytest.fixture
async def store(database_url: str) -> Any:
    made = Store(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
    await migrate(made.database)
    await made.teams.create("red", Actor())
    yield made
    await made.close()


async def test_a_dead_processs_holds_are_believed_until_their_lease_ends(store: Store) -> None:
    ours, dead = (
        BudgetStore(store.database, owner=name, lease_s=60.0) for name in ("own_1", "own_2")
    )
    await ours.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    assert await dead.hold(HoldRequest("hold_1", "red", None, to_nano(0.9))) == "granted"
    assert (
        await ours.hold(HoldRequest("hold_2", "red", None, to_nano(0.9))) == "granted"
    )  # each process may have one more
    assert await ours.hold(HoldRequest("hold_3", "red", None, to_nano(0.9))) == "wait"
    await ours.release("red", "hold_2")
    assert await ours.hold(HoldRequest("hold_4", "red", None, to_nano(0.05))) == "granted"
    async with store.database.writing(ALL_TEAMS) as connection:
        ended = sa.update(holds).where(holds.c.owner == "own_2").values(expires_at=0)
        await connection.execute(ended)
    assert await ours.hold(HoldRequest("hold_5", "red", None, to_nano(0.9))) == "granted"


async def test_a_window_that_ended_begins_anew(store: Store) -> None:
    await store.budgets.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    async with store.database.writing(ALL_TEAMS) as connection:
        await connection.execute(
            sa.update(budgets).values(since=budgets.c.since - 86_400, spent_usd=to_nano(5.0))
        )
    [budget] = await store.budgets.find("red")
    assert budget.spent_usd == 0.0
    assert budget.since.date() == datetime.now(UTC).date()
    assert await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(0.5))) == "granted"


async def test_no_entry_of_the_trail_is_changed_or_removed(store: Store) -> None:
    async with store.database.writing(team_scope("red")) as connection:
        await record(connection, Actor("red"), "test", "team:red")
    for statement in (sa.update(audit_entries).values(action="other"), sa.delete(audit_entries)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            async with store.database.writing(ALL_TEAMS) as connection:
                await connection.execute(statement)
    async with store.database.reading(NO_TEAM) as connection:
        hidden = store.database.engine.dialect.name == "postgresql"
        assert len((await connection.execute(sa.select(audit_entries))).all()) == (
            0 if hidden else 2
        )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_commands_show_usage_and_set_budgets(office: Office, tmp_path: Any) -> None:
    red = office.team("red")
    url = office.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    score(url, red, ["Red."], run=run("nightly"))
    shown = command(
        "usage", "--group-by", "run", "--url", url, directory=tmp_path, settings={"api_key": red}
    )
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"nightly +1 +0 +10 +4 +5 +{CALL_USD:.4f}", shown.stdout)
    office_settings = {"database_url": office.url}
    made = command(
        "teams",
        "budget",
        "red",
        "--hard-usd",
        "2",
        "--window",
        "day",
        directory=tmp_path,
        settings=office_settings,
    )
    assert re.search(rf"\(all\) +day +2 +- +{CALL_USD:.4f} +20", made.stdout), made.stderr
    for words, said in (
        (("red", "--hard-usd", "1", "--soft-usd", "2"), "cannot be larger"),
        (("green", "--hard-usd", "1"), "there is no team"),
        (("red", "--window", "day"), "say --hard-usd"),
        (("red", "--remove", "--run", "r"), "no such budget"),
    ):
        refused = command("teams", "budget", *words, directory=tmp_path, settings=office_settings)
        assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
    assert office.admin(url, "GET", "/v1/teams/red/budget").json()["hard_usd"] == 2.0
    gone = command(
        "teams", "budget", "red", "--remove", directory=tmp_path, settings=office_settings
    )
    assert "no budget" in gone.stdout
    wrong = command(
        "usage", "--group-by", "colour", "--url", url, directory=tmp_path, settings={"api_key": red}
    )
    assert wrong.returncode == 1
    assert "there is no 'colour'" in wrong.stderr
