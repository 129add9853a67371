"""What judges did for a team: calls, failures, cost, and what they said when asked again."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.tables import (
    assignments,
    judge_calls,
    repeat_verdicts,
    second_verdicts,
)


@dataclass(slots=True)
class JudgeCalls:
    """A judge's calls. `cost` is in nano-dollars; `criteria`: those asked in answered calls."""

    calls: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    cost: int = 0
    unpriced_calls: int = 0
    criteria: int = 0


class JudgeReportStore:
    """Reads what judges did for a team since a time."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def calls(self, team: str, since: datetime) -> dict[str, JudgeCalls]:
        """Add up the calls that verified, by judge."""
        c = judge_calls.c
        unpriced = sa.func.coalesce(
            c.unpriced_calls, sa.case((c.cost_usd.is_(None), c.calls), else_=0)
        )
        ledger = (
            sa.select(
                c.judge,
                c.failure,
                sa.func.sum(c.calls),
                sa.func.count(),
                sa.func.sum(c.cost_usd),
                sa.func.sum(unpriced),
                sa.func.sum(c.asked),
            )
            .where(c.team == team, c.role.in_(("verifier", "shadow")), c.created_at >= since)
            .group_by(c.judge, c.failure)
        )
        found: dict[str, JudgeCalls] = defaultdict(JudgeCalls)
        async with self._db.reading(team_scope(team)) as connection:
            for judge, failure, calls, rows, cost, priceless, asked in await connection.execute(
                ledger
            ):
                sums = found[judge]
                sums.calls += int(calls)
                sums.cost += int(cost or 0)
                sums.unpriced_calls += int(priceless or 0)
                if failure is not None:
                    sums.failures[failure] = int(rows)
                else:
                    sums.criteria += int(asked or 0)
        return dict(found)

    async def unscored(self, team: str, since: datetime) -> dict[str, int]:
        """Add up the rollouts of unknown reward, by judge."""
        a = assignments.c
        query = (
            sa.select(a.judge, sa.func.sum(a.unscored))
            .where(a.team == team, a.created_at >= since, a.judge.is_not(None))
            .group_by(a.judge)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return {judge: int(count or 0) for judge, count in await connection.execute(query)}

    async def second(
        self, team: str, since: datetime
    ) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """Return pairs of verdict strings by (judge, second judge)."""
        c = second_verdicts.c
        query = (
            # One text instead of thousands of rows, each of which takes longer than its verdicts.
            sa.select(
                c.first_judge,
                c.judge,
                sa.func.aggregate_strings(c.first_verdicts + ":" + c.verdicts, ","),
            )
            .where(c.team == team, c.created_at >= since, c.first_judge.is_not(None))
            .group_by(c.first_judge, c.judge)
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = (await connection.execute(query)).all()
        return {
            (first, judge): [
                (one, other) for one, _, other in (pair.partition(":") for pair in pairs.split(","))
            ]
            for first, judge, pairs in rows
        }

    async def repeats(self, team: str, since: datetime) -> dict[str, tuple[int, int]]:
        """Return by judge how many verdicts were asked for again, and how many flipped."""
        c = repeat_verdicts.c
        query = (
            sa.select(
                c.judge,
                sa.func.count(),
                sa.func.count(sa.case((c.met_before != c.met_now, 1))),
            )
            .where(
                c.team == team,
                c.created_at >= since,
                c.met_before.is_not(None),
                c.met_now.is_not(None),
            )
            .group_by(c.judge)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return {
                judge: (asked, flipped) for judge, asked, flipped in await connection.execute(query)
            }

    async def widest(self, team: str, since: datetime, limit: int) -> Sequence[str]:
        """Return the groups in which the rewards of two judges differ most."""
        c = second_verdicts.c
        query = (
            sa.select(c.assignment_id)
            .where(
                c.team == team,
                c.created_at >= since,
                c.reward.is_not(None),
                c.first_reward.is_not(None),
            )
            .group_by(c.assignment_id)
            .order_by(sa.func.avg(sa.func.abs(c.reward - c.first_reward)).desc(), c.assignment_id)
            .limit(limit)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return list((await connection.execute(query)).scalars())
