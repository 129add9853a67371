"""The verdict cache in front of SQL: in-process, or Redis where replicas share one.

Verdicts are immutable under their address, so nothing here can be stale; anything here may vanish.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Protocol

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CachedVerdict = tuple[bool, str | None]
"""Met, and the evidence where there is some."""

log = structlog.get_logger()


class VerdictCache(Protocol):
    """Decided verdicts by address."""

    async def find(self, keys: Iterable[str]) -> dict[str, CachedVerdict]: ...

    async def save(self, verdicts: Mapping[str, CachedVerdict]) -> None: ...

    async def aclose(self) -> None: ...


class MemoryVerdictCache:
    """The most recently used ``size`` verdicts of this process."""

    def __init__(self, size: int = 200_000) -> None:
        self._size = size
        self._verdicts: OrderedDict[str, CachedVerdict] = OrderedDict()

    async def find(self, keys: Iterable[str]) -> dict[str, CachedVerdict]:
        found = {}
        for key in keys:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                found[key] = self._verdicts[key]
        return found

    async def save(self, verdicts: Mapping[str, CachedVerdict]) -> None:
        self._verdicts.update(verdicts)
        while len(self._verdicts) > self._size:
            self._verdicts.popitem(last=False)

    async def aclose(self) -> None:
        self._verdicts.clear()


class RedisVerdictCache:
    """Verdicts shared by all replicas for a day. Redis failing is a miss, never an error.

    Time-outs of 0.2 s without retries bound what an unreachable Redis costs a request.
    """

    PREFIX = "markscheme:verdict:"
    KEEP_S = 24 * 3600

    def __init__(self, url: str) -> None:
        pool: redis.asyncio.BlockingConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=32, timeout=0.2, socket_timeout=0.2, socket_connect_timeout=0.2,
            retry=Retry(NoBackoff(), 0))
        self._redis = redis.asyncio.Redis(connection_pool=pool)

    async def find(self, keys: Iterable[str]) -> dict[str, CachedVerdict]:
        wanted = list(keys)
        if not wanted:
            return {}
        try:
            values = await self._redis.mget([self.PREFIX + key for key in wanted])
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("verdict_cache_unavailable", error=type(error).__name__)
            return {}
        found = {}
        for key, value in zip(wanted, values, strict=True):
            if value is not None:
                met, evidence = json.loads(value)
                found[key] = (met, evidence)
        return found

    async def save(self, verdicts: Mapping[str, CachedVerdict]) -> None:
        if not verdicts:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for key, verdict in verdicts.items():
            pipeline.set(self.PREFIX + key, json.dumps(verdict), ex=self.KEEP_S)
        try:
            await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("verdict_cache_unavailable", error=type(error).__name__)

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()
