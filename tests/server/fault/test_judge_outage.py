"""Test a judge outage: few calls during it, patient work survives, and recovery is quick."""

from collections.abc import Callable
from typing import Any

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, induce, model_judge, score
from fakes.fast_judge import FastJudge, status
from fakes.load import in_background, quantile, send_all, send_at_rate
from fakes.processes import PATIENCE_S, eventually, with_enough_time
from markscheme_server.judge import endpoint, gateway

Serve = Callable[..., str]
SetBreaker = Callable[[float, float], None]
OPENS_AFTER = 10


@pytest.fixture
def breaker(monkeypatch: pytest.MonkeyPatch) -> SetBreaker:
    """Set how long an open breaker waits for its probe, and how long a call waits for it."""

    def change(probe_s: float, wait_s: float) -> None:
        monkeypatch.setattr(endpoint, "BREAKER_PROBE_S", probe_s)
        monkeypatch.setattr(gateway, "BREAKER_WAIT_S", wait_s)

    return change


def trip(url: str, rubric_id: str, judge: FastJudge) -> None:
    """Fail often enough for the breaker to open, whatever is retried."""
    before, judge.mode = judge.mode, status(500)

    def send(limit_s: float) -> None:
        headers = {"X-Deadline-Ms": str(round(limit_s * 1000))}
        send_all([score(url, rubric_id, [f"trip {i}"], headers=headers) for i in range(20)])

    with_enough_time(send, lambda _: judge.count >= OPENS_AFTER, first_s=2.5)
    assert judge.count >= OPENS_AFTER
    judge.mode = before
    judge.forget()


@pytest.mark.parametrize(
    ("per_s", "for_s", "probe_s", "share", "answered_s"),
    [(10, 4.0, 1.0, 0.5, 5.0), pytest.param(20, 60.0, 15.0, 0.99, 0.1, marks=pytest.mark.slow)],
)
def test_an_outage_is_not_amplified(
    per_s: float,
    for_s: float,
    probe_s: float,
    share: float,
    answered_s: float,
    serve: Serve,
    judge: FastJudge,
    breaker: SetBreaker,
) -> None:
    """So many calls as tell that it is out, then a probe at a time; refusals come at once."""
    breaker(probe_s, 0)
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = status(500)
    answers = send_at_rate(
        lambda i: score(url, rubric_id, [f"answer {i}"]), per_s=per_s, for_s=for_s
    )
    assert {a.status for a in answers} == {200}
    assert {r for a in answers for r in a.rewards} == {None}
    assert {r for a in answers for r in a.reasons} == {"unavailable"}
    assert judge.count <= 3 * OPENS_AFTER + (judge.arrivals[-1] - judge.arrivals[0]) / probe_s
    begun, opened_s = answers[0].sent, 2.0
    assert (
        quantile([a.elapsed_s for a in answers if a.sent > begun + opened_s], share) <= answered_s
    )
    refused = send_all([induce(url, "A prompt without a rubric.")])[0]
    assert (refused.status, refused.code) == (503, "unavailable")
    assert int(refused.headers["Retry-After"]) >= 1


def test_calls_wait_for_the_judge_to_return(
    serve: Serve, judge: FastJudge, breaker: SetBreaker
) -> None:
    """An open breaker is waited through; the first success comes with the next probe."""
    breaker(0.5, 30)
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    trip(url, rubric_id, judge)
    judge.mode = status(500)
    sending, answers = in_background([score(url, rubric_id, [f"waiting {i}"]) for i in range(12)])
    for attempt in eventually():
        with attempt:
            assert judge.count >= 2  # two failed probes: it is out, and waited for
    judge.mode = fast_judge.OK
    back = judge.arrivals[-1]
    sending.join(PATIENCE_S)
    assert [a.rewards for a in answers] == [[1.0]] * 12
    assert max(a.sent + a.elapsed_s for a in answers) <= back + 20  # they would wait for 30 s


def test_the_breaker_closes_again(serve: Serve, judge: FastJudge, breaker: SetBreaker) -> None:
    breaker(0.3, 30)
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    trip(url, rubric_id, judge)
    assert (
        send_all([score(url, rubric_id, ["one", "two", "three", "four"])])[0].rewards == [1.0] * 4
    )
    judge.forget()
    judge.latency_s = 0.3
    assert (
        send_all([score(url, rubric_id, [f"after {i}" for i in range(12)])])[0].rewards
        == [1.0] * 12
    )
    assert judge.max_in_flight > 4


