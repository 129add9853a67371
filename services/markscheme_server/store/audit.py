"""The audit trail: who did what to which rubric, run, key, team or budget.

An entry is written in the transaction of the change that it records. Triggers refuse to change or
delete entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.domain.caller import DEFAULT_TEAM, Caller
from markscheme_server.store.engine.database import ALL_TEAMS, Database, team_scope
from markscheme_server.store.engine.ids import as_utc, new_id, now
from markscheme_server.store.tables import audit_entries


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: a team through a key (its prefix), or the operator (no key)."""

    team: str = DEFAULT_TEAM
    key: str | None = None


def actor_of(caller: Caller) -> Actor:
    """Return the caller as an actor."""
    return Actor(caller.team, caller.key)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the audit trail."""

    id: str
    team: str
    key: str | None
    action: str
    subject: str
    detail: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A change to record. ``subject``: ``rubric:ID``, ``run:ID``, ``key:PREFIX``, ``team:NAME``."""

    actor: Actor
    action: str
    subject: str
    detail: Mapping[str, Any]


async def record(
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry in the caller's transaction; see `AuditRow`."""
    await record_all(connection, [AuditRow(actor, action, subject, detail or {})])


async def record_all(connection: AsyncConnection, rows: Sequence[AuditRow]) -> None:
    """Add entries in the caller's transaction."""
    await connection.execute(
        audit_entries.insert(),
        [
            {
                "id": new_id("aud"),
                "team": row.actor.team,
                "key": row.actor.key,
                "action": row.action,
                "subject": row.subject,
                "detail": dict(row.detail),
                "created_at": now(),
            }
            for row in rows
        ],
    )


class AuditStore:
    """Reads the audit trail."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def page(
        self,
        *,
        team: str | None,
        subject: str | None,
        action: str | None,
        after: str | None,
        limit: int,
    ) -> tuple[list[Entry], bool]:
        """Return entries of one team or of all, newest first, and whether there are more."""
        c = audit_entries.c
        query = sa.select(audit_entries)
        for column, value in ((c.team, team), (c.subject, subject), (c.action, action)):
            if value is not None:
                query = query.where(column == value)
        if after is not None:
            # Ids sort by time.
            query = query.where(c.id < after)
        async with self._db.reading(
            team_scope(team) if team is not None else ALL_TEAMS
        ) as connection:
            rows = (await connection.execute(query.order_by(c.id.desc()).limit(limit + 1))).all()
        found = [
            Entry(
                row.id,
                row.team,
                row.key,
                row.action,
                row.subject,
                row.detail,
                as_utc(row.created_at),
            )
            for row in rows
        ]
        return found[:limit], len(found) > limit
