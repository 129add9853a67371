"""ConcurrencyLimiter at a judge: bounded, earlier work first, shared between processes through a real Redis."""

import asyncio
from contextlib import AsyncExitStack

from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from fakes.processes import PATIENCE_S
from fakes.stores import RedisServer
from markscheme_server.limits.concurrency import ConcurrencyLimiter
from markscheme_server.limits.redis import Redis


async def hold_for(
    places: ConcurrencyLimiter, turn: int, seen: list[int], release: asyncio.Event
) -> None:
    async with places.hold(turn):
        seen.append(turn)
        await release.wait()


async def test_the_earliest_turn_is_served_first_and_no_more_than_the_size() -> None:
    places, seen, release = ConcurrencyLimiter("j", 2, owner="a"), list[int](), asyncio.Event()
    tasks = [
        asyncio.ensure_future(hold_for(places, turn, seen, release)) for turn in (5, 6, 9, 3, 7, 1)
    ]
    await asyncio.sleep(0.01)
    assert seen == [5, 6]
    assert places.used == 2
    release.set()
    await asyncio.gather(*tasks)
    assert seen == [5, 6, 1, 3, 7, 9]
    assert places.used == 0


async def test_who_leaves_while_waiting_takes_no_place() -> None:
    places, seen, release = ConcurrencyLimiter("j", 1, owner="a"), list[int](), asyncio.Event()
    first, leaving, last = (
        asyncio.ensure_future(hold_for(places, turn, seen, release)) for turn in (0, 1, 2)
    )
    await asyncio.sleep(0.01)
    leaving.cancel()
    release.set()
    await asyncio.gather(first, last)
    assert seen == [0, 2]
    assert places.used == 0


async def test_without_redis_workers_divide_them() -> None:
    places, seen, release = (
        ConcurrencyLimiter("j", 9, owner="a", workers=4),
        list[int](),
        asyncio.Event(),
    )
    tasks = [asyncio.ensure_future(hold_for(places, turn, seen, release)) for turn in range(6)]
    await asyncio.sleep(0.01)
    assert len(seen) == 2
    release.set()
    await asyncio.gather(*tasks)


async def test_processes_share_them_and_one_alone_has_them_all(redis: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        size, places = 8, []
        for owner in ("a", "b"):
            shared = Redis(redis.url)
            stack.push_async_callback(shared.aclose)
            places.append(ConcurrencyLimiter("j", size, owner=owner, workers=2, redis=shared))
        most, running = 0, 0

        async def call(at: ConcurrencyLimiter, turn: int) -> None:
            nonlocal most, running
            async with at.hold(turn):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.02)
                running -= 1

        await asyncio.wait_for(
            asyncio.gather(*(call(places[0], turn) for turn in range(40))), PATIENCE_S
        )
        assert most == size
        await asyncio.wait_for(
            asyncio.gather(*(call(at, turn) for turn in range(60) for at in places)), PATIENCE_S
        )
        assert most == size
        for at in places:
            await at.aclose()


async def test_a_busy_process_makes_room_for_another(redis: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        first, second = Redis(redis.url), Redis(redis.url)
        for shared in (first, second):
            stack.push_async_callback(shared.aclose)
        busy = ConcurrencyLimiter("j", 8, owner="a", workers=2, redis=first)
        newcomer = ConcurrencyLimiter("j", 8, owner="b", workers=2, redis=second)
        stop = False

        async def keep_calling() -> None:
            while not stop:
                async with busy.hold(0):
                    await asyncio.sleep(0.03)

        load = [asyncio.ensure_future(keep_calling()) for _ in range(32)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(PATIENCE_S), newcomer.hold(0):
            pass
        stop = True
        await asyncio.gather(*load)
        for at in (busy, newcomer):
            await at.aclose()


async def test_when_redis_dies_each_has_its_part(redis: RedisServer) -> None:
    shared = Redis(redis.url)
    places, seen, release = (
        ConcurrencyLimiter("j", 8, owner="a", workers=2, redis=shared),
        list[int](),
        asyncio.Event(),
    )
    redis.kill()
    tasks = [asyncio.ensure_future(hold_for(places, turn, seen, release)) for turn in range(8)]
    async for attempt in AsyncRetrying(stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.02)):
        with attempt:
            assert len(seen) == 4
    await asyncio.sleep(0.1)
    assert len(seen) == 4
    release.set()
    await asyncio.gather(*tasks)
    await places.aclose()
    await shared.aclose()
