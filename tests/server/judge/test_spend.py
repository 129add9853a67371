"""Test a request's recorded cost: its maximum when sent, then the endpoint's figure if valid."""

from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from markscheme_server.domain.call_context import Deadline, SpendGuard
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.judge.refusals import Refusal, RefusalKind
from markscheme_server.judge.spend import RequestCost, Spending
from markscheme_server.judge_settings import JudgeSettings

PRICED = JudgeSettings(model="m", price_input=2.0, price_output=8.0)
UNPRICED = JudgeSettings(model="m")
BYTES, LONGEST = 1000, 100
MOST = BYTES * 2000 + LONGEST * 8000
UNKNOWN = JudgeUsage(1, unpriced_calls=1, unknown=MOST)
FREE = JudgeUsage(1)


def sent(settings: JudgeSettings = PRICED) -> tuple[SpendGuard, RequestCost]:
    budget = SpendGuard()
    return budget, Spending(settings, "judge", "verifier", budget, Deadline(0.0)).begin(
        BYTES, LONGEST
    )


def answer(usage: Any, text: str = "said") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def booked(usage: Any, **more: Any) -> JudgeUsage:
    budget, request = sent()
    request.on_answer(answer(usage, **more))
    return budget.usage


def stated(prompt: Any, reply: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": reply} | more


def test_a_request_is_booked_at_its_most_when_it_is_sent() -> None:
    assert sent()[0].usage == UNKNOWN


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "15",
        15,
        {"total_tokens": 15},
        {"prompt_tokens": 10},
        {"completion_tokens": 5},
        stated("10", "5"),
        stated(None, None),
        stated(10, None),
        stated(True, True),
        stated([10], {}),
        stated(-10, -5),
        stated(10, -1),
        stated(10.5, 5),
        stated(float("inf"), 5),
        stated(float("nan"), 5),
        stated(10**18, 5),
        stated(10, 2**31),
        stated(0, 0),
        stated(0, 5),
        stated(10, 0),
    ],
)
def test_what_is_not_stated_or_cannot_be_stays_at_the_most(usage: Any) -> None:
    of = booked(usage)
    assert (of.calls, of.unpriced_calls, of.cost, of.settled) == (1, 1, 0, MOST)
    assert of.cost_usd is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (stated(10, 5), JudgeUsage(1, 10, 5, 0, 60_000)),
        (stated(10.0, 5.0), JudgeUsage(1, 10, 5, 0, 60_000)),
        (
            stated(10, 5, prompt_tokens_details={"cached_tokens": "4"}),
            JudgeUsage(1, 10, 5, 0, 60_000),
        ),
        (
            stated(10, 5, prompt_tokens_details={"cached_tokens": 40}),
            JudgeUsage(1, 10, 5, 10, 60_000),
        ),
        (stated(10, 16_000), JudgeUsage(1, 10, LONGEST, 0, 820_000)),
        (stated(10, 2**31 - 1), JudgeUsage(1, 10, LONGEST, 0, 820_000)),
        (stated(BYTES + 1, 5), JudgeUsage(1, BYTES, 5, 0, 2_040_000)),
    ],
)
def test_what_is_stated_is_believed_as_far_as_what_was_asked_for(
    usage: Any, expected: JudgeUsage
) -> None:
    assert booked(usage) == expected
    assert expected.settled <= MOST


def test_no_tokens_for_no_words_is_a_statement() -> None:
    assert booked(stated(10, 0), text="") == JudgeUsage(1, 10, 0, 0, 20_000)


def test_cached_tokens_cost_their_own_price_and_never_more_than_the_most() -> None:
    settings = JudgeSettings(model="m", price_input=1.0, price_output=1.0, price_cached=3.0)
    budget, request = sent(settings)
    most = budget.usage.settled
    request.on_answer(
        answer(stated(BYTES, LONGEST, prompt_tokens_details={"cached_tokens": BYTES}))
    )
    assert budget.usage.cost == most == BYTES * 3000 + LONGEST * 1000


@pytest.mark.parametrize(
    ("refusal", "body", "expected"),
    [
        (Refusal(RefusalKind.RATE_LIMITED, 429), {"error": {}}, FREE),
        (Refusal(RefusalKind.UNAVAILABLE, 500), "oops", FREE),
        (Refusal(RefusalKind.UNAVAILABLE, 504), "timed out", UNKNOWN),
        (Refusal(RefusalKind.GENERATION, 400), {"error": {"failed_generation": "{"}}, UNKNOWN),
        (Refusal(RefusalKind.REFUSED, 200), answer(None), UNKNOWN),
        (Refusal(RefusalKind.REFUSED, 200), answer(stated(10, 5)), JudgeUsage(1, 10, 5, 0, 60_000)),
    ],
)
def test_a_refusal_is_free_unless_the_model_had_begun(
    refusal: Refusal, body: Any, expected: JudgeUsage
) -> None:
    budget, request = sent()
    request.on_refusal(refusal, body)
    assert (budget.usage.calls, budget.usage.cost, budget.usage.settled) == (
        1,
        expected.cost,
        expected.settled,
    )


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (aiohttp.ConnectionTimeoutError(), FREE),
        (aiohttp.ServerDisconnectedError(), UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_what_could_not_be_sent_is_free(cause: Exception | None, expected: JudgeUsage) -> None:
    budget, request = sent()
    error = openai.APIConnectionError(request=httpx2.Request("POST", "http://x"))
    error.__cause__ = cause
    request.on_disconnect(error)
    assert budget.usage == expected


def test_requests_of_one_question_add_up() -> None:
    budget = SpendGuard()
    spending = Spending(PRICED, "judge", "verifier", budget, Deadline(0.0))
    spending.begin(BYTES, LONGEST).on_answer(answer(stated(10, 5)))
    spending.begin(BYTES, LONGEST)
    assert budget.usage == JudgeUsage(2, 10, 5, 0, 60_000, 1, MOST)


def test_without_prices_tokens_are_counted_and_no_call_is_priced() -> None:
    budget, request = sent(UNPRICED)
    request.on_answer(answer(stated(10, 5)))
    assert budget.usage == JudgeUsage(1, 10, 5, unpriced_calls=1)
