"""Windows of the clock, in which limits count."""

import time


def before_the_turn(window_s: int = 60) -> None:
    """Wait until the clock's window has at least 2 s left: the counters of a process follow it."""
    left_s = window_s - time.time() % window_s
    if left_s < 2:
        time.sleep(left_s + 0.01)
