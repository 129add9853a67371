"""Pruning to its end."""

from collections import Counter

from markscheme_server.store.maintenance.prune import Pruner


async def every(pruner: Pruner) -> Counter[str]:
    removed: Counter[str] = Counter()
    async for batch in pruner.run():
        removed.update(batch.deleted)
    return removed
