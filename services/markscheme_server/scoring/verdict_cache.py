"""The verdict cache in front of SQL.

Verdicts are immutable under their address, so nothing here can be stale. It is this process's own: what another one
has stored is read from the database, which answers as fast as a shared cache would.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from markscheme_server.domain.verdict import StoredDecision


class VerdictCache:
    """The ``size`` verdicts that were used last."""

    def __init__(self, *, size: int = 200_000) -> None:
        self._size = size
        self._verdicts: OrderedDict[str, StoredDecision] = OrderedDict()

    def find(self, keys: Iterable[str]) -> dict[str, StoredDecision]:
        """The verdicts that are here."""
        own, found = self._verdicts, {}
        for key in keys:
            if (verdict := own.get(key)) is not None:
                own.move_to_end(key)
                found[key] = verdict
        return found

    def save(self, verdicts: Mapping[str, StoredDecision]) -> None:
        """Keep verdicts that the database holds."""
        self._verdicts.update(verdicts)
        while len(self._verdicts) > self._size:
            self._verdicts.popitem(last=False)
