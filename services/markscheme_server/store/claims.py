"""Claims: identical work happens once, whichever process it is asked of.

A claim is a row with an owner, a fence and an expiry. It is written before the work, kept alive while it goes on,
and deleted with the work's outcome in one transaction. Once it has expired another process takes it over with a
higher fence; what the first owner then writes late is refused, because the row no longer bears its name and fence.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.store.engine.database import NO_TEAM, Database
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import claims

Claim = tuple[str, int]
"""A claim's key and fence."""
Fences = Mapping[str, int]
"""Fence by claim key."""

log = structlog.get_logger()


class ClaimLost(Exception):
    """The claim was taken over while the work went on: its outcome was not written."""


class ClaimStore:
    """The claims of one process: ``owner`` names it, ``lease_s`` is how long its silence is believed."""

    def __init__(self, database: Database, *, owner: str, lease_s: float) -> None:
        self._db, self._owner, self._lease_s = database, owner, lease_s
        self._ours: dict[str, int] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._acquiring: Batcher[str, int | None] = Batcher(self._acquire)
        self._dropping: Batcher[Claim, None] = Batcher(self._drop)
        self._looking: Batcher[str, bool] = Batcher(self._held)
        self._prepare()

    def _prepare(self) -> None:
        db, c = self._db, claims.c
        ours = sa.and_(c.owner == self._owner, db.in_keys(c.key, "keys"))
        until = db.clock + self._lease_s
        # The keys come in one order, so that two processes that want the same ones cannot lock each other out.
        new = db.insert(claims).from_select(
            ["key", "owner", "fence", "expires_at"],
            sa.select(db.each("keys"), sa.literal(self._owner), sa.literal(1), until).where(
                sa.true()
            ),
        )
        self._insert = new.on_conflict_do_update(
            index_elements=[c.key],
            where=c.expires_at < db.clock,
            set_={
                "owner": new.excluded.owner,
                "fence": c.fence + 1,
                "expires_at": new.excluded.expires_at,
            },
        ).returning(c.key, c.fence)
        self._update = sa.update(claims).where(ours).values(expires_at=until)
        self._delete = sa.delete(claims).where(ours).returning(c.key, c.fence)
        self._look = sa.select(c.key).where(db.in_keys(c.key, "keys"), c.expires_at >= db.clock)

    async def acquire(self, key: str) -> Claim | None:
        """Claim ``key`` if nobody holds it. It is kept alive until it is released or dropped."""
        asking = asyncio.ensure_future(self._acquiring.submit(key))
        try:
            fence = await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda done: self._give_back(key, done))
            raise
        return None if fence is None else (key, fence)

    async def held(self, key: str) -> bool:
        """Whether somebody is working on ``key``."""
        return await self._looking.submit(key)

    async def drop(self, claim: Claim) -> None:
        """Let a claim go without an outcome, so that others need not wait for the lease to run out."""
        await self._dropping.submit(claim)

    async def release(self, connection: AsyncConnection, fences: Fences) -> set[str]:
        """Delete claims inside the caller's transaction; those that were still ours, by name and fence.

        A claim that is not among them was taken over: what it was for must not be written.
        """
        self.forget(fences)
        deleted = await connection.execute(self._delete, {"keys": self._db.keys(fences)})
        return {key for key, fence in deleted if fences[key] == fence}

    def mine(self, name: str) -> sa.CTE:
        """Those of the claims bound to the parameter ``name`` that are ours by name and fence, locked to the end of
        the transaction. Bind what :meth:`Database.pack` makes of rows of ``key`` and ``fence``."""
        c = claims.c
        given = self._db.rows([c.key, c.fence], name)
        return (
            sa.select(c.key)
            .join(given.key.table, sa.and_(given.key == c.key, given.fence == c.fence))
            .where(c.owner == self._owner)
            .with_for_update(of=claims)
            .cte("mine")
        )

    def end(self, mine: sa.CTE, name: str) -> Any:
        """Delete those of our claims that are bound to the parameter ``name``; see :meth:`forget`."""
        return sa.delete(claims).where(
            self._db.in_keys(claims.c.key, name), claims.c.key.in_(sa.select(mine.c.key))
        )

    def forget(self, keys: Iterable[str]) -> None:
        """Keep claims alive no more, whose end is being written."""
        for key in keys:
            self._ours.pop(key, None)

    async def aclose(self) -> None:
        """Stop keeping claims alive."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def _acquire(self, keys: Sequence[str]) -> list[int | None]:
        async with self._db.writing(NO_TEAM) as connection:
            rows = await connection.execute(self._insert, {"keys": self._db.keys(keys)})
            got = {key: fence for key, fence in rows}  # noqa: C416
        self._ours |= got
        if got and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.ensure_future(self._renew())
        return [got.pop(key, None) for key in keys]

    async def _renew(self) -> None:
        """While there are claims of ours, say so three times a lease."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not self._ours:
                return
            try:
                async with self._db.writing(NO_TEAM) as connection:
                    await connection.execute(self._update, {"keys": self._db.keys(self._ours)})
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("claims_not_renewed", error=type(error).__name__)

    async def _held(self, keys: Sequence[str]) -> list[bool]:
        async with self._db.reading(NO_TEAM) as connection:
            held = set(
                (await connection.execute(self._look, {"keys": self._db.keys(keys)})).scalars()
            )
        return [key in held for key in keys]

    async def _drop(self, dropped: Sequence[Claim]) -> list[None]:
        async with self._db.writing(NO_TEAM) as connection:
            await self.release(connection, dict(dropped))
        return [None] * len(dropped)

    def _give_back(self, key: str, done: "asyncio.Future[int | None]") -> None:
        """The caller left before it heard that the claim is its own."""
        if (
            not done.cancelled()
            and done.exception() is None
            and (fence := done.result()) is not None
        ):
            self._returning = asyncio.ensure_future(self.drop((key, fence)))
