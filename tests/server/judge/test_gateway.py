"""The gateway's queue and its canned question, with endpoints that are functions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx2
import openai
import pytest

from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.errors import Unavailable
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.judge.breaker import Breaker, BreakerState
from markscheme_server.judge.endpoint import Endpoint
from markscheme_server.judge.gateway import Gateway
from markscheme_server.judge.queue import CallQueue
from markscheme_server.judge_settings import JudgeSettings
from markscheme_server.limits.concurrency import ConcurrencyLimiter
from markscheme_server.limits.quotas import Quotas
from markscheme_server.limits.sliding_window import SlidingWindows

Send = Callable[[Endpoint], Awaitable[object]]


async def free() -> None:
    """Reserve nothing."""


async def answers(_: Endpoint) -> str:
    return "yes"


async def breaks(_: Endpoint) -> str:
    raise openai.APIConnectionError(request=httpx2.Request("POST", "http://judge.test/v1"))


def gateway(
    *,
    canned: Send = answers,
    queue_limit: int = 100,
    concurrency: int = 4,
    probe_s: float = 15.0,
) -> Gateway:
    settings = JudgeSettings(model="m", concurrency=concurrency)
    endpoint = Endpoint("judge.test", cast(Any, None), Breaker(probe_s))
    made = Gateway(
        "j",
        settings,
        [endpoint],
        ConcurrencyLimiter("j", concurrency, owner="a"),
        Quotas("j", SlidingWindows(), rpm=None, tpm=None),
        CallQueue(queue_limit),
    )
    made.ask_canned = canned
    return made


async def ask(to: Gateway, send: Send, team: str = "a") -> object:
    context = CallContext(Deadline(asyncio.get_running_loop().time() + 5), team=team)
    return await to.call(send, role="verifier", tokens=1, context=context, reserve_budget=free)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markscheme_server.judge.gateway.backoff_s", lambda attempt: 0.0)
    monkeypatch.setattr("markscheme_server.judge.gateway.BREAKER_WAIT_S", 0.0)


async def test_one_teams_poisonous_material_does_not_open_the_breaker() -> None:
    asked = 0

    async def canned(_: Endpoint) -> str:
        nonlocal asked
        asked += 1
        return "yes"

    judge = gateway(canned=canned)
    for _ in range(30):
        with pytest.raises(JudgeFailure):
            await ask(judge, breaks, "poisonous")
        assert await ask(judge, answers, "other") == "yes"
    assert judge.endpoints[0].breaker.state is BreakerState.CLOSED
    assert 1 <= asked <= 2  # an answer is believed for a while


async def test_an_outage_opens_the_breaker_with_one_question_and_sends_nothing_more() -> None:
    sent = canned = 0

    async def out(endpoint: Endpoint) -> object:
        nonlocal sent
        sent += 1
        return await breaks(endpoint)

    async def question(endpoint: Endpoint) -> object:
        nonlocal canned
        canned += 1
        return await breaks(endpoint)

    judge = gateway(canned=question)
    for _ in range(40):
        with pytest.raises(JudgeFailure):
            await ask(judge, out)
    assert judge.endpoints[0].breaker.state is BreakerState.OPEN
    assert (canned, 10 <= sent <= 15) == (1, True)


async def test_an_open_breaker_is_probed_with_the_question_and_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("markscheme_server.judge.gateway.BREAKER_WAIT_S", 5.0)
    back, sent = False, []

    async def question(endpoint: Endpoint) -> object:
        return await answers(endpoint) if back else await breaks(endpoint)

    async def call(endpoint: Endpoint) -> object:
        sent.append(back)
        return await question(endpoint)

    judge = gateway(canned=question, probe_s=0.02)
    now, breaker = asyncio.get_running_loop().time(), judge.endpoints[0].breaker
    for _ in range(10):
        breaker.record(now, failed=True)
    assert breaker.begin_question(now)
    breaker.end_question(now, answered=False)
    waiting = [asyncio.ensure_future(ask(judge, call)) for _ in range(8)]
    await asyncio.sleep(0.1)  # several probes
    assert sent == []
    back = True
    assert await asyncio.gather(*waiting) == ["yes"] * 8
    assert sent == [True] * 8


async def test_a_team_that_fills_the_queue_leaves_others_their_even_share() -> None:
    judge = gateway(queue_limit=100)
    held = [judge.reserve(50, "many"), judge.reserve(50, "many")]
    with pytest.raises(Unavailable):
        judge.reserve(1, "many")
    held += [judge.reserve(25, "other"), judge.reserve(25, "other")]
    with pytest.raises(Unavailable):
        judge.reserve(1, "other")  # its even share is half of the queue
    with pytest.raises(Unavailable):
        judge.reserve(1, "many")
    for one in held:
        one.release()
    held = [
        judge.reserve(60, "other"),
        judge.reserve(40, "other"),
    ]  # a lone team may fill it


async def test_a_team_without_reserved_calls_is_always_admitted() -> None:
    judge = gateway(queue_limit=10)
    held = [judge.reserve(500, "many"), judge.reserve(400, "other")]
    for team in ("many", "other"):
        with pytest.raises(Unavailable):
            judge.reserve(1, team)
    held[1].release()
    held.append(judge.reserve(400, "other"))


async def test_a_reservation_ends_with_the_task_that_made_it() -> None:
    judge = gateway(queue_limit=10)

    async def request() -> None:
        judge.reserve(10, "many")  # the response is dropped before it has begun

    await asyncio.create_task(request())
    await asyncio.sleep(0)  # the end of a task is announced in the next turn of the loop
    judge.reserve(10, "many")


async def test_one_call_behind_another_teams_many_waits_for_one_of_them() -> None:
    judge, begun = gateway(concurrency=4), list[str]()
    ends = [asyncio.Event() for _ in range(41)]

    def call(team: str, end: asyncio.Event) -> Send:
        async def send(_: Endpoint) -> None:
            begun.append(team)
            await end.wait()

        return send

    many = [asyncio.ensure_future(ask(judge, call("many", end), "many")) for end in ends[:40]]
    await asyncio.sleep(0.01)
    one = asyncio.ensure_future(ask(judge, call("one", ends[40]), "one"))
    await asyncio.sleep(0.01)
    assert begun == ["many"] * 4
    ends[0].set()
    await asyncio.sleep(0.01)
    assert begun == ["many"] * 4 + ["one"]
    for end in ends:
        end.set()
    await asyncio.gather(*many, one)