def test_one_probe_at_a_time(serve: Serve, judge: FastJudge, breaker: SetBreaker) -> None:
    """A probe that hangs keeps others waiting, not trying."""
    breaker(0.3, 30)
    url = serve(**model_judge(judge.url, judge_timeout_s=1.5))
    rubric_id = create_rubric(url)
    trip(url, rubric_id, judge)
    judge.mode = fast_judge.HANG
    sending, answers = in_background([score(url, rubric_id, [f"waiting {i}"]) for i in range(10)])
    for attempt in eventually():
        with attempt:
            assert judge.count >= 3
    assert judge.max_in_flight == 1
    judge.mode = fast_judge.OK
    sending.join(PATIENCE_S)
    assert sum(a.rewards == [1.0] for a in answers) >= 5  # those that were no hanging probe


@pytest.mark.parametrize("code", [429, 401])
def test_what_is_no_fault_of_the_endpoint_opens_nothing(
    code: int, serve: Serve, judge: FastJudge, breaker: SetBreaker
) -> None:
    breaker(60, 0)
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = status(code)
    failed = send_all([score(url, rubric_id, [f"answer {i}"]) for i in range(15)])
    assert {r for a in failed for r in a.reasons} == {
        "rate_limited" if code == 429 else "misconfigured"
    }
    judge.mode = fast_judge.OK
    assert send_all([score(url, rubric_id, ["one more"])])[0].rewards == [1.0]


def test_a_few_failures_are_no_outage(serve: Serve, judge: FastJudge, breaker: SetBreaker) -> None:
    breaker(60, 0)
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = status(500)
    for i in range(3):
        assert send_all([score(url, rubric_id, [f"answer {i}"])])[0].reasons == {"unavailable"}
    assert judge.count < OPENS_AFTER
    judge.mode = fast_judge.OK
    assert send_all([score(url, rubric_id, ["one more"])])[0].rewards == [1.0]


def test_half_of_the_calls_failing_is_not_amplified(
    serve: Serve, judge: FastJudge, breaker: SetBreaker
) -> None:
    """After the first failures, retries are limited to a fifth of the calls, or three."""
    breaker(0.2, 5)
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.failing_share, judge.failure, judge.latency_s = 0.7, status(500), 0.01
    answers = send_at_rate(
        lambda i: score(url, rubric_id, [f"answer {i}"], headers={"X-Deadline-Ms": "20000"}),
        per_s=15,
        for_s=3,
    )
    asked: dict[str, int] = {}
    for call in judge.calls:
        asked[call.answers[0]] = asked.get(call.answers[0], 0) + 1
    assert len(asked) > OPENS_AFTER
    assert judge.count <= 1.2 * len(asked) + 2 * OPENS_AFTER
    assert {r for a in answers for r in a.rewards} <= {1.0, None}


@pytest.mark.timed
@pytest.mark.slow
def test_default_settings_recover_in_time(serve: Serve, judge: FastJudge) -> None:
    """After an outage of 20 s the first success comes within 20 s, all is well within 30 s."""
    settings: dict[str, Any] = model_judge(judge.url)
    url = serve(**settings)
    rubric_id = create_rubric(url)
    judge.mode = status(500)
    down = send_at_rate(
        lambda i: score(url, rubric_id, [f"down {i}"], headers={"X-Deadline-Ms": "1000"}),
        per_s=10,
        for_s=20,
    )
    assert {r for a in down for r in a.rewards} == {None}
    judge.mode = fast_judge.OK
    up = send_at_rate(lambda i: score(url, rubric_id, [f"up {i}"]), per_s=2, for_s=40)
    begun = up[0].sent
    assert min(a.sent + a.elapsed_s for a in up if a.rewards == [1.0]) <= begun + 20
    assert {r for a in up if a.sent > begun + 30 for r in a.rewards} == {1.0}
    assert max(a.elapsed_s for a in up if a.sent > begun + 30) <= 1
