"""How many runs have each kind of finding, for `/metrics`."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import get_args

from markscheme.vocabulary import FindingKind
from markscheme_server import metrics
from markscheme_server.store.runs import StoredRun

HEARD_S = 3600.0
"""A run counts for so long after its last score."""


class FindingGauge:
    """Counts runs by finding, as they were when they were last looked at. Needs an event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._runs: dict[tuple[str, str], tuple[float, frozenset[FindingKind]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, run: StoredRun, kinds: Iterable[FindingKind]) -> None:
        """Count a run with its findings, instead of those that it had before."""
        if run.last_scored_at is not None:
            until = run.last_scored_at.timestamp() + HEARD_S
            self._runs[run.team, run.id] = until, frozenset(kinds)
            self.update()

    def update(self) -> None:
        """Set the metric, without runs that were not heard of for too long."""
        at = self._clock()
        self._runs = {key: noted for key, noted in self._runs.items() if noted[0] > at}
        counts = Counter(kind for _, kinds in self._runs.values() for kind in kinds)
        for kind in get_args(FindingKind):
            metrics.RUN_FINDINGS.labels(kind=kind).set(counts[kind])
        if self._timer is not None:
            self._timer.cancel()
        if self._runs:
            wait = min(until for until, _ in self._runs.values()) - at
            self._timer = asyncio.get_running_loop().call_later(wait, self.update)
