"""Windows of the clock, in which limits count."""

import time


def before_the_turn(window_s: int = 60) -> None:
    """Wait, if need be, until a window of the clock has a while to go: in one process counts change over with it."""
    left_s = window_s - time.time() % window_s
    if left_s < 2:
        time.sleep(left_s + 0.01)
