"""Training runs: what they are, and the figures of their groups."""

import asyncio
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.domain.group_figures import load_figures
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_blocks import BLOCK_STEPS, BLOCK_VERSION, Block, BlockMark
from markscheme_server.domain.run_columns import RunGroup
from markscheme_server.domain.usage import to_usd
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.engine.database import Database, TeamScope, team_scope
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
MAX_LIFE = 8 * 1024 * 1024
"""Characters of figures that a rubric's health is read from: the newest 18,000 groups of 8 rollouts
and 12 criteria. They take a third of a second.
"""
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


@dataclass(frozen=True, slots=True)
class RunReading:
    """What the history of a run is made of.

    `marks`: those of all blocks of steps. `blocks`: those that are as they were stored. `unread`:
    the first steps of the others, whose groups were read. `second`: by step, how many rollouts have
    rewards by two judges, and the sums of both rewards.
    """

    marks: Mapping[int, BlockMark]
    blocks: Sequence[Block]
    unread: Collection[int]
    _groups: Sequence[Any]
    second: Mapping[int, tuple[int, float, float]]
    _metrics: Sequence[Any]
    repeats: Sequence[Repeats]

    def groups(self) -> list[RunGroup]:
        """Parse the groups, those that were pruned included; thousands take long."""
        return _run_groups(self._groups)

    def metrics(self) -> dict[int, dict[str, float | None]]:
        """Parse the trainer's metrics by step."""
        loaded = json.loads(f"[{','.join(metrics for _, metrics in self._metrics)}]")
        return {step: of for (step, _), of in zip(self._metrics, loaded, strict=True)}


@dataclass(frozen=True, slots=True)
class GroupVerdicts:
    """The verdicts of a group: some of the fields of `GroupFigures`."""

    at: float
    verdicts: str = ""
    teacher_verdicts: str = ""


_GROUP_VERDICTS = TypeAdapter(list[GroupVerdicts])
# Groups of a batch have the same time.
_BY_TIME = attrgetter("at", "verdicts", "teacher_verdicts")


