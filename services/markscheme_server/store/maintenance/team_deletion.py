"""Erase a team, and all that it made or that was made for it, while the service runs.

The team is marked as erased, and its keys are revoked. Triggers then refuse rows of it, so that a
request still running stores nothing. Its tables are scanned until a pass deletes nothing; then
unreferenced texts and prompts are deleted. After an interruption, the next run continues.

Three things remain: the team's row, so that its name is never given to another team; the rows of
its keys without their labels, so that they are still refused; and the audit trail. A rubric that
another team's assignments or rubrics refer to becomes a tombstone, of which only the id is left.
What other teams made from its rubrics belongs to them.
"""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.domain.hashing import content_hash, digest
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import as_utc, now
from markscheme_server.store.maintenance.batch_delete import (
    Batch,
    BatchDeleter,
    DeleteStep,
    unreferenced,
)
from markscheme_server.store.tables import (
    api_keys,
    assignments,
    budgets,
    gathered_groups,
    gathered_rollouts,
    holds,
    idempotency_keys,
    inductions,
    judge_calls,
    past_groups,
    past_usage,
    prompts,
    repeat_verdicts,
    replay_groups,
    replays,
    rollouts,
    rubrics,
    run_blocks,
    run_records,
    runs,
    second_verdicts,
    shares,
    teacher_responses,
    teams,
    texts,
    verdicts,
)
from markscheme_server.store.teams import UnknownTeam

RUBRICS_PER_BATCH, ASSIGNMENTS_PER_BATCH = 200, 32
TOMBSTONES = "tombstones"
"""The key under which tombstones are counted."""
EMPTY = content_hash(())
"""The content hash of tombstones; no other rubric has it, as each needs criteria."""


