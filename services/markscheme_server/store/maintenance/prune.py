"""Delete what old runs left.

Deleted by age: assignments with their rollouts, gathered groups with theirs, replays that are over,
verdicts, judge calls, answers under idempotency keys, expired claims and holds, and unreferenced
texts and prompts. Never
deleted: rubrics with their lineage, inductions, teacher responses, and what these refer to. (A
rubric's provenance names students' texts by hash, which keeps no text.)

The ledger keeps what was spent and saved: the transaction that deletes rows adds it up in
``past_usage`` by team, day, run, rubric and judge. A run keeps its figures: those of its deleted
groups go to ``past_groups``.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.store.engine.database import Database
from markscheme_server.store.engine.ids import as_utc, new_id, now
from markscheme_server.store.maintenance.batch_delete import BatchDeleter, DeleteStep, unreferenced
from markscheme_server.store.replays import LIVE
from markscheme_server.store.tables import (
    assignments,
    claims,
    gathered_groups,
    gathered_rollouts,
    holds,
    idempotency_keys,
    judge_calls,
    past_groups,
    past_usage,
    prompts,
    replay_groups,
    replays,
    rollouts,
    rubrics,
    runs,
    teacher_responses,
    texts,
    verdicts,
)

ASSIGNMENTS_PER_BATCH = 32
"""Few, because up to 1,024 rollouts are deleted with each."""
_GROUP = ("team", "day", "run_id", "rubric_id", "role", "judge")
_FIGURES = (
    "calls",
    "failed_calls",
    "unpriced_calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cached_verdicts",
    "cost_usd",
    "saved_usd",
    "settled_usd",
)


class Pruner(BatchDeleter):
    """Deletes, or with ``dry`` counts, what is older than ``before``."""

    def __init__(self, database: Database, before: datetime, *, dry: bool) -> None:
        super().__init__(database, _steps(before, database.clock, dry=dry), dry=dry)

    async def vacuum(self) -> None:
        """Rewrite a SQLite file without its free pages; PostgreSQL does not need it.

        It needs as much free disk as the file has data, and writers wait for it.
        """
        async with self._db.engine.connect() as connection:
            # By the driver: SQLAlchemy would begin a transaction, in which VACUUM cannot run.
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("VACUUM")
            await driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _steps(before: datetime, clock: sa.ColumnElement[float], *, dry: bool) -> Sequence[DeleteStep]:
    def aged(table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.created_at < before

    def free(
        by: sa.Column[Any], key: sa.Column[Any], recent: sa.ColumnElement[bool]
    ) -> sa.ColumnElement[bool]:
        """No row refers to ``key``; in a dry run no ``recent`` one, as the others are deleted."""
        return unreferenced(by, key, recent) if dry else unreferenced(by, key)

    key = idempotency_keys.c
    is_live = replays.c.state.in_(LIVE)
    recent_rollout = sa.exists().where(
        assignments.c.id == rollouts.c.assignment_id, ~aged(assignments)
    )
    recent_gathered = sa.exists().where(
        gathered_groups.c.id == gathered_rollouts.c.group_id, ~aged(gathered_groups)
    )
    return (
        DeleteStep(
            gathered_groups,
            gathered_groups.c.created_at,
            aged(gathered_groups),
            sa.true(),
            ASSIGNMENTS_PER_BATCH,
            cascade=((gathered_rollouts, gathered_rollouts.c.group_id, gathered_groups.c.id),),
        ),
        DeleteStep(
            assignments,
            assignments.c.created_at,
            aged(assignments),
            sa.true(),
            ASSIGNMENTS_PER_BATCH,
            cascade=((rollouts, rollouts.c.assignment_id, assignments.c.id),),
            after=_record_groups,
        ),
        DeleteStep(
            replays,
            replays.c.created_at,
            aged(replays),
            ~is_live,
            ASSIGNMENTS_PER_BATCH,
            cascade=((replay_groups, replay_groups.c.replay_id, replays.c.id),),
        ),
        DeleteStep(verdicts, verdicts.c.created_at, aged(verdicts), sa.true()),
        DeleteStep(
            judge_calls,
            judge_calls.c.created_at,
            aged(judge_calls),
            sa.and_(
                free(verdicts.c.call_id, judge_calls.c.id, ~aged(verdicts)),
                # They are what a replay cost, as long as it is there.
                free(replays.c.id, judge_calls.c.replay_id, sa.or_(~aged(replays), is_live)),
            ),
            after=_record_calls,
        ),
        DeleteStep(
            idempotency_keys,
            key.created_at,
            aged(idempotency_keys),
            # A request that is still under way keeps its key.
            sa.or_(key.status.is_not(None), key.expires_at < clock),
        ),
        DeleteStep(claims, claims.c.key, claims.c.expires_at < before.timestamp(), sa.true()),
        DeleteStep(
            holds,
            holds.c.id,
            # A settled hold is money that was spent and that no grant has counted yet.
            sa.and_(~holds.c.settled, holds.c.expires_at < before.timestamp()),
            sa.true(),
        ),
        DeleteStep(
            texts,
            texts.c.key,
            sa.true(),
            sa.and_(
                free(rollouts.c.text_key, texts.c.key, recent_rollout),
                free(gathered_rollouts.c.text_key, texts.c.key, recent_gathered),
                unreferenced(teacher_responses.c.text_key, texts.c.key),
                aged(texts),
            ),
            lock_table=True,
        ),
        DeleteStep(
            prompts,
            prompts.c.key,
            sa.true(),
            sa.and_(
                free(assignments.c.prompt_key, prompts.c.key, ~aged(assignments)),
                unreferenced(rubrics.c.prompt_key, prompts.c.key),
                unreferenced(teacher_responses.c.prompt_key, prompts.c.key),
                aged(prompts),
            ),
            lock_table=True,
        ),
    )


async def _record_calls(connection: AsyncConnection, calls: Sequence[sa.Row[Any]]) -> None:
    """Add up what deleted judge calls took and cost."""
    await _add_up(
        connection,
        [
            (
                call,
                call.role,
                call.judge,
                {
                    "calls": call.calls,
                    "failed_calls": int(call.failure is not None),
                    "unpriced_calls": _unpriced(call),
                    "prompt_tokens": call.prompt_tokens,
                    "cached_tokens": call.cached_tokens,
                    "completion_tokens": call.completion_tokens,
                    "cost_usd": call.cost_usd or 0,
                    "settled_usd": call.settled_usd
                    if call.settled_usd is not None
                    else call.cost_usd or 0,
                },
            )
            for call in calls
        ],
    )


def _unpriced(call: sa.Row[Any]) -> int:
    """Return the number of calls of unknown cost; rows of older versions do not state it."""
    return int(
        call.unpriced_calls
        if call.unpriced_calls is not None
        else call.calls * (call.cost_usd is None)
    )


async def _record_groups(connection: AsyncConnection, groups: Sequence[sa.Row[Any]]) -> None:
    """Add up what the deleted groups saved, and keep the figures of those of runs."""
    await _record_savings(connection, groups)
    kept = [
        {column.name: getattr(group, column.name) for column in past_groups.c}
        for group in groups
        if group.run_id is not None and group.figures is not None
    ]
    if kept:
        await connection.execute(past_groups.insert(), kept)
        await connection.execute(
            sa.update(runs)
            .where(runs.c.team == sa.bindparam("whose"), runs.c.id == sa.bindparam("run"))
            .values(changed_at=now()),
            [
                {"whose": team, "run": run_id}
                for team, run_id in sorted({(each["team"], each["run_id"]) for each in kept})
            ],
        )


async def _record_savings(connection: AsyncConnection, groups: Sequence[sa.Row[Any]]) -> None:
    """Add up what stored verdicts and rubrics saved the deleted groups."""
    await _add_up(
        connection,
        [
            (
                group,
                None,
                None,
                {
                    "cached_verdicts": group.cached_verdicts or 0,
                    "saved_usd": group.saved_usd or 0.0,
                },
            )
            for group in groups
        ],
    )


async def _add_up(
    connection: AsyncConnection,
    rows: Sequence[tuple[sa.Row[Any], str | None, str | None, Mapping[str, Any]]],
) -> None:
    """Add (row, role, judge, figures) up into ``past_usage``; sums of zero make no row."""
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row, role, judge, figures in rows:
        group = (
            row.team,
            as_utc(row.created_at).strftime("%Y-%m-%d"),
            row.run_id,
            row.rubric_id,
            role,
            judge,
        )
        totals = sums.setdefault(group, dict.fromkeys(_FIGURES, 0))
        for name, value in figures.items():
            totals[name] += value
    new = [
        {"id": new_id("use")} | dict(zip(_GROUP, group, strict=True)) | totals
        for group, totals in sums.items()
        if any(totals.values())
    ]
    if new:
        await connection.execute(past_usage.insert(), new)
