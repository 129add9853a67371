"""An in-memory cache of verdicts in front of the database.

Verdicts never change under their key, so nothing here can be stale. Each process has a cache of
its own: what another process stored is read from the database, as fast as from a shared cache.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from markscheme_server.domain.verdict import StoredDecision


class VerdictCache:
    """The `size` verdicts that were used most recently."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._verdicts: OrderedDict[str, StoredDecision] = OrderedDict()

    def find(self, keys: Iterable[str]) -> dict[str, StoredDecision]:
        """Return the cached verdicts among `keys`."""
        found = {}
        for key in keys:
            if (verdict := self._verdicts.get(key)) is not None:
                self._verdicts.move_to_end(key)
                found[key] = verdict
        return found

    def save(self, verdicts: Mapping[str, StoredDecision]) -> None:
        """Cache verdicts that the database holds."""
        self._verdicts.update(verdicts)
        while len(self._verdicts) > self._size:
            self._verdicts.popitem(last=False)