class Eraser:
    """Erases one team: call `mark_erased`, `withdraw_rubrics` and `run`, in this order."""

    def __init__(self, database: Database, team: str, actor: Actor) -> None:
        self._db, self._team, self._actor = database, team, actor
        delete_shares = DeleteStep(
            shares,
            shares.c.rubric_id,
            sa.or_(shares.c.owner == team, shares.c.team == team),
            sa.true(),
        )
        self._withdrawal = BatchDeleter(
            database,
            [
                delete_shares,
                DeleteStep(
                    rubrics,
                    rubrics.c.id,
                    sa.and_(rubrics.c.team == team, rubrics.c.visibility != "private"),
                    sa.false(),
                    # `sa.false()`: nothing is deleted here.
                    before=self._make_private,
                ),
            ],
        )
        child = rubrics.alias()
        self._unused = sa.and_(
            unreferenced(assignments.c.rubric_id, rubrics.c.id),
            unreferenced(past_groups.c.rubric_id, rubrics.c.id),
            unreferenced(child.c.parent_id, rubrics.c.id),
        )
        self._team_rows = BatchDeleter(
            database,
            [
                # Stored answers to other teams may hold rubrics of this team that they used.
                DeleteStep(
                    idempotency_keys,
                    idempotency_keys.c.key,
                    sa.or_(
                        idempotency_keys.c.team == team,
                        idempotency_keys.c.body.contains(f'"team":"{team}"', autoescape=True),
                    ),
                    sa.true(),
                ),
                # So may stored answers of their groups.
                DeleteStep(
                    gathered_groups,
                    gathered_groups.c.id,
                    sa.or_(
                        gathered_groups.c.team == team,
                        gathered_groups.c.score.contains(f'"team":"{team}"', autoescape=True),
                    ),
                    sa.true(),
                    ASSIGNMENTS_PER_BATCH,
                    cascade=(
                        (gathered_rollouts, gathered_rollouts.c.group_id, gathered_groups.c.id),
                    ),
                ),
                DeleteStep(
                    assignments,
                    assignments.c.id,
                    assignments.c.team == team,
                    sa.true(),
                    ASSIGNMENTS_PER_BATCH,
                    cascade=((rollouts, rollouts.c.assignment_id, assignments.c.id),),
                ),
                self._delete_own(verdicts.c.created_at),
                self._delete_own(
                    judge_calls.c.created_at, unreferenced(verdicts.c.call_id, judge_calls.c.id)
                ),
                self._delete_own(past_usage.c.day),
                self._delete_own(past_groups.c.id),
                self._delete_own(second_verdicts.c.assignment_id),
                self._delete_own(repeat_verdicts.c.id),
                self._delete_own(run_records.c.run_id),
                self._delete_own(run_blocks.c.run_id),
                self._delete_own(replay_groups.c.replay_id),
                self._delete_own(replays.c.id),
                self._delete_own(runs.c.id),
                self._delete_own(teacher_responses.c.prompt_key),
                delete_shares,
                DeleteStep(
                    rubrics,
                    rubrics.c.id,
                    rubrics.c.team == team,
                    self._unused,
                    RUBRICS_PER_BATCH,
                    before=self._detach,
                ),
                self._delete_own(budgets.c.run_id),
                self._delete_own(holds.c.id),
            ],
        )
        self._unreferenced_rows = BatchDeleter(
            database,
            [
                DeleteStep(
                    texts,
                    texts.c.key,
                    sa.true(),
                    sa.and_(
                        *(
                            unreferenced(by.c.text_key, texts.c.key)
                            for by in (rollouts, gathered_rollouts, teacher_responses)
                        )
                    ),
                    lock_table=True,
                ),
                DeleteStep(
                    prompts,
                    prompts.c.key,
                    sa.true(),
                    sa.and_(
                        *(
                            unreferenced(by.c.prompt_key, prompts.c.key)
                            for by in (rubrics, assignments, teacher_responses)
                        )
                    ),
                    lock_table=True,
                ),
            ],
        )

    async def mark_erased(self) -> datetime:
        """Mark the team as erased, and revoke its keys; return when it was first marked.

        Raises `UnknownTeam`.
        """
        async with self._db.writing(team_scope(self._actor.team)) as connection:
            # Creating a key locks the team's row too: it either ends before this or sees the mark.
            row = (
                await connection.execute(
                    sa.select(teams.c.erased_at).where(teams.c.name == self._team).with_for_update()
                )
            ).first()
            if row is None:
                raise UnknownTeam
            at = as_utc(row.erased_at) if row.erased_at is not None else now()
            await connection.execute(
                sa.update(teams)
                .where(teams.c.name == self._team)
                .values(erased_at=at, rpm=None, reuse_scope=None)
            )
            await connection.execute(
                sa.update(api_keys)
                .where(api_keys.c.team == self._team)
                .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, at), label=None)
            )
            if row.erased_at is None:
                await record(connection, self._actor, "team.erasing", f"team:{self._team}")
        return at

    async def withdraw_rubrics(self) -> None:
        """Make the team's rubrics invisible to other teams."""
        async for _ in self._withdrawal.run():
            pass

    async def total(self) -> int:
        """Count the rows that `run` scans; approximately, as it may take several passes."""
        return await self._team_rows.total() + await self._unreferenced_rows.total()

    async def run(self) -> AsyncIterator[Batch]:
        """Delete everything, and record the counts in the audit trail."""
        deleted: Counter[str] = Counter()
        # Repeat until nothing is left: a pass may make rows deletable that it has passed.
        found = True
        while found:
            found = False
            async for batch in self._team_rows.run():
                deleted.update(batch.deleted)
                found = found or any(batch.deleted.values())
                yield batch
        async for batch in self._unreferenced_rows.run():
            deleted.update(batch.deleted)
            yield batch
        await self._scrub()
        async with self._db.writing(team_scope(self._actor.team)) as connection:
            # `+` leaves out counts of zero.
            await record(connection, self._actor, "team.erased", f"team:{self._team}", +deleted)

    def _delete_own(
        self, order_by: sa.Column[Any], delete_where: sa.ColumnElement[bool] | None = None
    ) -> DeleteStep:
        return DeleteStep(
            order_by.table,
            order_by,
            order_by.table.c.team == self._team,
            sa.true() if delete_where is None else delete_where,
        )

    async def _make_private(
        self, connection: AsyncConnection, in_batch: sa.ColumnElement[bool]
    ) -> dict[str, int]:
        await connection.execute(sa.update(rubrics).where(in_batch).values(visibility="private"))
        return {}

    async def _detach(
        self, connection: AsyncConnection, in_batch: sa.ColumnElement[bool]
    ) -> dict[str, int]:
        """Remove references to the batch's rubrics; make tombstones of those that must remain.

        A tombstone gets an empty prompt of its own: the rubric's prompt may also be other teams'.
        """
        ids = sa.select(rubrics.c.id).where(in_batch).correlate(None)
        await connection.execute(
            sa.update(rubrics)
            .where(rubrics.c.team == self._team, rubrics.c.parent_id.in_(ids))
            .values(parent_id=None)
        )
        deleted = {
            table.name: (
                await connection.execute(sa.delete(table).where(table.c.rubric_id.in_(ids)))
            ).rowcount
            for table in (inductions, shares)
        }
        used = sa.select(rubrics.c.id).where(
            in_batch, ~self._unused, rubrics.c.content_hash != EMPTY
        )
        tombstones = [
            {"rubric": rubric_id, "prompt": digest({"erased": rubric_id})}
            for rubric_id in (await connection.execute(used)).scalars()
        ]
        if tombstones:
            await self._db.insert_new(
                connection,
                prompts,
                [{"key": row["prompt"], "messages": [], "created_at": now()} for row in tombstones],
            )
            await connection.execute(
                sa.update(rubrics)
                .where(rubrics.c.id == sa.bindparam("rubric"))
                .values(
                    prompt_key=sa.bindparam("prompt"),
                    parent_id=None,
                    content_hash=EMPTY,
                    criteria=[],
                    tags=[],
                    provenance={},
                    metadata={},
                    visibility="private",
                    cost_usd=None,
                    view=None,
                    words="",
                    retired_at=sa.func.coalesce(rubrics.c.retired_at, now()),
                ),
                tombstones,
            )
        return deleted | {TOMBSTONES: len(tombstones)}

    async def _scrub(self) -> None:
        """Remove deleted words from SQLite's search index and log.

        PostgreSQL overwrites deleted rows after its next vacuum.
        """
        if self._db.engine.dialect.name != "sqlite":
            return
        async with self._db.writing(team_scope(self._actor.team)) as connection:
            await connection.execute(
                # The index keeps deleted words until its parts are merged.
                sa.text("INSERT INTO rubric_words (rubric_words) VALUES ('optimize')")
            )
        async with self._db.engine.connect() as connection:
            # By the driver: SQLAlchemy would begin a transaction, in which this cannot run.
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
