"""Stand in for the service in worker processes: it imports nothing, so that they start at once."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[Any, Any, Any, Any, Any], None]


def ends(_settings: Any, _level: Any, _listener: Any, _pipe: Any, _last: Any) -> None:
    """End without having served."""


def serves(_settings: Any, _level: Any, _listener: Any, pipe: Any, _last: Any) -> None:
    """Say that it serves; the first signal ends it."""
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, lambda sig, frame: os._exit(0))
    pipe.send(True)
    time.sleep(60)


def hangs(_settings: Any, _level: Any, _listener: Any, pipe: Any, _last: Any) -> None:
    """Say that it serves, and hear no signal."""
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    pipe.send(True)
    time.sleep(60)
