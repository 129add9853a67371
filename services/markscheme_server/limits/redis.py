"""The one way to Redis: a pool that waits, short time-outs, and a pause after a failure.

Redis may be refused, silent or slow at any time. A command then fails within 0.2 s, and for a while no further
command is tried; a ping in the background finds out when it is back. Nothing durable is kept there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

TIMEOUT_S = 0.2
SLOW_S = 0.1
"""An answer that takes longer costs more than it saves: the database is as fast."""
PAUSE_S = 1.0
FAILURES = (RedisError, OSError, TimeoutError)

T = TypeVar("T")
log = structlog.get_logger()


class RedisUnavailable(Exception):
    """Redis did not answer, or did not a moment ago."""


class Redis:
    """A connection pool behind a breaker of its own."""

    def __init__(self, url: str, password: str | None = None) -> None:
        pool: redis.asyncio.BlockingConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            password=password,
            max_connections=32,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self.client = redis.asyncio.Redis(connection_pool=pool)
        self._watching: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether Redis answered when last asked."""
        return self._watching is None

    async def ask(self, command: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> T:
        """Run ``command``; raises :class:`RedisUnavailable` within about 0.2 s, at once while Redis is known to be gone."""
        if not self.up:
            raise RedisUnavailable
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(TIMEOUT_S * 2):
                answer = await command(self.client)
        except FAILURES as error:
            self._leave_alone(type(error).__name__)
            raise RedisUnavailable from error
        if loop.time() - started > SLOW_S:
            self._leave_alone("slow")
        return answer

    def _leave_alone(self, why: str) -> None:
        if self.up:
            log.warning("redis_gone", why=why)
            self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(SLOW_S):
                    await self.client.ping()
            except FAILURES:
                continue
            log.info("redis_back")
            self._watching = None
            return

    async def aclose(self) -> None:
        """Let go of connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.client.aclose()
        await self.client.connection_pool.disconnect()
