"""Claims over both databases: identical work happens once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from fakes.processes import PATIENCE_S
from markscheme_server.config import Settings
from markscheme_server.store.claims import Claim, ClaimLost, ClaimTimeout
from markscheme_server.store.engine.database import NO_TEAM, Database
from markscheme_server.store.maintenance.migrate import migrate
from markscheme_server.store.store import Store
from markscheme_server.store.tables import claims

KEY = "k" * 64


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[list[Store]]:
    """Two processes on one database."""
    url = Settings(_env_file=None, database_url=database_url).sqlalchemy_url
    made = [Store(url, claim_lease_s=600) for _ in range(2)]
    await migrate(made[0].database)
    yield made
    for store in made:
        await store.close()


class Work:
    """Work whose outcome is in a store that all processes share."""

    def __init__(self) -> None:
        self.outcome: str | None = None
        self.runs, self.begun, self.allowed = 0, asyncio.Event(), asyncio.Event()

    async def find(self) -> str | None:
        return self.outcome

    async def run(self, store: Store, deadline: float = float("inf")) -> str:
        async def make(claim: Claim) -> str:
            self.runs += 1
            self.begun.set()
            await self.allowed.wait()
            self.outcome = "made"
            await store.claims.drop(claim)
            return self.outcome

        return await store.claims.once(KEY, self.find, make, deadline=deadline)


async def test_work_is_done_once_by_whichever_process_is_first(stores: list[Store]) -> None:
    work = Work()
    asking = [asyncio.ensure_future(work.run(stores[i % 2])) for i in range(6)]
    await work.begun.wait()
    work.allowed.set()
    assert await asyncio.gather(*asking) == ["made"] * 6
    assert work.runs == 1
    assert not await stores[0].claims.is_held(KEY)


async def test_a_failure_is_raised_and_the_next_caller_tries_again(stores: list[Store]) -> None:
    async def fail(claim: Claim) -> str:
        raise ValueError("broken")

    work = Work()
    work.allowed.set()
    with pytest.raises(ValueError, match="broken"):
        await stores[0].claims.once(KEY, work.find, fail)
    assert await work.run(stores[1]) == "made"


async def test_a_failing_look_up_leaves_no_claim(stores: list[Store]) -> None:
    async def fail() -> str | None:
        raise OSError("gone")

    async def make(claim: Claim) -> str:
        raise AssertionError("must not be called")

    with pytest.raises(OSError, match="gone"):
        await stores[0].claims.once(KEY, fail, make)
    assert not await stores[0].claims.is_held(KEY)


async def test_after_a_lost_claim_everything_begins_again(stores: list[Store]) -> None:
    attempts = 0

    async def make(claim: Claim) -> str:
        nonlocal attempts
        attempts += 1
        await stores[0].claims.drop(claim)
        if attempts == 1:
            raise ClaimLost
        return "made"

    assert await stores[0].claims.once(KEY, Work().find, make) == "made"
    assert attempts == 2


async def test_waiting_ends_at_the_deadline(stores: list[Store]) -> None:
    work = Work()
    first = asyncio.ensure_future(work.run(stores[0]))
    await work.begun.wait()
    with pytest.raises(ClaimTimeout):
        await work.run(stores[1], deadline=asyncio.get_running_loop().time())
    work.allowed.set()
    assert await first == "made"


async def test_claims_that_end_and_are_asked_for_at_once_lock_no_other_out(
    stores: list[Store],
) -> None:
    """Rows are locked in one order, whichever order the table has them in."""
    keys = ["z", "m", "a"]
    held = [await stores[0].claims.acquire(key) for key in keys]
    async with stores[0].database.writing(NO_TEAM) as connection:
        middle = sa.select(claims.c.key).where(claims.c.key == "m").with_for_update()
        await connection.execute(middle)
        ending = asyncio.gather(*(stores[0].claims.drop(claim) for claim in held if claim))
        await until_waiting(stores[0].database, 1)
        asking = asyncio.gather(*(stores[1].claims.acquire(key) for key in keys))
        await until_waiting(stores[0].database, 2)
    await asyncio.gather(ending, asking)


async def until_waiting(database: Database, count: int) -> None:
    """Wait until so many others wait for a lock; SQLite has one lock, and no way to tell."""
    if database.engine.dialect.name == "sqlite":
        return
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async for attempt in AsyncRetrying(stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.02)):
        with attempt:
            async with database.reading(NO_TEAM) as connection:
                assert (await connection.execute(waiting)).scalar_one() == count


async def test_a_claim_dropped_just_before_the_end_is_not_left_to_its_lease(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = stores[0].claims.release

    async def release_slowly(*args: Any) -> set[str]:
        await asyncio.sleep(0.05)
        return await release(*args)

    monkeypatch.setattr(stores[0].claims, "release", release_slowly)
    working = asyncio.ensure_future((work := Work()).run(stores[0]))
    await work.begun.wait()
    working.cancel()
    for _ in range(3):
        await asyncio.sleep(0)  # the drop is handed in, and nobody waits for it
    await stores[0].drain()
    await stores[0].close()
    async with stores[1].database.reading(NO_TEAM) as connection:
        assert (await connection.execute(sa.select(claims.c.key))).all() == []


async def test_a_connection_in_use_at_the_end_is_waited_for(stores: list[Store]) -> None:
    async def use() -> int:
        async with stores[0].database.reading(NO_TEAM) as connection:
            begun.set()
            await asyncio.sleep(0.05)
            return int((await connection.execute(sa.text("SELECT 1"))).scalar_one())

    begun = asyncio.Event()
    using = asyncio.ensure_future(use())
    await begun.wait()
    await stores[0].close()
    assert using.done()
    assert await using == 1
