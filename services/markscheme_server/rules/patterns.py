"""Compiled regular expressions: each with bounded memory, and all that are kept with a bounded sum of it."""

import threading
from collections import OrderedDict
from typing import Any

import re2

PATTERN_BYTES = 2**20
"""The most that one pattern's program and automaton take. RE2 goes on without an automaton when it needs more."""
OLD_PATTERN_BYTES = 8 * 2**20
"""The same for a pattern whose program alone is larger: none is taken any more, but rubrics may hold some."""
KEPT_BYTES = 64 * 2**20


class Patterns:
    """The patterns that were used last, up to ``kept_bytes``. May be used by several threads."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._room = kept_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, bool], tuple[Any, int]] = OrderedDict()

    def find(self, pattern: str, ignore_case: bool, *, old: bool = True) -> Any:
        """The compiled pattern. Raises ``re2.error``, without ``old`` also for one of more than ``PATTERN_BYTES``."""
        key = pattern, ignore_case
        with self._lock:
            if (found := self._kept.get(key)) is not None and (old or found[1] == PATTERN_BYTES):
                self._kept.move_to_end(key)
                return found[0]
        try:
            compiled, size = _compile(pattern, ignore_case, PATTERN_BYTES), PATTERN_BYTES
        except re2.error:
            if not old:
                raise
            compiled, size = _compile(pattern, ignore_case, OLD_PATTERN_BYTES), OLD_PATTERN_BYTES
        with self._lock:
            if key not in self._kept:
                self._kept[key] = compiled, size
                self._room -= size
            while self._room < 0 and len(self._kept) > 1:
                self._room += self._kept.popitem(last=False)[1][1]
        return compiled


def _compile(pattern: str, ignore_case: bool, most_bytes: int) -> Any:
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.max_mem = most_bytes
    try:
        return re2.compile(pattern, options=options)
    finally:
        re2.purge()  # it keeps 128 patterns of its own, whatever their size
