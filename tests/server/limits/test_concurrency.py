"""Slots for judge calls: bounded, lowest priority value first, shared through a real Redis."""

import asyncio
import time
from contextlib import AsyncExitStack

from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from fakes.processes import PATIENCE_S
from fakes.stores import RedisServer
from markscheme_server.limits.concurrency import RENEW_S, SPARE_SLOTS, ConcurrencyLimiter
from markscheme_server.limits.redis import Redis


async def hold_for(
    limiter: ConcurrencyLimiter, priority: int, seen: list[int], release: asyncio.Event
) -> None:
    async with limiter.slot(priority):
        seen.append(priority)
        await release.wait()


async def test_the_lowest_priority_value_is_served_first_within_the_size() -> None:
    limiter, seen, release = ConcurrencyLimiter("j", 2, owner="a"), list[int](), asyncio.Event()
    tasks = [
        asyncio.ensure_future(hold_for(limiter, priority, seen, release))
        for priority in (5, 6, 9, 3, 7, 1)
    ]
    await asyncio.sleep(0.01)
    assert seen == [5, 6]
    assert limiter.used == 2
    release.set()
    await asyncio.gather(*tasks)
    assert seen == [5, 6, 1, 3, 7, 9]
    assert limiter.used == 0


async def test_a_cancelled_waiter_takes_no_slot() -> None:
    limiter, seen, release = ConcurrencyLimiter("j", 1, owner="a"), list[int](), asyncio.Event()
    first, leaving, last = (
        asyncio.ensure_future(hold_for(limiter, priority, seen, release)) for priority in (0, 1, 2)
    )
    await asyncio.sleep(0.01)
    leaving.cancel()
    release.set()
    await asyncio.gather(first, last)
    assert seen == [0, 2]
    assert limiter.used == 0


async def test_without_redis_workers_divide_the_slots() -> None:
    limiter, seen, release = (
        ConcurrencyLimiter("j", 9, owner="a", workers=4),
        list[int](),
        asyncio.Event(),
    )
    tasks = [
        asyncio.ensure_future(hold_for(limiter, priority, seen, release)) for priority in range(6)
    ]
    await asyncio.sleep(0.01)
    assert len(seen) == 2
    release.set()
    await asyncio.gather(*tasks)


async def test_processes_share_the_slots_and_a_lone_process_has_all(redis: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        size, limiters = 8, []
        for owner in ("a", "b"):
            shared = Redis(redis.url)
            stack.push_async_callback(shared.aclose)
            limiters.append(ConcurrencyLimiter("j", size, owner=owner, workers=2, redis=shared))
        most, running = 0, 0

        async def call(at: ConcurrencyLimiter, priority: int) -> None:
            nonlocal most, running
            async with at.slot(priority):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.02)
                running -= 1

        await asyncio.wait_for(
            asyncio.gather(*(call(limiters[0], priority) for priority in range(40))), PATIENCE_S
        )
        assert most == size
        await asyncio.wait_for(
            asyncio.gather(*(call(at, priority) for priority in range(60) for at in limiters)), 10
        )
        assert most == size
        for at in limiters:
            await at.aclose()


async def test_a_busy_process_yields_slots_to_a_newcomer(redis: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        first, second = Redis(redis.url), Redis(redis.url)
        for shared in (first, second):
            stack.push_async_callback(shared.aclose)
        busy = ConcurrencyLimiter("j", 8, owner="a", workers=2, redis=first)
        newcomer = ConcurrencyLimiter("j", 8, owner="b", workers=2, redis=second)
        stop = False

        async def keep_calling() -> None:
            while not stop:
                async with busy.slot(0):
                    await asyncio.sleep(0.03)

        load = [asyncio.ensure_future(keep_calling()) for _ in range(32)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(PATIENCE_S), newcomer.slot(0):
            pass
        stop = True
        await asyncio.gather(*load)
        for at in (busy, newcomer):
            await at.aclose()


async def test_each_worker_has_an_even_share_when_redis_dies(redis: RedisServer) -> None:
    shared = Redis(redis.url)
    limiter, seen, release = (
        ConcurrencyLimiter("j", 8, owner="a", workers=2, redis=shared),
        list[int](),
        asyncio.Event(),
    )
    redis.kill()
    tasks = [
        asyncio.ensure_future(hold_for(limiter, priority, seen, release)) for priority in range(8)
    ]
    async for attempt in AsyncRetrying(stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.02)):
        with attempt:
            assert len(seen) == 4
    await asyncio.sleep(0.1)
    assert len(seen) == 4
    release.set()
    await asyncio.gather(*tasks)
    await limiter.aclose()
    await shared.aclose()


async def test_slots_that_are_too_many_are_given_back(redis: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        shared = Redis(redis.url)
        stack.push_async_callback(shared.aclose)
        limiter = ConcurrencyLimiter("surplus", 64, owner="a", redis=shared)
        seen, stays, ends = list[int](), asyncio.Event(), asyncio.Event()
        calls = [
            asyncio.ensure_future(hold_for(limiter, 0, seen, stays if n == 0 else ends))
            for n in range(32)
        ]

        async def held() -> int:
            row = await shared.run(lambda client: client.hget("markscheme:slots:surplus", "a"))
            return int(row.partition(b":")[0]) if row else 0

        async for attempt in AsyncRetrying(
            stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.01)
        ):
            with attempt:
                assert len(seen) == 32
        assert await held() >= 32
        ends.set()
        async for attempt in AsyncRetrying(
            stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.01)
        ):
            with attempt:
                assert 1 <= await held() <= 1 + SPARE_SLOTS
        stays.set()
        await asyncio.gather(*calls)
        await limiter.aclose()


async def test_while_nothing_changes_a_process_only_reports(redis: RedisServer) -> None:
    """It woke fifty times a second while a call was under way."""
    async with AsyncExitStack() as stack:
        shared = Redis(redis.url)
        stack.push_async_callback(shared.aclose)
        limiter = ConcurrencyLimiter("quiet", 8, owner="a", redis=shared)
        async with limiter.slot(0):
            before = await shared.run(lambda client: client.info("commandstats"))
            begun = time.monotonic()
            await asyncio.sleep(5 * RENEW_S)
            after = await shared.run(lambda client: client.info("commandstats"))
            asked = after["cmdstat_eval"]["calls"] - before["cmdstat_eval"]["calls"]
            assert 1 <= asked <= (time.monotonic() - begun) / RENEW_S + 1
        await limiter.aclose()
