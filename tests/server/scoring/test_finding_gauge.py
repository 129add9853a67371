"""The metric of findings."""

from datetime import UTC, datetime

from markscheme_server import metrics
from markscheme_server.scoring.finding_gauge import HEARD_S, FindingGauge
from markscheme_server.store.runs import StoredRun

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def run(team: str, name: str, scored_at: datetime | None = NOON) -> StoredRun:
    return StoredRun(name, team, "running", None, None, {}, NOON, scored_at, NOON)


def shown(kind: str) -> float | None:
    return metrics.REGISTRY.get_sample_value("markscheme_run_findings", {"kind": kind})


async def test_runs_are_counted_by_finding_until_an_hour_after_their_last_score() -> None:
    at = NOON.timestamp()
    gauge = FindingGauge(clock=lambda: at)
    gauge.note(run("red", "a"), ["falling", "money"])
    gauge.note(run("blue", "a"), ["falling"])
    gauge.note(run("red", "not scored", None), ["falling"])
    assert (shown("falling"), shown("money"), shown("noisy")) == (2, 1, 0)
    gauge.note(run("red", "a"), ["noisy"])
    assert (shown("falling"), shown("money"), shown("noisy")) == (1, 0, 1)
    at += HEARD_S
    gauge.update()
    assert (shown("falling"), shown("noisy")) == (0, 0)
