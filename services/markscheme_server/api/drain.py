"""The shutdown state that the server and the application share.

A module of its own: the supervisor imports nothing else of the service.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Drain:
    """The shutdown state of one process."""

    draining: bool = False
    """Set by the server: `/readyz` answers 503, though requests are still accepted."""
    last_request_at: float | None = None
    """Set by the application, on the monotonic clock: when the last request came."""
