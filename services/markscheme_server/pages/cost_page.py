"""What the page of the cost shows, made from the answers that the API gives. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from markscheme.schema import Budget, UsageReport
from markscheme_server.pages import charts

SERIES = 6
"""Runs with a colour of their own in the chart of daily cost; the others share one."""


def days_before(day: date, count: int) -> date:
    """Return the first of the `count` days that end with `day`."""
    return day - timedelta(days=count - 1)


def cost_page(
    by_day: UsageReport,
    by_run: UsageReport,
    by_role: UsageReport,
    budgets: Sequence[tuple[Budget, float | None]],
    *,
    divided: bool = True,
) -> dict[str, Any]:
    """Return what the page of the cost shows.

    `budgets`: each with what its run will cost. `divided`: whether `by_day` tells runs apart.
    """
    shadow = [bucket for bucket in by_role.data if bucket.role == "shadow"]
    days, series = _daily(by_day, "no run" if divided else "all runs")
    return {
        "since": by_day.since,
        "total": by_run.total,
        "shadow": {
            "cost_usd": sum(bucket.cost_usd for bucket in shadow),
            "calls": sum(bucket.calls for bucket in shadow),
            "unpriced_calls": sum(bucket.unpriced_calls for bucket in shadow),
        },
        "chart": charts.stacked_days(days, series, label="Judging cost by day") if series else None,
        "series": [name for name, _ in series],
        "divided": divided,
        "buckets": sorted(by_run.data, key=lambda b: (-b.cost_usd, -b.saved_usd)),
        "truncated": by_run.truncated,
        "budgets": [
            (
                budget,
                projected,
                charts.bullet(
                    budget.spent_usd,
                    soft=budget.soft_usd,
                    hard=budget.hard_usd,
                    projected=projected,
                ),
            )
            for budget, projected in budgets
        ],
    }


def _daily(by_day: UsageReport, unnamed: str) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Return the days, and the cost of each by run, the most expensive first, with its name.

    `unnamed`: the name of what has no run.
    """
    totals: dict[str | None, float] = defaultdict(float)
    for bucket in by_day.data:
        totals[bucket.run] += bucket.cost_usd
    largest = sorted(totals, key=lambda run: -totals[run])[:SERIES]
    days: list[str] = []
    if (first := by_day.since) and by_day.data:
        last = max(bucket.day for bucket in by_day.data if bucket.day is not None)
        days = [str(first + timedelta(days=i)) for i in range((last - first).days + 1)]
    at = {day: i for i, day in enumerate(days)}
    # By runs and not by their names: one may be called "others".
    costs = {run: [0.0] * len(days) for run in largest if totals[run]}
    others = [0.0] * len(days)
    for bucket in by_day.data:
        if bucket.day is not None:
            costs.get(bucket.run, others)[at[str(bucket.day)]] += bucket.cost_usd
    series = [(unnamed if run is None else run, values) for run, values in costs.items()]
    return days, [*series, *([("others", others)] if any(others) else [])]
