"""What the page of the cost shows, made from the answers that the API gives. Pure."""

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
) -> dict[str, Any]:
    """Return what the page of the cost shows. `budgets`: each with what its run will cost."""
    shadow = [bucket for bucket in by_role.data if bucket.role == "shadow"]
    totals: dict[str, float] = {}
    for bucket in by_day.data:
        totals[bucket.run or "no run"] = totals.get(bucket.run or "no run", 0.0) + bucket.cost_usd
    ranked = sorted((name for name in totals if totals[name]), key=lambda n: -totals[n])
    named = ranked[:SERIES]
    days: list[str] = []
    if (first := by_day.since) and by_day.data:
        last = max(bucket.day for bucket in by_day.data if bucket.day is not None)
        days = [str(first + timedelta(days=i)) for i in range((last - first).days + 1)]
    at = {day: i for i, day in enumerate(days)}
    series = {
        name: [0.0] * len(days) for name in [*named, *(["others"] if ranked[SERIES:] else [])]
    }
    for bucket in by_day.data:
        name = bucket.run or "no run"
        if bucket.cost_usd and bucket.day is not None:
            series[name if name in named else "others"][at[str(bucket.day)]] += bucket.cost_usd
    return {
        "since": by_day.since,
        "total": by_run.total,
        "shadow": {
            "cost_usd": sum(bucket.cost_usd for bucket in shadow),
            "calls": sum(bucket.calls for bucket in shadow),
            "unpriced_calls": sum(bucket.unpriced_calls for bucket in shadow),
        },
        "chart": charts.stacked_days(days, list(series.items()), label="Judging cost by day")
        if series
        else None,
        "series": list(series),
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
