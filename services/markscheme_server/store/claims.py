"""Claims: identical work happens once, whichever process it is asked of.

A claim is a row with an owner, a fence and an expiry. It is written before the work, renewed while
the work goes on, and deleted together with the work's outcome in one transaction. After its expiry
another process takes it over with a higher fence. What the first owner writes late is then
refused, because the row no longer has its name and fence.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.store.engine.database import NO_TEAM, Database, team_scope
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import claims

Claim = tuple[str, int]
"""A claim's key and fence."""
T = TypeVar("T")

FIRST_POLL_S, MAX_POLL_S = 0.02, 0.25
"""How often it is looked whether another process is done: at first, and in the long run."""

log = structlog.get_logger()


class ClaimLost(Exception):
    """The claim was taken over while the work went on; its outcome was not written."""


class ClaimTimeout(Exception):
    """Another process still held the claim at the deadline."""


class ClaimStore:
    """The claims of one process.

    `owner` names the process. `lease_s`: seconds after which a claim that was not renewed may be
    taken over.
    """

    def __init__(self, database: Database, *, owner: str, lease_s: float) -> None:
        self._db, self._owner, self._lease_s = database, owner, lease_s
        self._fences: dict[str, int] = {}
        """Fences of the claims that are renewed, by key."""
        self._renewing: asyncio.Task[None] | None = None
        self._acquiring: Batcher[tuple[str, str | None], int | None] = Batcher(
            database, self._acquire
        )
        self._dropping: Batcher[Claim, None] = Batcher(database, self._drop)
        self._checking: Batcher[str, bool] = Batcher(database, self._is_held)
        self._prepare()

    def _prepare(self) -> None:
        db, c = self._db, claims.c
        ours = sa.and_(c.owner == self._owner, db.in_keys(c.key, "keys"))
        # The database's clock: those of the processes may differ.
        expires_at = db.clock + self._lease_s
        # Keys come in one order, so that two processes that want the same ones cannot lock each
        # other out.
        # Without the WHERE, SQLite would read the ON of ON CONFLICT as that of a join.
        new = db.insert(claims).from_select(
            ["key", "owner", "fence", "expires_at"],
            sa.select(
                db.key_rows("keys"), sa.literal(self._owner), sa.literal(1), expires_at
            ).where(sa.true()),
        )
        self._insert = db.combine(
            new.on_conflict_do_update(
                # Only an expired claim is taken over; the higher fence shuts its last owner out.
                index_elements=[c.key],
                where=c.expires_at < db.clock,
                set_={
                    "owner": new.excluded.owner,
                    "fence": c.fence + 1,
                    "expires_at": new.excluded.expires_at,
                },
            ).returning(c.key, c.fence)
        )
        # Locked in this order too: an update takes the rows in whichever order it finds them.
        locked = sa.select(c.key).where(ours).order_by(c.key).with_for_update().correlate(None)
        self._update = sa.update(claims).where(c.key.in_(locked)).values(expires_at=expires_at)
        self._delete = sa.delete(claims).where(c.key.in_(locked)).returning(c.key, c.fence)
        self._select_held = sa.select(c.key).where(
            db.in_keys(c.key, "keys"), c.expires_at >= db.clock
        )

    async def once(
        self,
        key: str,
        find: Callable[[], Awaitable[T | None]],
        make: Callable[[Claim], Awaitable[T]],
        *,
        team: str | None = None,
        deadline: float = math.inf,
    ) -> T:
        """Return what `find` finds, else what `make` makes under a claim on `key`.

        While another process holds the claim, wait for it and look again. `make` must end the
        claim when it succeeds, best in the transaction that stores its outcome; when it raises
        `ClaimLost`, everything begins again. Other errors are raised, and the claim is dropped.
        Raises `ClaimTimeout` when the claim is still held at `deadline`, a time on the event
        loop's clock. `team`: as for `acquire`.
        """
        poll_s = FIRST_POLL_S
        while True:
            claim = await self.acquire(key, team)
            try:
                # Look only now: whoever held the claim before us has stored its outcome.
                found = await find()
                if found is None and claim is not None:
                    return await make(claim)
            except ClaimLost:
                continue
            except BaseException:
                # Also when cancelled: others would wait until the lease ends.
                if claim is not None:
                    await self.drop(claim)
                raise
            if found is not None:
                if claim is not None:
                    await self.drop(claim)
                return found
            # Polling, because notifications would add ways to fail (decision 6).
            while await self.is_held(key):
                if asyncio.get_running_loop().time() >= deadline:
                    raise ClaimTimeout
                await asyncio.sleep(poll_s)
                poll_s = min(poll_s * 1.5, MAX_POLL_S)

    async def acquire(self, key: str, team: str | None = None) -> Claim | None:
        """Claim `key` unless somebody holds it. The claim is renewed until it ends.

        `team`: whose rows are read before and after, if known. Claims belong to no team, and in its
        scope they take no round trip to change it.
        """
        # The row may be written after the caller was cancelled; then it is dropped again.
        acquiring = self._acquiring.put((key, team))
        try:
            fence = await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            acquiring.add_done_callback(lambda done: self._drop_unclaimed(key, done))
            raise
        return None if fence is None else (key, fence)

    async def is_held(self, key: str) -> bool:
        """Return whether somebody holds a claim on `key`."""
        return await self._checking.submit(key)

    async def drop(self, claim: Claim) -> None:
        """End a claim without an outcome, so that others need not wait for its lease."""
        await self._dropping.submit(claim)

    async def release(self, connection: AsyncConnection, fences: Mapping[str, int]) -> set[str]:
        """Delete claims, given as fence by key, inside the caller's transaction.

        Returns the keys of those that were still ours. For any other, the work's outcome must not
        be written.
        """
        self.forget(fences)
        deleted = await connection.execute(self._delete, {"keys": self._db.keys(fences)})
        # The statement matches key and owner; this process may have taken the claim over itself.
        return {key for key, fence in deleted if fences[key] == fence}

    def ours(self, name: str) -> sa.CTE:
        """Select those of given claims that are still ours, locked to the transaction's end.

        The claims are bound to the parameter `name`, as packed rows of `key` and `fence`.
        """
        c = claims.c
        given = self._db.rows([c.key, c.fence], name)
        return (
            sa.select(c.key)
            .join(given.key.table, sa.and_(given.key == c.key, given.fence == c.fence))
            .where(c.owner == self._owner)
            .order_by(c.key)
            .with_for_update(of=claims)
            .cte("ours")
        )

    def end(self, ours: sa.CTE, name: str) -> Any:
        """Delete those of `ours` whose keys are bound to `name`. Call `forget` before it runs."""
        return sa.delete(claims).where(
            self._db.in_keys(claims.c.key, name), claims.c.key.in_(sa.select(ours.c.key))
        )

    def forget(self, keys: Iterable[str]) -> None:
        """Stop renewing claims that are about to end."""
        for key in keys:
            self._fences.pop(key, None)

    async def aclose(self) -> None:
        """Stop renewing claims."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def _acquire(self, wanted: Sequence[tuple[str, str | None]]) -> list[int | None]:
        keys = [key for key, _ in wanted]
        scope = team_scope(*(team for _, team in wanted if team is not None))
        rows = await self._db.write(scope, self._insert, {"keys": self._db.keys(keys)})
        acquired = {key: fence for key, fence in rows}  # noqa: C416
        self._fences |= acquired
        if acquired and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.ensure_future(self._renew())
        # Of several callers in this process that want the same key, the first gets the claim.
        return [acquired.pop(key, None) for key in keys]

    async def _renew(self) -> None:
        """Extend the leases of our claims, three times per lease, until there are none."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not self._fences:
                return
            try:
                async with self._db.writing(NO_TEAM) as connection:
                    await connection.execute(self._update, {"keys": self._db.keys(self._fences)})
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                # The next turn tries again. If the lease ends first, the fence refuses our outcome.
                log.warning("claims_not_renewed", error=type(error).__name__)

    async def _is_held(self, keys: Sequence[str]) -> list[bool]:
        rows = await self._db.read(NO_TEAM, self._select_held, {"keys": self._db.keys(keys)})
        held = {key for (key,) in rows}
        return [key in held for key in keys]

    async def _drop(self, dropped: Sequence[Claim]) -> list[None]:
        async with self._db.writing(NO_TEAM) as connection:
            await self.release(connection, dict(dropped))
        return [None] * len(dropped)

    def _drop_unclaimed(self, key: str, done: "asyncio.Future[int | None]") -> None:
        """Drop a claim whose caller was cancelled before it heard that the claim is its own."""
        if done.cancelled() or done.exception() is not None:
            return
        if (fence := done.result()) is not None:
            self._dropping.put((key, fence))
