"""A clock whose time a test lets pass without waiting."""

import time


class Clock:
    """The monotonic clock, plus what `advance` has added."""

    def __init__(self) -> None:
        self._added_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._added_s

    def advance(self, seconds: float) -> None:
        self._added_s += seconds
