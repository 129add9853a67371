"""Training runs: what they are, and the figures of their groups."""

import asyncio
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from markscheme_server.domain.group_figures import load_figures
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_blocks import BLOCK_STEPS, BLOCK_VERSION, Block, BlockMark
from markscheme_server.domain.run_columns import RunGroup
from markscheme_server.domain.run_history import SecondReward
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
    run_blocks,
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
        firsts: sa.BindParameter[list[int]] = sa.bindparam("firsts", expanding=True)
        self._groups = sa.union_all(
            *(
                each.where(_block_of(step).in_(firsts))
                for each, step in zip(groups, (a.step, p.step), strict=True)
            )
        )
        self._block_marks = sa.union_all(
            sa.select(
                _block_of(a.step).label("first"),
                sa.func.count().label("groups"),
                sa.literal(0).label("pruned"),
                sa.func.max(a.scored_at).label("scored_at"),
            )
            .where(a.team == team, a.run_id == run, a.figures.is_not(None))
            .group_by("first"),
            sa.select(
                _block_of(p.step).label("first"),
                sa.literal(0),
                sa.func.count(),
                sa.cast(sa.null(), sa.Double),
            )
            .where(p.team == team, p.run_id == run)
            .group_by("first"),
        )
        k = run_blocks.c
        self._blocks = sa.select(
            k.first_step, k.groups, k.pruned, k.scored_at, k.figures, k.details
        ).where(
            k.team == team,
            k.run_id == run,
            k.first_step.in_(firsts),
            k.version == BLOCK_VERSION,
        )
        new = database.insert(run_blocks)
        self._save_block = new.on_conflict_do_update(
            index_elements=[k.team, k.run_id, k.first_step],
            set_={
                name: new.excluded[name]
                for name in ("version", "groups", "pruned", "scored_at", "figures", "details")
            },
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

    async def block_marks(self, team: str, run_id: str) -> dict[int, BlockMark]:
        """Return the marks of a run's blocks as its groups are now, by their first steps."""
        found: dict[int, BlockMark] = {}
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(self._block_marks, {"team": team, "run": run_id})
            for first, groups, pruned, scored_at in rows:
                known = found.get(first, BlockMark())
                found[first] = BlockMark(
                    known.groups + groups,
                    known.pruned + pruned,
                    known.scored_at if scored_at is None else scored_at,
                )
        return found

    async def blocks(self, team: str, run_id: str, firsts: Collection[int]) -> list[Block]:
        """Return the stored blocks of a run that begin with these steps."""
        if not firsts:
            return []
        of_run = {"team": team, "run": run_id, "firsts": list(firsts)}
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(self._blocks, of_run)
            return [Block(row[0], BlockMark(*row[1:4]), *row[4:]) for row in rows]

    async def save_blocks(self, team: str, run_id: str, blocks: Sequence[Block]) -> None:
        """Store blocks of a run in place of earlier ones."""
        rows = [
            {
                "team": team,
                "run_id": run_id,
                "first_step": block.first,
                "version": BLOCK_VERSION,
                **block.mark._asdict(),
                "figures": block.figures,
                "details": block.details,
            }
            for block in blocks
        ]
        async with self._db.writing(team_scope(team)) as connection:
            await connection.execute(self._save_block, rows)

    async def groups(self, team: str, run_id: str, firsts: Collection[int]) -> list[RunGroup]:
        """Return the scored groups of the blocks of a run that begin with these steps.

        Those that were pruned are among them.
        """
        if not firsts:
            return []
        of_run = {"team": team, "run": run_id, "firsts": list(firsts)}
        async with self._db.reading(team_scope(team)) as connection:
            rows = (await connection.execute(self._groups, of_run)).all()
        # In a thread: those of a long run take hundreds of milliseconds.
        return await asyncio.to_thread(_run_groups, rows)

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

    async def second(self, team: str, run_id: str) -> list[SecondReward]:
        """Return the rewards of a run's rollouts that are known of two judges."""
        c = second_verdicts.c
        query = sa.select(c.assignment_id, c.step, c.first_reward, c.reward).where(
            c.team == team,
            c.run_id == run_id,
            c.step.is_not(None),
            c.first_reward.is_not(None),
            c.reward.is_not(None),
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [SecondReward(*row) for row in await connection.execute(query)]

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


def _block_of(step: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Return the first step of the block that a step is in; see `run_blocks.block_of`."""
    # Not a parameter: PostgreSQL must see that it selects and groups by the same expression.
    size = sa.literal_column(str(BLOCK_STEPS), sa.Integer)
    return step // size * size


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
