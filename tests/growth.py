"""Measure how the cost of reading a text grows with its length.

Other work can only add to a time. So the time of this thread is measured, the least of several is
compared, and measuring goes on while it is too much.
"""

import time
from collections.abc import Callable

ROUNDS = 12
FACTOR, MOST_GROWTH = 4, 9
"""A text `FACTOR` times as long may cost `MOST_GROWTH` times as much; a quadratic reader takes 16
times as long."""
NEGLIGIBLE_S = 0.02


def least_seconds(read: Callable[[str], object], text: str, enough_s: float) -> float:
    """Return the least CPU seconds of this thread in at most `ROUNDS` calls; stop at `enough_s`."""
    least = float("inf")
    for _ in range(ROUNDS):
        started = time.thread_time()
        read(text)
        least = min(least, time.thread_time() - started)
        if least <= enough_s:
            break
    return least


def assert_linear(
    read: Callable[[str], object], text_of: Callable[[int], str], *, size: int
) -> None:
    """Fail if ``read`` takes more than linear time between ``size`` and four times that.

    Args:
        read: What is measured.
        text_of: Makes a text of about so many characters.
        size: Characters of the shorter text.
    """
    short, long = text_of(size), text_of(FACTOR * size)
    started = time.thread_time()
    read(long)
    if time.thread_time() - started <= NEGLIGIBLE_S:
        return  # whatever the shorter one takes
    once = least_seconds(read, short, enough_s=0)
    most_s = max(MOST_GROWTH * once, NEGLIGIBLE_S)
    assert least_seconds(read, long, enough_s=most_s) <= most_s
