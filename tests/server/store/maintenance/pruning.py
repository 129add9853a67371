"""Pruning to its end."""

from collections import Counter

from markscheme_server.store.maintenance.prune import Pruner


async def every(pruner: Pruner) -> Counter[str]:
    removed: Counter[str] = Counter()
    async for window in pruner.run():
        removed.update(window.removed)
    return removed
