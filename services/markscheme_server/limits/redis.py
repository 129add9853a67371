"""The Redis connection: a blocking pool, short timeouts, and a pause after a failure.

Redis may be down, silent or slow at any time. A command then fails within about 0.2 s, and further
commands fail at once until a ping in the background succeeds. Nothing durable is stored in Redis.
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
"""A slower answer costs more than it saves: the database is as fast."""
PAUSE_S = 1.0
FAILURES = (RedisError, OSError, TimeoutError)

T = TypeVar("T")
log = structlog.get_logger()


class RedisUnavailable(Exception):
    """Redis did not answer, or failed so recently that it was not asked."""


class Redis:
    """A connection pool that stops sending commands while Redis is down."""

    def __init__(self, url: str, password: str | None = None) -> None:
        pool: redis.asyncio.BlockingConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            password=password,
            max_connections=32,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # No retries: every caller can go on without Redis.
            retry=Retry(NoBackoff(), 0),
        )
        self.client = redis.asyncio.Redis(connection_pool=pool)
        self._recovery: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether Redis answered the last command in time."""
        return self._recovery is None

    async def run(self, command: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> T:
        """Run ``command``.

        Raises `RedisUnavailable` within about 0.2 s, or at once while Redis is known to be down.
        """
        if not self.is_up:
            raise RedisUnavailable
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            # Waiting for a connection and for the answer may take `TIMEOUT_S` each.
            async with asyncio.timeout(TIMEOUT_S * 2):
                answer = await command(self.client)
        except FAILURES as error:
            self._pause(type(error).__name__)
            raise RedisUnavailable from error
        # This answer is good; the next commands are spared the wait.
        if loop.time() - started > SLOW_S:
            self._pause("slow")
        return answer

    def _pause(self, reason: str) -> None:
        if self.is_up:
            log.warning("redis_unavailable", reason=reason)
            self._recovery = asyncio.ensure_future(self._wait_until_up())

    async def _wait_until_up(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(SLOW_S):
                    await self.client.ping()
            except FAILURES:
                continue
            log.info("redis_available")
            self._recovery = None
            return

    async def aclose(self) -> None:
        """Close the connections."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await self.client.aclose()
        await self.client.connection_pool.disconnect()
