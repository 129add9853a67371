"""A cache of compiled regular expressions with bounded memory, each and in total."""

import threading
from collections import OrderedDict
from typing import Any

import re2

PATTERN_BYTES = 2**20
"""Maximum memory of a pattern's program and automaton; RE2 drops the automaton beyond it."""
LARGE_PATTERN_BYTES = 8 * 2**20
"""The maximum for patterns with a larger program, which only stored rubrics still hold."""
CACHE_BYTES = 64 * 2**20


class PatternCache:
    """The most recently used patterns, up to ``max_bytes``. Thread-safe."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._free_bytes = max_bytes
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, bool], tuple[Any, int]] = OrderedDict()

    def find(self, pattern: str, ignore_case: bool, *, allow_large: bool = True) -> Any:
        """Return the compiled pattern.

        Raises ``re2.error``; without ``allow_large`` also for more than `PATTERN_BYTES`.
        """
        key = pattern, ignore_case
        with self._lock:
            found = self._cache.get(key)
            # A large pattern that a stored rubric brought here is still refused in a new one.
            if found is not None and (allow_large or found[1] == PATTERN_BYTES):
                self._cache.move_to_end(key)
                return found[0]
        try:
            # Outside the lock, because it takes long; at worst two threads do it at once.
            compiled, size = _compile(pattern, ignore_case, PATTERN_BYTES), PATTERN_BYTES
        except re2.error:
            if not allow_large:
                raise
            size = LARGE_PATTERN_BYTES
            compiled = _compile(pattern, ignore_case, size)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = compiled, size
                self._free_bytes -= size
            while self._free_bytes < 0 and len(self._cache) > 1:
                self._free_bytes += self._cache.popitem(last=False)[1][1]
        return compiled


def _compile(pattern: str, ignore_case: bool, max_bytes: int) -> Any:
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.max_mem = max_bytes
    try:
        return re2.compile(pattern, options=options)
    finally:
        re2.purge()  # re2 caches 128 patterns of its own, whatever their size
