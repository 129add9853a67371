"""Training runs: what they are, and the figures of their groups."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from markscheme_server.domain.group_figures import load_figures
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_history import RunGroup, SecondVerdicts
from markscheme_server.domain.usage import to_usd
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import as_utc, now
from markscheme_server.store.rubrics import visible
from markscheme_server.store.tables import (
    assignments,
    audit_entries,
    judge_calls,
    past_groups,
    past_usage,
    repeat_verdicts,
    rubrics,
    run_records,
    runs,
    second_verdicts,
)

Rows = Sequence[Mapping[str, Any]]
CREATED = "run.created"
"""The audit trail's action for a run that was made by request."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run. `changed_at`: when one of its figures changed."""

    id: str
    team: str
    state: str
    reason: str | None
    steps: int | None
    facts: Mapping[str, Any]
    created_at: datetime
    last_scored_at: datetime | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class RunCost:
    """What judging a run cost and what reuse saved, in dollars."""

    cost_usd: float = 0.0
    saved_usd: float = 0.0
    unpriced_calls: int = 0


@dataclass(frozen=True, slots=True)
class Repeats:
    """Verdicts on a criterion that were asked for again, and how many were different then."""

    criterion_key: str
    asked: int
    flipped: int


class RunStore:
    """Runs by team and id."""

    def __init__(self, database: Database) -> None:
        self._db = database
        r = runs.c
        self._select = sa.select(
            r.id,
            r.team,
            r.state,
            r.reason,
            r.steps,
            r.facts,
            r.created_at,
            r.last_scored_at,
            r.changed_at,
        )
        self._heard = sa.func.coalesce(r.last_scored_at, r.created_at)
        a, p = assignments.c, past_groups.c
        team: sa.BindParameter[str] = sa.bindparam("team")
        run: sa.BindParameter[str] = sa.bindparam("run")
        groups = (
            sa.select(
                a.id, a.step, a.rubric_id, a.judge, sa.literal(0).label("pruned"), a.figures
            ).where(a.team == team, a.run_id == run, a.figures.is_not(None)),
            sa.select(p.id, p.step, p.rubric_id, p.judge, sa.literal(1), p.figures).where(
                p.team == team, p.run_id == run
            ),
        )
        self._groups = sa.union_all(*groups)
        steps: sa.BindParameter[list[int]] = sa.bindparam("steps", expanding=True)
        self._groups_of_steps = sa.union_all(
            groups[0].where(a.step.in_(steps)), groups[1].where(p.step.in_(steps))
        )
        since: sa.BindParameter[float] = sa.bindparam("since")
        self._changed_steps = (
            sa.select(a.step)
            .where(a.team == team, a.run_id == run, a.scored_at >= since)
            .distinct()
        )

    async def find(self, team: str, run_id: str) -> StoredRun | None:
        """Return a run of a team."""
        query = self._select.where(runs.c.team == team, runs.c.id == run_id)
        async with self._db.reading(team_scope(team)) as connection:
            row = (await connection.execute(query)).first()
        return _run(row) if row is not None else None

    async def count(self, team: str) -> int:
        """Return how many runs a team has."""
        query = sa.select(sa.func.count()).where(runs.c.team == team)
        async with self._db.reading(team_scope(team)) as connection:
            return int((await connection.execute(query)).scalar_one())

    async def page(self, team: str, limit: int, after: str | None) -> tuple[list[StoredRun], bool]:
        """Return the runs after a run, most recently active first, and whether more exist."""
        query = self._select.where(runs.c.team == team).order_by(self._heard.desc(), runs.c.id)
        async with self._db.reading(team_scope(team)) as connection:
            if after is not None:
                last = (
                    await connection.execute(
                        sa.select(self._heard).where(runs.c.team == team, runs.c.id == after)
                    )
                ).scalar()
                if last is None:
                    return [], False
                query = query.where(
                    sa.or_(self._heard < last, sa.and_(self._heard == last, runs.c.id > after))
                )
            rows = (await connection.execute(query.limit(limit + 1))).all()
        return [_run(row) for row in rows[:limit]], len(rows) > limit

    async def creator(self, team: str, run_id: str) -> str | None:
        """Return the prefix of the key that created a run, if one did before it was scored."""
        c = audit_entries.c
        query = (
            sa.select(c.key)
            .where(c.subject == _subject(run_id), c.team == team, c.action == CREATED)
            .order_by(c.id)
            .limit(1)
        )
        async with self._db.reading(team_scope(team)) as connection:
            found: str | None = (await connection.execute(query)).scalar()
        return found

    async def put(self, actor: Actor, run_id: str, changes: Mapping[str, Any]) -> None:
        """Create or change a run of the actor's team: `changes` are values of its columns."""
        at, team = now(), actor.team
        values: dict[str, Any] = {
            "team": team,
            "id": run_id,
            "state": "running",
            "facts": {},
            "created_at": at,
            "changed_at": at,
        }
        new = self._db.insert(runs).values(values | dict(changes))
        async with self._db.writing(team_scope(team)) as connection:
            made = await connection.execute(new.on_conflict_do_nothing())
            if made.rowcount:
                await record(connection, actor, CREATED, _subject(run_id))
                return
            await connection.execute(
                sa.update(runs)
                .where(runs.c.team == team, runs.c.id == run_id)
                .values({"changed_at": at} | dict(changes))
            )

    async def add_records(
        self,
        actor: Actor,
        run_id: str,
        records: Mapping[int, Mapping[str, float | None]],
        *,
        most: int,
    ) -> bool:
        """Store the trainer's metrics of steps; a step that is sent again replaces itself.

        Store nothing and return false if the run would then have more than `most`.
        """
        new, team = self._db.insert_rows(run_records), actor.team
        rows = [
            {"team": team, "run_id": run_id, "step": step, "metrics": json.dumps(dict(metrics))}
            for step, metrics in sorted(records.items())
        ]
        await self.put(actor, run_id, {})
        async with self._db.writing(team_scope(team)) as connection:
            await connection.execute(
                new.on_conflict_do_update(
                    index_elements=[
                        run_records.c.team,
                        run_records.c.run_id,
                        run_records.c.step,
                    ],
                    set_={"metrics": new.excluded.metrics},
                ),
                {run_records.name: self._db.pack(rows)},
            )
            stored = await connection.execute(
                sa.select(sa.func.count()).where(
                    run_records.c.team == team, run_records.c.run_id == run_id
                )
            )
            if stored.scalar_one() > most:
                await connection.rollback()
                return False
        return True

    async def groups(self, team: str, run_id: str, since: float | None = None) -> list[RunGroup]:
        """Return the scored groups of a run, with those that were pruned.

        With `since` (seconds since 1970), all groups of the steps in which one was scored then or
        later.
        """
        of_run = {"team": team, "run": run_id}
        async with self._db.reading(team_scope(team)) as connection:
            if since is None:
                rows = (await connection.execute(self._groups, of_run)).all()
            else:
                changed = list(
                    (
                        await connection.execute(self._changed_steps, of_run | {"since": since})
                    ).scalars()
                )
                rows = (
                    await connection.execute(self._groups_of_steps, of_run | {"steps": changed})
                ).all()
        # In a thread: those of a long run take hundreds of milliseconds.
        return await asyncio.to_thread(_run_groups, rows)

    async def pruned(self, team: str, run_id: str) -> int:
        """Return how many groups of a run were pruned."""
        p = past_groups.c
        query = sa.select(sa.func.count()).where(p.team == team, p.run_id == run_id)
        async with self._db.reading(team_scope(team)) as connection:
            return int((await connection.execute(query)).scalar_one())

    async def groups_of_rubric(self, team: str, rubric_id: str) -> tuple[list[RunGroup], list[str]]:
        """Return the team's groups that a rubric scored, and the runs that they are of."""
        a, p = assignments.c, past_groups.c
        query = sa.union_all(
            sa.select(a.id, a.step, a.rubric_id, a.judge, sa.literal(0), a.figures, a.run_id).where(
                a.team == team, a.rubric_id == rubric_id, a.figures.is_not(None)
            ),
            sa.select(p.id, p.step, p.rubric_id, p.judge, sa.literal(1), p.figures, p.run_id).where(
                p.team == team, p.rubric_id == rubric_id
            ),
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = (await connection.execute(query)).all()
        return _run_groups([row[:6] for row in rows]), sorted(
            {row[6] for row in rows if row[6] is not None}
        )

    async def metrics(self, team: str, run_id: str) -> dict[int, dict[str, float | None]]:
        """Return the trainer's metrics by step."""
        c = run_records.c
        query = sa.select(c.step, c.metrics).where(c.team == team, c.run_id == run_id)
        async with self._db.reading(team_scope(team)) as connection:
            rows = (await connection.execute(query)).all()
        loaded = json.loads(f"[{','.join(metrics for _, metrics in rows)}]")
        return {step: metrics for (step, _), metrics in zip(rows, loaded, strict=True)}

    async def second(self, team: str, run_id: str) -> list[SecondVerdicts]:
        """Return what second judges said of a run's rollouts."""
        c = second_verdicts.c
        query = sa.select(
            c.assignment_id,
            c.rollout_id,
            c.judge,
            c.step,
            c.first_reward,
            c.first_verdicts,
            c.reward,
            c.verdicts,
        ).where(c.team == team, c.run_id == run_id)
        async with self._db.reading(team_scope(team)) as connection:
            return [SecondVerdicts(*row) for row in await connection.execute(query)]

    async def save_second(self, team: str, run_id: str | None, rows: Rows) -> None:
        """Store what a second judge said: rows of `second_verdicts` without team and run."""
        await self._save(second_verdicts, team, run_id, rows)

    async def save_repeats(self, team: str, run_id: str | None, rows: Rows) -> None:
        """Store what a judge said when asked again: rows of `repeat_verdicts`, likewise.

        The first repeat of a verdict stands.
        """
        await self._save(
            repeat_verdicts,
            team,
            run_id,
            [{"id": _repeat_id(row["verdict_key"])} | dict(row) for row in rows],
        )

    async def repeated(self, team: str, verdict_keys: Iterable[str]) -> set[str]:
        """Return those of these verdicts that were asked for again."""
        c = repeat_verdicts.c
        query = sa.select(c.verdict_key).where(self._db.in_keys(c.id, "keys"), c.team == team)
        keys = self._db.keys(map(_repeat_id, verdict_keys))
        async with self._db.reading(team_scope(team)) as connection:
            return set((await connection.execute(query, {"keys": keys})).scalars())

    async def seconded(self, team: str, assignment_id: str, judge: str) -> set[str]:
        """Return the rollouts of a group that a second judge has scored."""
        c = second_verdicts.c
        query = sa.select(c.rollout_id).where(
            c.assignment_id == assignment_id, c.judge == judge, c.team == team
        )
        async with self._db.reading(team_scope(team)) as connection:
            return set((await connection.execute(query)).scalars())

    async def _save(self, table: sa.Table, team: str, run_id: str | None, rows: Rows) -> None:
        at = now()
        new = [{"team": team, "run_id": run_id, "created_at": at} | dict(row) for row in rows]
        async with self._db.writing(team_scope(team)) as connection:
            await self._db.insert_new(connection, table, new)
            await connection.execute(
                sa.update(runs)
                .where(runs.c.team == team, runs.c.id == run_id)
                .values(changed_at=at)
            )

    async def repeats(self, team: str, run_id: str) -> list[Repeats]:
        """Count a run's verdicts that were asked for again, by criterion, where both are known."""
        c = repeat_verdicts.c
        query = (
            sa.select(
                c.criterion_key,
                sa.func.count(),
                sa.func.count(sa.case((c.met_before != c.met_now, 1))),
            )
            .where(
                c.team == team,
                c.run_id == run_id,
                c.met_before.is_not(None),
                c.met_now.is_not(None),
            )
            .group_by(c.criterion_key)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [Repeats(*row) for row in await connection.execute(query)]

    async def criteria(self, team: str, rubric_ids: Sequence[str]) -> dict[str, list[Criterion]]:
        """Return the criteria of those of these rubrics that the team may see, by rubric id."""
        query = sa.select(rubrics.c.id, rubrics.c.criteria).where(
            self._db.in_keys(rubrics.c.id, "keys"), visible(team)
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(rubric_ids)})
            return {id_: [Criterion(**each) for each in criteria] for id_, criteria in rows}

    async def costs(self, team: str, run_ids: Sequence[str]) -> dict[str, RunCost]:
        """Return what judging runs cost, and what reuse saved."""
        c, a, p = judge_calls.c, assignments.c, past_usage.c
        unpriced = sa.func.coalesce(
            c.unpriced_calls, sa.case((c.cost_usd.is_(None), c.calls), else_=0)
        )
        queries = (
            sa.select(c.run_id, sa.func.sum(c.cost_usd), sa.literal(0.0), sa.func.sum(unpriced))
            .where(c.team == team, self._db.in_keys(c.run_id, "keys"))
            .group_by(c.run_id),
            sa.select(a.run_id, sa.null(), sa.func.sum(a.saved_usd), sa.literal(0))
            .where(a.team == team, self._db.in_keys(a.run_id, "keys"))
            .group_by(a.run_id),
            sa.select(
                p.run_id,
                sa.func.sum(p.cost_usd),
                sa.func.sum(p.saved_usd),
                sa.func.sum(p.unpriced_calls),
            )
            .where(p.team == team, self._db.in_keys(p.run_id, "keys"))
            .group_by(p.run_id),
        )
        nano = dict.fromkeys(run_ids, 0)
        saved = dict.fromkeys(run_ids, 0.0)
        calls = dict.fromkeys(run_ids, 0)
        async with self._db.reading(team_scope(team)) as connection:
            for query in queries:
                for run_id, cost, spared, without_price in await connection.execute(
                    query, {"keys": self._db.keys(run_ids)}
                ):
                    nano[run_id] += int(cost or 0)
                    saved[run_id] += float(spared or 0.0)
                    calls[run_id] += int(without_price or 0)
        return {
            run_id: RunCost(to_usd(nano[run_id]), saved[run_id], calls[run_id])
            for run_id in run_ids
        }


def _repeat_id(verdict_key: str) -> str:
    return f"rep_{verdict_key[:32]}"


def _run_groups(rows: Sequence[Any]) -> list[RunGroup]:
    figures = load_figures(row[5] for row in rows)
    return [
        RunGroup(id_, step, rubric_id, judge, bool(pruned), each)
        for (id_, step, rubric_id, judge, pruned, _), each in zip(rows, figures, strict=True)
    ]


def _subject(run_id: str) -> str:
    return f"run:{run_id}"


def _run(row: Any) -> StoredRun:
    return StoredRun(
        row.id,
        row.team,
        row.state,
        row.reason,
        row.steps,
        row.facts,
        as_utc(row.created_at),
        as_utc(row.last_scored_at) if row.last_scored_at is not None else None,
        as_utc(row.changed_at),
    )
