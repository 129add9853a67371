"""Erasing a team: all that it made and all that was made for it, beside a running service.

First the team is marked and its keys end; from then on the database takes no row of it (triggers refuse them), so a
request that still runs leaves nothing behind. Then its tables are walked until a pass finds nothing; then the texts and
prompts go that nothing refers to any more. A killed run has marked the team; the next one goes on with the rest.

What stays: the team's row, so that its name is never another team's; the rows of its keys without their labels, so that
they go on being refused; the audit trail. A rubric that another team's assignments or rubrics refer to becomes a
tombstone: its id, without anything of what it was. What other teams made of its rubrics is theirs.
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
    holds,
    idempotency_keys,
    inductions,
    judge_calls,
    past_usage,
    prompts,
    rollouts,
    rubrics,
    shares,
    teacher_responses,
    teams,
    texts,
    verdicts,
)
from markscheme_server.store.teams import UnknownTeam

RUBRICS_A_WINDOW, ASSIGNMENTS_A_WINDOW = 200, 32
TOMBSTONES = "tombstones"
"""Under this name the rubrics are counted of which the id stays."""
EMPTY = content_hash(())
"""No rubric has it: one without criteria is refused."""


class Eraser:
    """Erases one team, in this order: :meth:`mark`, :meth:`hide`, :meth:`run`."""

    def __init__(self, database: Database, team: str, actor: Actor) -> None:
        self._db, self._team, self._actor = database, team, actor
        shared = DeleteStep(
            shares,
            shares.c.rubric_id,
            sa.or_(shares.c.owner == team, shares.c.team == team),
            sa.true(),
        )
        self._hiding = BatchDeleter(
            database,
            [
                shared,
                DeleteStep(
                    rubrics,
                    rubrics.c.id,
                    sa.and_(rubrics.c.team == team, rubrics.c.visibility != "private"),
                    sa.false(),
                    first=self._withdraw,
                ),
            ],
        )
        child = rubrics.alias()
        self._unused = sa.and_(
            unreferenced(assignments.c.rubric_id, rubrics.c.id),
            unreferenced(child.c.parent_id, rubrics.c.id),
        )
        self._erasing = BatchDeleter(
            database,
            [
                # Answers that others were given may be rubrics of the team's that they were let to use.
                DeleteStep(
                    idempotency_keys,
                    idempotency_keys.c.key,
                    sa.or_(
                        idempotency_keys.c.team == team,
                        idempotency_keys.c.body.contains(f'"team":"{team}"', autoescape=True),
                    ),
                    sa.true(),
                ),
                DeleteStep(
                    assignments,
                    assignments.c.id,
                    assignments.c.team == team,
                    sa.true(),
                    ASSIGNMENTS_A_WINDOW,
                    takes=((rollouts, rollouts.c.assignment_id, assignments.c.id),),
                ),
                self._walk(verdicts.c.created_at),
                self._walk(
                    judge_calls.c.created_at, unreferenced(verdicts.c.call_id, judge_calls.c.id)
                ),
                self._walk(past_usage.c.day),
                self._walk(teacher_responses.c.prompt_key),
                shared,
                DeleteStep(
                    rubrics,
                    rubrics.c.id,
                    rubrics.c.team == team,
                    self._unused,
                    RUBRICS_A_WINDOW,
                    first=self._cut_loose,
                ),
                self._walk(budgets.c.run_id),
                self._walk(holds.c.id),
            ],
        )
        self._remains = BatchDeleter(
            database,
            [
                DeleteStep(
                    texts,
                    texts.c.key,
                    sa.true(),
                    sa.and_(
                        *(
                            unreferenced(by.c.text_key, texts.c.key)
                            for by in (rollouts, teacher_responses)
                        )
                    ),
                    guarded=True,
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
                    guarded=True,
                ),
            ],
        )

    async def mark(self) -> datetime:
        """End the team and its keys; the time at which it first was. Raises :class:`UnknownTeam`."""
        async with self._db.writing(team_scope(self._actor.team)) as connection:
            # Who makes a key holds the team's row: they are waited for, or they see the mark.
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

    async def hide(self) -> None:
        """Take back from other teams what was shared with them."""
        async for _ in self._hiding.run():
            pass

    async def total(self) -> int:
        """The rows that :meth:`run` walks past, more or less."""
        return await self._erasing.total() + await self._remains.total()

    async def run(self) -> AsyncIterator[Batch]:
        """Remove everything, and write down how much it was."""
        removed: Counter[str] = Counter()
        found = True
        while found:
            found = False
            async for window in self._erasing.run():
                removed.update(window.removed)
                found = found or any(window.removed.values())
                yield window
        async for window in self._remains.run():
            removed.update(window.removed)
            yield window
        await self._scrub()
        async with self._db.writing(team_scope(self._actor.team)) as connection:
            await record(connection, self._actor, "team.erased", f"team:{self._team}", +removed)

    def _walk(
        self, along: sa.Column[Any], goes: sa.ColumnElement[bool] | None = None
    ) -> DeleteStep:
        return DeleteStep(
            along.table,
            along,
            along.table.c.team == self._team,
            sa.true() if goes is None else goes,
        )

    async def _withdraw(
        self, connection: AsyncConnection, inside: sa.ColumnElement[bool]
    ) -> dict[str, int]:
        await connection.execute(sa.update(rubrics).where(inside).values(visibility="private"))
        return {}

    async def _cut_loose(
        self, connection: AsyncConnection, inside: sa.ColumnElement[bool]
    ) -> dict[str, int]:
        """Take away what refers to rubrics that are about to go, and make tombstones of those that cannot.

        A tombstone's prompt is one of its own, without messages: the rubric's own may be other teams' too.
        """
        ids = sa.select(rubrics.c.id).where(inside).correlate(None)
        await connection.execute(
            sa.update(rubrics)
            .where(rubrics.c.team == self._team, rubrics.c.parent_id.in_(ids))
            .values(parent_id=None)
        )
        gone = {
            table.name: (
                await connection.execute(sa.delete(table).where(table.c.rubric_id.in_(ids)))
            ).rowcount
            for table in (inductions, shares)
        }
        staying = (
            (
                await connection.execute(
                    sa.select(rubrics.c.id).where(
                        inside, ~self._unused, rubrics.c.content_hash != EMPTY
                    )
                )
            )
            .scalars()
            .all()
        )
        if staying:
            emptied = [
                {"rubric": rubric_id, "prompt": digest({"erased": rubric_id})}
                for rubric_id in staying
            ]
            await self._db.insert_new(
                connection,
                prompts,
                [{"key": row["prompt"], "messages": [], "created_at": now()} for row in emptied],
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
                    visibility="private",
                    cost_usd=None,
                    words="",
                    retired_at=sa.func.coalesce(rubrics.c.retired_at, now()),
                ),
                emptied,
            )
        return gone | {TOMBSTONES: len(staying)}

    async def _scrub(self) -> None:
        """Have SQLite write its search index anew, where removed words stand until then, and empty its log. What
        PostgreSQL has removed it overwrites after its next vacuum."""
        if self._db.engine.dialect.name != "sqlite":
            return
        async with self._db.writing(team_scope(self._actor.team)) as connection:
            await connection.execute(
                sa.text("INSERT INTO rubric_words (rubric_words) VALUES ('optimize')")
            )
        async with self._db.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
