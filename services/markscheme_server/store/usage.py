"""Sums of the ledger: judge calls, what reuse saved, and the totals of pruned rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import sqlalchemy as sa

from markscheme.vocabulary import UsageKey
from markscheme_server.domain.usage import to_usd
from markscheme_server.store.engine.database import ALL_TEAMS, Database, team_scope
from markscheme_server.store.tables import Usd, assignments, judge_calls, past_usage

MAX_BUCKETS = 1000
_SUMS = (
    "calls",
    "failed_calls",
    "unpriced_calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_usd",
    "cached_verdicts",
    "saved_usd",
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sums over one ``group``, which is a tuple of (key, value) pairs."""

    group: tuple[tuple[UsageKey, str | None], ...]
    sums: dict[str, Any]


class UsageStore:
    """Reads what teams spent and saved."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def aggregate(
        self,
        team: str | None,
        group_by: Sequence[UsageKey],
        *,
        since: date | None,
        until: date | None,
    ) -> tuple[list[Bucket], Bucket, bool]:
        """Return the buckets of a team or of all (``None``), their total, and whether more exist.

        By day or month they are in the order of time, otherwise the most expensive first. ``until``
        is exclusive.
        """
        ledger = self._ledger(team, since, until)
        sums = [sa.func.sum(ledger.c[name]).label(name) for name in _SUMS]
        keys = [
            # A day is YYYY-MM-DD, so that its first seven characters are the month.
            (sa.func.substr(ledger.c.day, 1, 7) if key == "month" else ledger.c[key]).label(key)
            for key in group_by
        ]
        times = [
            column for key, column in zip(group_by, keys, strict=True) if key in ("day", "month")
        ]
        by_cost = (sa.func.sum(ledger.c.cost_usd).desc(), sa.func.sum(ledger.c.saved_usd).desc())
        query = (
            sa.select(*keys, *sums)
            .group_by(*keys)
            .order_by(*times, *by_cost, *(key.nulls_last() for key in keys))
            .limit(MAX_BUCKETS + 1)
        )
        async with self._db.reading(ALL_TEAMS if team is None else team_scope(team)) as connection:
            total = (await connection.execute(sa.select(*sums))).mappings().one()
            rows = (await connection.execute(query)).mappings().all() if keys else []
        found = [_bucket(tuple((key, row[key]) for key in group_by), row) for row in rows]
        return found[:MAX_BUCKETS], _bucket((), total), len(found) > MAX_BUCKETS

    def _ledger(self, team: str | None, since: date | None, until: date | None) -> sa.Subquery:
        """Return calls, savings and pruned totals as rows of the same columns."""
        c, a, p = judge_calls.c, assignments.c, past_usage.c
        none, zero, no_cost = sa.null(), sa.literal(0), sa.literal(0, Usd)
        calls = sa.select(
            c.team,
            c.run_id.label("run"),
            c.rubric_id.label("rubric"),
            c.role,
            c.judge,
            self._db.day(c.created_at).label("day"),
            c.calls,
            sa.case((c.failure.is_not(None), 1), else_=0).label("failed_calls"),
            # Rows of older versions have no `unpriced_calls`.
            sa.func.coalesce(
                c.unpriced_calls, sa.case((c.cost_usd.is_(None), c.calls), else_=0)
            ).label("unpriced_calls"),
            c.prompt_tokens,
            c.cached_tokens,
            c.completion_tokens,
            sa.func.coalesce(c.cost_usd, no_cost).label("cost_usd"),
            zero.label("cached_verdicts"),
            sa.literal(0.0).label("saved_usd"),
        ).where(*_within(c, team, since, until))
        # Reuse is recorded with the groups that it saved calls for, not with calls.
        savings = sa.select(
            a.team,
            a.run_id,
            a.rubric_id,
            sa.cast(none, sa.String),
            sa.cast(none, sa.Text),
            self._db.day(a.created_at),
            *(zero,) * 6,
            no_cost,
            a.cached_verdicts,
            a.saved_usd,
        ).where(a.cached_verdicts.is_not(None), *_within(a, team, since, until))
        # UNION ALL matches columns by position: all three have the order of `calls`.
        past = sa.select(
            p.team, p.run_id, p.rubric_id, p.role, p.judge, p.day, *(p[name] for name in _SUMS)
        ).where(
            *([p.team == team] if team is not None else []),
            *([p.day >= since.isoformat()] if since else []),
            *([p.day < until.isoformat()] if until else []),
        )
        return sa.union_all(calls, savings, past).subquery("ledger")


def _within(
    columns: Any, team: str | None, since: date | None, until: date | None
) -> list[sa.ColumnElement[bool]]:
    conditions = [columns.team == team] if team is not None else []
    if since is not None:
        conditions.append(columns.created_at >= datetime.combine(since, time(), UTC))
    if until is not None:
        conditions.append(columns.created_at < datetime.combine(until, time(), UTC))
    return conditions


def _bucket(group: tuple[tuple[UsageKey, str | None], ...], row: Any) -> Bucket:
    # Nano-dollars are summed as integers; only the result becomes a float.
    sums = {name: int(row[name] or 0) for name in _SUMS if name != "saved_usd"}
    return Bucket(
        group,
        sums | {"cost_usd": to_usd(sums["cost_usd"]), "saved_usd": float(row["saved_usd"] or 0)},
    )
