"""The page of the cost: its chart has all that was spent, by run where runs can be told apart."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import httpx
import pytest
from markupsafe import Markup

from markscheme import Client, schema
from markscheme_server.pages import charts
from markscheme_server.pages.cost_page import SERIES, cost_page
from markscheme_server.store import usage
from server.deployment import CRITERIA, Deployment, run, score
from server.organisation import PROMPT

Series = Sequence[tuple[str, Sequence[float]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Series]:
    """Return the series of the charts that are drawn."""
    seen: list[Series] = []

    def draw(_days: Sequence[str], series: Series, **_: Any) -> Markup:
        seen.append(series)
        return Markup("")

    monkeypatch.setattr(charts, "stacked_days", draw)
    return seen


def test_a_run_called_others_is_not_the_others(drawn: list[Series]) -> None:
    day, zero = date(2026, 1, 1), dict.fromkeys(usage._SUMS, 0)
    costs: dict[str | None, float] = {"others": 9.0, "no run": 8.0, None: 7.0}
    costs |= {f"run {number}": 5.0 - number for number in range(SERIES)}
    buckets = [
        schema.UsageBucket.model_validate(zero | {"day": day, "run": name, "cost_usd": cost})
        for name, cost in costs.items()
    ]
    report = schema.UsageReport(
        since=day, until=None, data=buckets, total=buckets[0], truncated=False
    )
    cost_page(report, report, report, [])
    ranked = [(name or "no run", [cost]) for name, cost in costs.items()]
    assert drawn == [[*ranked[:SERIES], ("others", [2.0 + 1.0 + 0.0])]]


def test_more_runs_than_a_report_has_are_drawn_as_one(
    deployment: Deployment, drawn: list[Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = deployment.team("red")
    url = deployment.start()
    with Client(url, key) as client:
        client.create_rubric(PROMPT, CRITERIA)
        for number in range(4):
            assert score(url, key, [f"red {number}"], run=run(f"run {number}")).is_success
        spent = client.usage().total.cost_usd

    def page() -> str:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{url}/pages/cost", headers=headers, timeout=60).text

    assert "stacked by run" in page()
    monkeypatch.setattr(usage, "MAX_BUCKETS", 3)
    assert "too many runs to tell them apart" in page()
    divided, whole = drawn
    assert [name for name, _ in whole] == ["all runs"]
    assert len(divided) == 4
    for series in drawn:
        assert sum(sum(values) for _, values in series) == pytest.approx(spent)
        assert spent > 0