@dataclass(frozen=True, slots=True)
class RubricLife:
    """What a rubric has scored. `runs`: all runs that it has scored groups of."""

    runs: Sequence[str]
    _figures: str

    def groups(self) -> list[GroupVerdicts]:
        """Parse the verdicts of its groups, the first scored first; thousands take long."""
        return sorted(_GROUP_VERDICTS.validate_json(f"[{self._figures}]"), key=_BY_TIME)


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
        self._find = self._select.where(r.team == team, r.id == run)
        groups = (
            sa.select(
                a.id, a.step, a.rubric_id, a.judge, sa.literal(0).label("pruned"), a.figures
            ).where(a.team == team, a.run_id == run, a.figures.is_not(None)),
            sa.select(p.id, p.step, p.rubric_id, p.judge, sa.literal(1), p.figures).where(
                p.team == team, p.run_id == run
            ),
        )
        # The end of the last block is beyond the greatest step, which fills an Integer.
        span = database.rows(
            [sa.Column("low", sa.BigInteger), sa.Column("high", sa.BigInteger)], "ranges"
        )
        # Ranges instead of a condition on the block, because an index has them.
        self._groups = sa.union_all(
            *(
                each.where(
                    step >= span.low,
                    step < span.high,
                    # Without these SQLite looks at all groups of the run.
                    step >= sa.bindparam("low", type_=sa.BigInteger),
                    step < sa.bindparam("high", type_=sa.BigInteger),
                )
                for each, step in zip(groups, (a.step, p.step), strict=True)
            )
        )
        self._block_marks = sa.union_all(
            sa.select(
                _block_of(a.step).label("first"),
                sa.func.count().label("groups"),
                sa.literal(0).label("pruned"),
                _sum_of_times(a.scored_at).label("scored_at"),
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
            k.first_step >= sa.bindparam("low"),
            k.first_step <= sa.bindparam("high"),
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
        m, o, q = run_records.c, second_verdicts.c, repeat_verdicts.c
        self._metrics = sa.select(m.step, m.metrics).where(m.team == team, m.run_id == run)
        both = (
            o.team == team,
            o.run_id == run,
            o.step.is_not(None),
            o.first_reward.is_not(None),
            o.reward.is_not(None),
        )
        self._second = (
            sa.select(o.step, sa.func.count(), sa.func.sum(o.first_reward), sa.func.sum(o.reward))
            .where(*both)
            .group_by(o.step)
        )
        self._gaps = (
            sa.select(o.assignment_id, sa.func.avg(sa.func.abs(o.reward - o.first_reward)))
            .where(*both)
            .group_by(o.assignment_id)
        )
        self._repeats = (
            sa.select(
                q.criterion_key,
                sa.func.count(),
                sa.func.count(sa.case((q.met_before != q.met_now, 1))),
            )
            .where(
                q.team == team,
                q.run_id == run,
                q.met_before.is_not(None),
                q.met_now.is_not(None),
            )
            .group_by(q.criterion_key)
        )
        self._first_steps = [
            sa.select(a.step)
            .where(a.team == team, a.run_id == run, a.figures.is_not(None))
            .order_by(a.step)
            .limit(1),
            sa.select(sa.func.min(p.step)).where(p.team == team, p.run_id == run),
        ]
        self._costs = _cost_queries(database)
        self._criteria = sa.select(rubrics.c.id, rubrics.c.criteria).where(
            database.in_keys(rubrics.c.id, "keys"), visible(team)
        )
        rubric: sa.BindParameter[str] = sa.bindparam("rubric")
        of_rubric = [
            sa.select(t.id, t.figures, t.run_id).where(
                t.team == team, t.rubric_id == rubric, t.figures.is_not(None)
            )
            for t in (a, p)
        ]
        # Each table by itself: an index has its runs in order.
        self._sizes_of_rubric = sa.union_all(
            *(
                each.with_only_columns(t.run_id, sa.func.sum(sa.func.length(t.figures))).group_by(
                    t.run_id
                )
                for each, t in zip(of_rubric, (a, p), strict=True)
            )
        )
        g = sa.union_all(*of_rubric).subquery().c
        # The ids of groups sort by time.
        newer = sa.func.sum(sa.func.length(g.figures)).over(
            order_by=g.id.desc(), rows=(None, 0)
        ) - sa.func.length(g.figures)
        newest = sa.select(g.id, newer.label("newer")).subquery()
        self._life_begins = sa.select(sa.func.min(newest.c.id)).where(newest.c.newer < MAX_LIFE)
        # One text instead of thousands of rows, each of which takes longer than its JSON.
        self._figures_of_rubric = sa.select(sa.func.aggregate_strings(g.figures, ",")).where(
            g.id >= sa.bindparam("since")
        )

    async def find(self, team: str, run_id: str) -> StoredRun | None:
        """Return a run of a team."""
        of_run = {"team": team, "run": run_id}
        rows = await self._db.read(team_scope(team), self._find, of_run)
        return _run(rows[0]) if rows else None

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
        most_characters: int,
    ) -> bool:
        """Store the trainer's metrics of steps; a step that is sent again replaces itself.

        Store nothing and return false if the run would then have more than `most`, or longer ones.
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
                sa.select(
                    sa.func.count(), sa.func.sum(sa.func.length(run_records.c.metrics))
                ).where(run_records.c.team == team, run_records.c.run_id == run_id)
            )
            steps, characters = stored.one()
            if steps > most or characters > most_characters:
                await connection.rollback()
                return False
            # Not with the run alone: who reads it in between has it without these metrics.
            await _touch(connection, team, run_id)
        return True

    async def read(self, team: str, run_id: str, known: Mapping[int, BlockMark]) -> "RunReading":
        """Read what the history of a run is made of.

        `known`: marks of blocks that need not be read while they are the same.
        """
        of_run, scope = {"team": team, "run": run_id}, team_scope(team)
        (marks, blocks, unread, groups), (second, metrics, repeats) = await asyncio.gather(
            self._read_blocks(scope, of_run, known),
            self._db.read_each(scope, (self._second, self._metrics, self._repeats), of_run),
        )
        return RunReading(
            marks,
            blocks,
            unread,
            groups,
            {step: tuple(sums) for step, *sums in second},
            metrics,
            [Repeats(*row) for row in repeats],
        )

    async def _read_blocks(
        self, scope: TeamScope, of_run: Mapping[str, Any], known: Mapping[int, BlockMark]
    ) -> tuple[dict[int, BlockMark], list[Block], set[int], Sequence[Any]]:
        """Return the first four fields of a `RunReading`."""
        async with self._db.reading(scope) as connection:

            async def rows(statement: Any, **more: Any) -> Sequence[Any]:
                return (await connection.execute(statement, {**of_run, **more})).all()

            marks = _marks(await rows(self._block_marks))
            unread = {first for first, mark in marks.items() if known.get(first) != mark}
            # The last block still grows: it is read from its groups.
            closed = unread - {max(marks, default=None)}
            stored = [
                Block(row[0], BlockMark(*row[1:4]), *row[4:])
                for row in (
                    await rows(self._blocks, low=min(closed), high=max(closed)) if closed else ()
                )
            ]
            blocks = [each for each in stored if each.first in closed]
            blocks = [each for each in blocks if each.mark == marks[each.first]]
            unread -= {block.first for block in blocks}
            if not unread:
                return marks, blocks, unread, ()
            groups = await rows(
                self._groups,
                low=min(unread),
                high=max(unread) + BLOCK_STEPS,
                ranges=self._db.pack(_ranges(unread)),
            )
            return marks, blocks, unread, groups

    async def gaps(self, team: str, run_id: str) -> dict[str, float]:
        """Return the mean difference of two judges' rewards of each group that has both."""
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(self._gaps, {"team": team, "run": run_id})
            return {row[0]: row[1] for row in rows}

    async def first_step(self, team: str, run_id: str) -> int | None:
        """Return the first step of a run that has a scored group, pruned ones included."""
        of_run = {"team": team, "run": run_id}
        async with self._db.reading(team_scope(team)) as connection:
            found = [
                (await connection.execute(each, of_run)).scalar() for each in self._first_steps
            ]
        return min((step for step in found if step is not None), default=None)

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

    async def life_of_rubric(self, team: str, rubric_id: str) -> "RubricLife":
        """Return the verdicts of the team's groups that a rubric scored.

        The newest ones, if their figures have more than `MAX_LIFE` characters.
        """
        of_rubric = {"team": team, "rubric": rubric_id}
        async with self._db.reading(team_scope(team)) as connection:
            sizes = (await connection.execute(self._sizes_of_rubric, of_rubric)).all()
            since = ""
            if sum(size for _, size in sizes) > MAX_LIFE:
                since = (await connection.execute(self._life_begins, of_rubric)).scalar_one()
            figures = (
                await connection.execute(self._figures_of_rubric, of_rubric | {"since": since})
            ).scalar()
        runs = sorted({run for run, _ in sizes if run is not None})
        return RubricLife(runs, figures or "")

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
            await _touch(connection, team, run_id)

    async def criteria(self, team: str, rubric_ids: Sequence[str]) -> dict[str, list[Criterion]]:
        """Return the criteria of those of these rubrics that the team may see, by rubric id."""
        asked = {"keys": self._db.keys(rubric_ids), "team": team}
        rows = await self._db.read(team_scope(team), self._criteria, asked)
        return {id_: [Criterion(**each) for each in criteria] for id_, criteria in rows}

    async def costs(self, team: str, run_ids: Sequence[str]) -> dict[str, RunCost]:
        """Return what judging runs cost, and what reuse saved."""
        nano = dict.fromkeys(run_ids, 0)
        saved = dict.fromkeys(run_ids, 0.0)
        calls = dict.fromkeys(run_ids, 0)
        asked = {"keys": self._db.keys(run_ids), "team": team}
        for rows in await self._db.read_each(team_scope(team), self._costs, asked):
            for run_id, cost, spared, without_price in rows:
                nano[run_id] += int(cost or 0)
                saved[run_id] += float(spared or 0.0)
                calls[run_id] += int(without_price or 0)
        return {
            run_id: RunCost(to_usd(nano[run_id]), saved[run_id], calls[run_id])
            for run_id in run_ids
        }


async def _touch(connection: AsyncConnection, team: str, run_id: str | None) -> None:
    """Note that a figure of the run has changed, in the transaction that changes it."""
    of_run = sa.update(runs).where(runs.c.team == team, runs.c.id == run_id)
    await connection.execute(of_run.values(changed_at=now()))


def _cost_queries(database: Database) -> tuple[Any, ...]:
    """Return queries of what runs cost and saved: of calls, of groups, and of what was pruned."""
    team: sa.BindParameter[str] = sa.bindparam("team")
    c, a, p = judge_calls.c, assignments.c, past_usage.c
    unpriced = sa.func.coalesce(c.unpriced_calls, sa.case((c.cost_usd.is_(None), c.calls), else_=0))
    return (
        sa.select(c.run_id, sa.func.sum(c.cost_usd), sa.literal(0.0), sa.func.sum(unpriced))
        .where(c.team == team, database.in_keys(c.run_id, "keys"))
        .group_by(c.run_id),
        sa.select(a.run_id, sa.null(), sa.func.sum(a.saved_usd), sa.literal(0))
        .where(a.team == team, database.in_keys(a.run_id, "keys"))
        .group_by(a.run_id),
        sa.select(
            p.run_id,
            sa.func.sum(p.cost_usd),
            sa.func.sum(p.saved_usd),
            sa.func.sum(p.unpriced_calls),
        )
        .where(p.team == team, database.in_keys(p.run_id, "keys"))
        .group_by(p.run_id),
    )


def _block_of(step: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Return the first step of the block that a step is in; see `run_blocks.block_of`."""
    # Not a parameter: PostgreSQL must see that it selects and groups by the same expression.
    size = sa.literal_column(str(BLOCK_STEPS), sa.Integer)
    return step // size * size


def _sum_of_times(scored_at: sa.ColumnElement[float]) -> sa.ColumnElement[float]:
    """Return `BlockMark.scored_at`: below 2^53 for two million groups, so that it is exact."""
    micros = sa.cast(scored_at * sa.literal_column("1e6", sa.Double), sa.BigInteger)
    each = micros % sa.literal_column(str(2**32), sa.BigInteger)
    return sa.cast(sa.func.sum(each), sa.Double)


def _repeat_id(verdict_key: str) -> str:
    return f"rep_{verdict_key[:32]}"


def _marks(rows: Iterable[Any]) -> dict[int, BlockMark]:
    found: dict[int, BlockMark] = {}
    for first, groups, pruned, scored_at in rows:
        known = found.get(first, BlockMark())
        found[first] = BlockMark(
            known.groups + groups,
            known.pruned + pruned,
            known.scored_at if scored_at is None else scored_at,
        )
    return found


def _ranges(firsts: Collection[int]) -> list[dict[str, Any]]:
    """Return ranges of steps, low included and high not, that hold the steps of these blocks."""
    ranges: list[dict[str, Any]] = []
    for first in sorted(firsts):
        if ranges and ranges[-1]["high"] == first:
            ranges[-1]["high"] += BLOCK_STEPS
        else:
            ranges.append({"low": first, "high": first + BLOCK_STEPS})
    return ranges


def _run_groups(rows: Sequence[Any]) -> list[RunGroup]:
    figures = load_figures(row[5] for row in rows)
    return [
        RunGroup(id_, step, rubric_id, judge, bool(pruned), each)
        for (id_, step, rubric_id, judge, pruned, _), each in zip(rows, figures, strict=True)
    ]


def _subject(run_id: str) -> str:
    return f"run:{run_id}"


def _run(row: Sequence[Any]) -> StoredRun:
    id_, team, state, reason, steps, facts, created_at, last_scored_at, changed_at = row
    return StoredRun(
        id_,
        team,
        state,
        reason,
        steps,
        facts,
        as_utc(created_at),
        as_utc(last_scored_at) if last_scored_at is not None else None,
        as_utc(changed_at),
    )
