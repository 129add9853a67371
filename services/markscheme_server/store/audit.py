"""The audit trail: who did what to which rubric, key, team or budget.

An entry is written in the transaction of the change that it records. Triggers refuse to change or
delete entries.
"""

from collections.abc import Mapping
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


async def record(
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry in the caller's transaction.

    ``subject`` is ``rubric:ID``, ``key:PREFIX`` or ``team:NAME``.
    """
    await connection.execute(
        audit_entries.insert().values(
            id=new_id("aud"),
            team=actor.team,
            key=actor.key,
            action=action,
            subject=subject,
            detail=dict(detail or {}),
            created_at=now(),
        )
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
