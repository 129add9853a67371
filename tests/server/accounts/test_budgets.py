"""Test budgets when endpoints report nonsense, write the maximum, or get no time to answer."""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.judge import ScriptedJudge, verdicts
from fakes.processes import PATIENCE_S, with_enough_time
from fakes.service import running
from markscheme import Client
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.config import Settings
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.usage import JudgeUsage, to_nano
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import HoldRequest
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.ledger import CallDescription
from markscheme_server.store.store import Store
from markscheme_server.store.tables import budgets, judge_calls
from markscheme_server.store.verdicts import JudgeReply, VerdictStore
from server.deployment import CALL_USD, CRITERIA, PRICES, Deployment, group, score
from server.organisation import PEPPER, PROMPT

JSON = {"content-type": "application/json"}


def begin(
    deployment: Deployment, hard_usd: float, window: str = "day", **settings: Any
) -> tuple[str, str]:
    """Start a service; return its URL and the key of a team with a rubric and a budget."""
    red = deployment.team("red")
    url = deployment.start(**settings)
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    deployment.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": hard_usd, "window": window}
    )
    return url, red


def spent(deployment: Deployment, url: str) -> float:
    return float(deployment.admin(url, "GET", "/v1/teams/red/budget").json()["spent_usd"])


def total(deployment: Deployment, url: str) -> dict[str, Any]:
    return dict(deployment.admin(url, "GET", "/v1/usage?team=red").json()["total"])


def most(request: dict[str, Any]) -> float:
    """Return the most that the request can cost in dollars, at the tests' prices."""
    return (
        sum(len(m["content"].encode()) for m in request["messages"]) + request["max_tokens"]
    ) / 1000


def eventually(look: Any, expected: Any) -> Any:
    until = time.monotonic() + PATIENCE_S
    while (seen := look()) != expected and time.monotonic() < until:
        time.sleep(0.02)
    return seen


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens": "10", "completion_tokens": "5"},
        {"total_tokens": 15},
        {"prompt_tokens": -10, "completion_tokens": -5},
    ],
)
def test_nonsense_settles_at_what_was_held_and_stays_settled(
    deployment: Deployment, judge: ScriptedJudge, usage: Any
) -> None:
    url, red = begin(deployment, CALL_USD)
    judge.usage = usage
    assert score(url, red, ["Red."]).json()["usage"]["cost_usd"] is None
    held = most(judge.requests[0])
    assert score(url, red, ["Blue."]).json()["groups"][0]["rollouts"][0]["reason"] == "budget"
    assert len(judge.requests) == 1
    assert (total(deployment, url)["unpriced_calls"], total(deployment, url)["cost_usd"]) == (
        1,
        0.0,
    )
    assert spent(deployment, url) == pytest.approx(held, abs=1e-9)
    put = deployment.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 2 * CALL_USD, "window": "month"}
    )
    assert put.json()["spent_usd"] == spent(deployment, url) == pytest.approx(held, abs=1e-9)


