"""What the process that runs the application and the application tell each other about its end."""

from dataclasses import dataclass


@dataclass(slots=True)
class Drain:
    """One process's ending. A module of its own: the process that only supervises loads nothing of the service."""

    draining: bool = False
    """Set by the process: no more work should be sent here, though it is still taken."""
    last_request_at: float | None = None
    """Set by the application, on the monotonic clock: whether anyone would miss it."""
