"""Stored answers by idempotency key: a repeated request gets the first answer.

A row is written before the work, with the request's fingerprint and a lease that its owner renews.
An answer is stored in it; a failure that may pass deletes it. When the lease expires, the next
sender of the same request takes the row over. ``owner`` names one attempt, not a process: a late
write of an attempt that was taken over matches no row, so no fence is needed.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.tables import idempotency_keys as keys


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An idempotency key with its team and route."""

    team: str
    route: str
    key: str


@dataclass(frozen=True, slots=True)
class Started:
    """The caller owns the row: do the work, then ``finish`` or ``release`` as ``owner``."""

    owner: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The request was answered before; ``body`` is the answer."""

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class Running:
    """Another attempt is running; its lease has ``lease_left_s`` seconds left unless renewed."""

    lease_left_s: float


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The key belongs to a request with another body."""


class IdempotencyStore:
    """Rows by team, route and key. After ``lease_s`` without renewal a row may be taken over."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._db, self.lease_s = database, lease_s

    async def begin(
        self, request_key: RequestKey, fingerprint: str
    ) -> Started | Answered | Running | KeyReused:
        """Claim the key for a request, or return the state of its request."""
        owner = new_id("own")
        async with self._db.writing(team_scope(request_key.team)) as connection:
            new = self._db.insert(keys).values(
                team=request_key.team,
                route=request_key.route,
                key=request_key.key,
                fingerprint=fingerprint,
                owner=owner,
                expires_at=self._db.clock + self.lease_s,
                created_at=now(),
            )
            # Take over a row of the same request that is unfinished and whose lease has expired.
            statement = new.on_conflict_do_update(
                index_elements=[keys.c.team, keys.c.route, keys.c.key],
                set_={"owner": new.excluded.owner, "expires_at": new.excluded.expires_at},
                where=sa.and_(
                    keys.c.status.is_(None),
                    keys.c.expires_at < self._db.clock,
                    keys.c.fingerprint == new.excluded.fingerprint,
                ),
            ).returning(keys.c.owner)
            if (await connection.execute(statement)).scalar() is not None:
                return Started(owner)
            # The conflict has locked the row, so it still exists.
            row = (
                await connection.execute(
                    sa.select(
                        keys.c.fingerprint,
                        keys.c.status,
                        keys.c.body,
                        (keys.c.expires_at - self._db.clock).label("left"),
                    ).where(_at(request_key))
                )
            ).one()
        if row.fingerprint != fingerprint:
            return KeyReused()
        if row.status is not None:
            return Answered(row.status, row.body)
        return Running(max(0.0, row.left))

    async def renew(self, request_key: RequestKey, owner: str) -> bool:
        """Extend the lease; return false if the row is no longer the owner's."""
        return await self._change(
            request_key,
            sa.update(keys)
            .where(_running(request_key, owner))
            .values(expires_at=self._db.clock + self.lease_s),
        )

    async def finish(self, request_key: RequestKey, owner: str, *, status: int, body: str) -> bool:
        """Store the answer; if the row is no longer the owner's, store nothing and return false."""
        return await self._change(
            request_key,
            sa.update(keys).where(_running(request_key, owner)).values(status=status, body=body),
        )

    async def release(self, request_key: RequestKey, owner: str) -> None:
        """Delete the row, so that the request can be sent again at once."""
        await self._change(request_key, sa.delete(keys).where(_running(request_key, owner)))

    async def _change(self, request_key: RequestKey, statement: sa.Update | sa.Delete) -> bool:
        async with self._db.writing(team_scope(request_key.team)) as connection:
            return (await connection.execute(statement)).rowcount == 1


def _at(request_key: RequestKey) -> sa.ColumnElement[bool]:
    return sa.and_(
        keys.c.team == request_key.team,
        keys.c.route == request_key.route,
        keys.c.key == request_key.key,
    )


def _running(request_key: RequestKey, owner: str) -> sa.ColumnElement[bool]:
    return sa.and_(_at(request_key), keys.c.owner == owner, keys.c.status.is_(None))
