"""The verdict cache in front of SQL: in this process, and in Redis behind it where replicas share one.

Verdicts are immutable under their address, so nothing here can be stale; anything here may vanish.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from markscheme_server.cache.redis import Redis, RedisGone

CachedVerdict = tuple[bool, str | None]
"""Met, and the evidence where there is some."""

PREFIX = "markscheme:verdict:"
KEEP_S = 24 * 3600


class VerdictCache:
    """The most recently used ``size`` verdicts of this process; those of all processes for a day, given a Redis."""

    def __init__(self, redis: Redis | None = None, *, size: int = 200_000) -> None:
        self._redis, self._size = redis, size
        self._verdicts: OrderedDict[str, CachedVerdict] = OrderedDict()

    async def find(self, keys: Iterable[str]) -> dict[str, CachedVerdict]:
        """The verdicts that are here."""
        own, found, missing = self._verdicts, {}, []
        for key in keys:
            verdict = own.get(key)
            if verdict is None:
                missing.append(key)
            else:
                own.move_to_end(key)
                found[key] = verdict
        if missing and self._redis is not None:
            shared = await self._find_shared(self._redis, missing)
            self._keep(shared)
            found |= shared
        return found

    async def save(self, verdicts: Mapping[str, CachedVerdict]) -> None:
        """Keep verdicts that the database holds."""
        self._keep(verdicts)
        if verdicts and self._redis is not None:
            pipeline = self._redis.client.pipeline(transaction=False)
            for key, verdict in verdicts.items():
                pipeline.set(PREFIX + key, json.dumps(verdict), ex=KEEP_S)
            try:
                await self._redis.ask(lambda _: pipeline.execute())
            except RedisGone:
                return

    def _keep(self, verdicts: Mapping[str, CachedVerdict]) -> None:
        self._verdicts.update(verdicts)
        while len(self._verdicts) > self._size:
            self._verdicts.popitem(last=False)

    @staticmethod
    async def _find_shared(redis: Redis, keys: list[str]) -> dict[str, CachedVerdict]:
        try:
            values = await redis.ask(lambda client: client.mget([PREFIX + key for key in keys]))
        except RedisGone:
            return {}
        return {key: (bool((verdict := json.loads(value))[0]), verdict[1])
                for key, value in zip(keys, values, strict=True) if value is not None}
