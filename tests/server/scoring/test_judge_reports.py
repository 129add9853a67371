"""The state and the latency of judges in their report."""

import uuid
from types import SimpleNamespace

import pytest

from markscheme import schema
from markscheme_server import metrics
from markscheme_server.judge.breaker import Breaker
from markscheme_server.scoring.judge_reports import JudgeReportService
from markscheme_server.store.judge_reports import JudgeReportStore
from server.scoring.in_process import RED, Model, Scoring

PROBE_S = 10.0


@pytest.fixture
def model() -> Model:
    """Make a judge whose name no other test has: the histogram of latencies is the process's."""
    return Model(uuid.uuid4().hex)


async def report(
    scoring: Scoring, model: Model, monkeypatch: pytest.MonkeyPatch
) -> schema.JudgeReport:
    """Return the report of a judge that was asked for one re-ask."""

    async def repeats(*_: object) -> dict[str, tuple[int, int]]:
        return {model.verifier_identity: (1, 0)}

    monkeypatch.setattr(JudgeReportStore, "repeats", repeats)
    store = scoring.store
    service = JudgeReportService(
        store.judge_reports, store.runs, store.rubrics, scoring.groups, {model.name: model}
    )
    (found,) = (await service.judges(RED)).data
    assert found.name == model.name
    return found


def open_breaker() -> Breaker:
    breaker = Breaker(PROBE_S)
    for at in range(10):
        breaker.record(float(at), failed=True)
    assert breaker.begin_question(10.0)
    breaker.end_question(10.0, answered=False)
    return breaker


async def test_a_judges_breaker_is_that_of_its_worst_endpoint(
    scoring: Scoring, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = open_breaker()
    breakers = [Breaker(PROBE_S), worst, Breaker(PROBE_S)]
    model.gateway.endpoints[:] = [SimpleNamespace(breaker=breaker) for breaker in breakers]
    assert (await report(scoring, model, monkeypatch)).breaker == "open"
    assert worst.begin_question(10.0 + PROBE_S)
    assert (await report(scoring, model, monkeypatch)).breaker == "half_open"
    for _ in range(3):
        worst.end_question(11.0 + PROBE_S, answered=True)
    assert (await report(scoring, model, monkeypatch)).breaker == "closed"


async def test_a_latency_beyond_the_last_bucket_is_not_known(
    scoring: Scoring, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.gateway.endpoints[:] = [SimpleNamespace(breaker=Breaker(PROBE_S))]
    found = await report(scoring, model, monkeypatch)
    assert (found.latency_p50_s, found.latency_p95_s) == (None, None)
    seconds = metrics.JUDGE_CALL_SECONDS.labels(judge=model.name, role="verifier", outcome="ok")
    for taken in (0.2, 0.2, 0.2, 10_000.0):
        seconds.observe(taken)
    found = await report(scoring, model, monkeypatch)
    assert found.latency_p50_s == pytest.approx(0.2, abs=0.1)
    assert found.latency_p95_s is None
