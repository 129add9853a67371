"""Until when an answer is of use, and whose turn it is."""

import itertools
from dataclasses import dataclass, field

_turns = itertools.count()


@dataclass(slots=True)
class Deadline:
    """A time on the event loop's clock; shared work is due when the last of those who wait for it stops waiting."""

    at: float

    def extend(self, at: float) -> None:
        """Allow until ``at``, when that is later."""
        self.at = max(self.at, at)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a caller waits, and its turn: what began earlier is finished before what came later is begun."""

    deadline: Deadline
    turn: int = field(default_factory=lambda: next(_turns))