def test_a_new_window_counts_what_was_settled_in_it(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    url, red = begin(deployment, 1000.0)
    judge.usage = {}
    score(url, red, ["Red."])

    async def turn() -> None:
        """Date the budget's row back to yesterday."""
        store = Store(Settings(_env_file=None, database_url=deployment.url).sqlalchemy_url)
        try:
            async with store.database.writing(ALL_TEAMS) as connection:
                await connection.execute(sa.update(budgets).values(since=budgets.c.since - 86_400))
        finally:
            await store.close()

    asyncio.run(turn())
    assert spent(deployment, url) == pytest.approx(most(judge.requests[0]), abs=1e-9)


def test_a_first_wave_of_the_longest_replies_overruns_by_one_call_at_most(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    url, red = begin(deployment, 20.0)
    judge.usage = {"prompt_tokens": 500, "completion_tokens": 16_000}

    def slow(request: dict[str, Any], _number: int) -> str:
        time.sleep(0.1)
        return verdicts(request)

    judge.script = slow
    done = score(url, red, [f"text {i}" for i in range(30)]).json()
    dearest = max(most(request) for request in judge.requests)
    assert 20.0 <= spent(deployment, url) <= 20.0 + dearest
    assert done["counts"]["scored"] == len(judge.requests)
    assert total(deployment, url)["completion_tokens"] == sum(
        r["max_tokens"] for r in judge.requests
    )


def test_asking_again_is_covered_and_does_not_wait_for_itself(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    url, red = begin(deployment, 1.5 * CALL_USD)
    judge.script = lambda request, number: "no JSON"
    began = time.monotonic()
    batch = score(url, red, ["Red."]).json()
    assert time.monotonic() - began < 20  # its request would end after 60 s
    assert (len(judge.requests), batch["groups"][0]["rollouts"][0]["reason"]) == (2, "budget")
    assert spent(deployment, url) == pytest.approx(2 * CALL_USD)
    assert total(deployment, url)["failed_calls"] == 1


def test_one_odd_reply_slows_nobody_down(deployment: Deployment, judge: ScriptedJudge) -> None:
    url, red = begin(deployment, 1000.0)
    usual = judge.usage
    judge.usage = {"prompt_tokens": 10, "completion_tokens": 2**31 - 1}
    score(url, red, ["odd"])
    judge.usage = usual
    score(url, red, ["even"])
    held = [request["max_tokens"] for request in judge.requests]
    assert held[0] == held[1]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_call_that_was_sent_is_on_the_books_whoever_left(
    deployment: Deployment, judge: ScriptedJudge, leaves: bool
) -> None:
    url, red = begin(deployment, 100.0)

    def slow(request: dict[str, Any], _number: int) -> str:
        judge.released.wait(PATIENCE_S)
        return verdicts(request)

    judge.script = slow
    body = {"groups": [group(["Red.", "Blue."])], "reuse": "frozen"}
    headers = {"Authorization": f"Bearer {red}"}
    if leaves:
        leaving = HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
        leaving.request("POST", "/v1/scores", json.dumps(body), headers | JSON)
        assert eventually(lambda: len(judge.requests), 2) == 2
        leaving.close()
    else:

        def send(limit_s: float) -> httpx.Response:
            timed = headers | {"X-Deadline-Ms": str(round(limit_s * 1000))}
            return httpx.post(f"{url}/v1/scores", json=body, headers=timed, timeout=60)

        late = with_enough_time(send, lambda _: bool(judge.requests), first_s=1.5)
        assert late.json()["counts"]["unscored"] == 2
        usage = late.json()["usage"]
        assert (usage["judge_calls"], usage["cost_usd"]) == (len(judge.requests), None)
    sent = len(judge.requests)
    assert 1 <= sent <= 2
    assert eventually(lambda: total(deployment, url)["calls"], sent) == sent
    books = total(deployment, url)
    assert (books["failed_calls"], books["unpriced_calls"], books["cost_usd"]) == (sent, sent, 0.0)
    assert spent(deployment, url) == pytest.approx(sum(map(most, judge.requests)), abs=1e-9)


def test_calls_whose_verdicts_are_stored_too_late_are_in_the_answers_usage(
    deployment: Deployment, judge: ScriptedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, answered = VerdictStore._save, threading.Event()

    async def save_late(store: VerdictStore, replies: Sequence[JudgeReply]) -> list[bool]:
        await asyncio.to_thread(answered.wait, PATIENCE_S)
        return await save(store, replies)

    monkeypatch.setattr(VerdictStore, "_save", save_late)
    url, red = begin(deployment, 100.0)

    def send(limit_s: float) -> Any:
        return httpx.post(
            f"{url}/v1/scores",
            json={"groups": [group(["Red.", "Blue."])], "reuse": "frozen"},
            headers={
                "Authorization": f"Bearer {red}",
                "X-Deadline-Ms": str(round(limit_s * 1000)),
            },
            timeout=60,
        ).json()

    late = with_enough_time(send, lambda _: bool(judge.requests), first_s=1.5)
    answered.set()
    sent = len(judge.requests)
    assert (late["counts"]["scored"], late["usage"]["judge_calls"]) == (0, sent)
    assert eventually(lambda: total(deployment, url)["calls"], sent) == sent


def test_a_call_cut_off_by_the_end_of_the_service_is_on_the_books(
    deployment: Deployment, judge: ScriptedJudge, model_settings: dict[str, Any]
) -> None:
    url, red = begin(deployment, 100.0)

    def stuck(request: dict[str, Any], _number: int) -> str:
        judge.released.wait(PATIENCE_S)
        return verdicts(request)

    judge.script = stuck
    more = {"judge_timeout_s": 60.0}
    ending = Settings(
        _env_file=None,
        database_url=deployment.url,
        key_pepper=PEPPER,
        **(model_settings | PRICES | more),
    )
    with ThreadPoolExecutor() as pool, running(ending, in_flight_s=0) as ends:
        pool.submit(score, ends, red, ["Red."])
        assert eventually(lambda: len(judge.requests), 1) == 1
    books = total(deployment, url)
    assert (books["calls"], books["failed_calls"], books["unpriced_calls"]) == (1, 1, 1)
    assert spent(deployment, url) == pytest.approx(most(judge.requests[0]), abs=1e-9)


async def test_what_a_cancelled_question_sent_is_recorded_before_the_end(store: Store) -> None:
    budgets = BudgetService(store.budgets, store.ledger)
    await store.budgets.put("red", None, hard_usd=9.0, soft_usd=None, window="day", actor=Actor())

    async def ask(cost: int, sent: asyncio.Event) -> None:
        about = CallDescription("red", "run", "verifier", "judge")
        context = CallContext(Deadline(asyncio.get_running_loop().time() + 5))
        async with budgets.reserve(about, context) as budget:
            await budget.hold(to_nano(1.0), context.deadline)
            budget.usage += JudgeUsage(bool(cost), unpriced_calls=bool(cost), unknown=cost)
            sent.set()
            await asyncio.Event().wait()

    sent = [asyncio.Event(), asyncio.Event()]
    asking = [
        asyncio.ensure_future(ask(cost, event))
        for cost, event in zip((to_nano(0.75), 0), sent, strict=True)
    ]
    for event in sent:
        await event.wait()
    for task in asking:
        task.cancel()
    await budgets.drain(1.0)
    await store.drain()
    async with store.database.reading(ALL_TEAMS) as connection:
        [row] = (await connection.execute(sa.select(judge_calls))).all()
    assert (row.failure, row.unpriced_calls, row.settled_usd, row.run_id) == (
        "abandoned",
        1,
        to_nano(0.75),
        "run",
    )
    [budget] = await store.budgets.find("red")
    assert budget.spent_usd == 0.75
    assert (
        await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(8.25))) == "granted"
    )  # nothing else is held


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_question_waits_for_money_no_longer_than_its_request(store: Store) -> None:
    budgets = BudgetService(store.budgets, store.ledger)
    await store.budgets.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    about = CallDescription("red", None, "verifier", "judge")
    context = CallContext(Deadline(asyncio.get_running_loop().time() + 0.1))
    async with budgets.reserve(about, context) as first:
        await first.hold(to_nano(0.75), context.deadline)
        with pytest.raises(JudgeFailure, match="no money free within the request's time") as late:
            async with budgets.reserve(about, context) as second:
                await second.hold(to_nano(0.5), context.deadline)
        assert late.value.reason == "timeout"
        await asyncio.wait_for(budgets.drain(0.01), 5)  # it does not wait for the first
    assert (
        await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(1.0))) == "granted"
    )  # nothing else is held


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_is_granted_to_a_caller_who_has_left_is_given_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = BudgetService(store.budgets, store.ledger)
    await store.budgets.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    hold, asked = store.budgets.hold, asyncio.Event()

    async def slow(request: HoldRequest) -> str:
        asked.set()
        await asyncio.sleep(0.02)
        return await hold(request)

    async def ask() -> None:
        context = CallContext(Deadline(asyncio.get_running_loop().time() + 5))
        about = CallDescription("red", None, "verifier", "judge")
        async with budgets.reserve(about, context) as budget:
            await budget.hold(to_nano(0.75), context.deadline)

    monkeypatch.setattr(store.budgets, "hold", slow)
    asking = asyncio.ensure_future(ask())
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await budgets.drain(5)
    assert await hold(HoldRequest("hold_1", "red", None, to_nano(1.0))) == "granted"
