"""The shutdown state that the server and the application share.

A module of its own: the supervisor imports nothing else of the service.
"""

import ctypes
import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Drain:
    """The shutdown state of one process."""

    draining: bool = False
    """Set by the server: `/readyz` answers 503, though requests are still accepted."""
    last_request_at: ctypes.c_double = field(default_factory=lambda: ctypes.c_double(-math.inf))
    """Set by the application, on the monotonic clock: when the last request came.

    Workers share it, as any of them may get the requests of all.
    """
