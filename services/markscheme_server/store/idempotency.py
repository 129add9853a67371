"""Answers by the caller's own key: a request that is sent again is answered again, not done again.

A row is written before the work, with the request's fingerprint and a lease that its owner keeps renewing. The
outcome ends it: an answer is kept, a failure that may pass deletes the row. When the lease runs out the next sender
of the same request takes the row over. ``owner`` names one attempt, not one process: what an attempt writes after
its row was taken over matches no row, so it needs no fence beside it.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.tables import idempotency_keys as keys


@dataclass(frozen=True, slots=True)
class Address:
    """Whose key it is, and for which call."""

    team: str
    route: str
    key: str


@dataclass(frozen=True, slots=True)
class Begun:
    """The row is this caller's: do the work, then ``finish`` or ``release`` as ``owner``."""

    owner: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The request was answered before, with this."""

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class Running:
    """Another attempt is at it; its lease has ``lease_left_s`` to go unless it renews it."""

    lease_left_s: float


@dataclass(frozen=True, slots=True)
class Reused:
    """The key belongs to a request with another body."""


class IdempotencyStore:
    """Rows by team, route and key. ``lease_s`` is how long a silent owner is believed to be at work."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._db, self.lease_s = database, lease_s

    async def begin(
        self, address: Address, fingerprint: str
    ) -> Begun | Answered | Running | Reused:
        """Claim the key for a request, or say how the request under it stands."""
        owner = new_id("own")
        async with self._db.writing(team_scope(address.team)) as connection:
            new = self._db.insert(keys).values(
                team=address.team,
                route=address.route,
                key=address.key,
                fingerprint=fingerprint,
                owner=owner,
                expires_at=self._db.clock + self.lease_s,
                created_at=now(),
            )
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
                return Begun(owner)
            # The conflict has locked the row, so it is still there.
            row = (
                await connection.execute(
                    sa.select(
                        keys.c.fingerprint,
                        keys.c.status,
                        keys.c.body,
                        (keys.c.expires_at - self._db.clock).label("left"),
                    ).where(_at(address))
                )
            ).one()
        if row.fingerprint != fingerprint:
            return Reused()
        if row.status is not None:
            return Answered(row.status, row.body)
        return Running(max(0.0, row.left))

    async def renew(self, address: Address, owner: str) -> bool:
        """Go on holding the row; false when it is no longer the owner's."""
        return await self._change(
            address,
            sa.update(keys)
            .where(_running(address, owner))
            .values(expires_at=self._db.clock + self.lease_s),
        )

    async def finish(self, address: Address, owner: str, *, status: int, body: str) -> bool:
        """Keep the answer; false when the row is no longer the owner's, and then nothing is written."""
        return await self._change(
            address,
            sa.update(keys).where(_running(address, owner)).values(status=status, body=body),
        )

    async def release(self, address: Address, owner: str) -> None:
        """Forget the request, so that it can be sent again at once."""
        await self._change(address, sa.delete(keys).where(_running(address, owner)))

    async def _change(self, address: Address, statement: sa.Update | sa.Delete) -> bool:
        async with self._db.writing(team_scope(address.team)) as connection:
            return (await connection.execute(statement)).rowcount == 1


def _at(address: Address) -> sa.ColumnElement[bool]:
    return sa.and_(
        keys.c.team == address.team, keys.c.route == address.route, keys.c.key == address.key
    )


def _running(address: Address, owner: str) -> sa.ColumnElement[bool]:
    return sa.and_(_at(address), keys.c.owner == owner, keys.c.status.is_(None))
