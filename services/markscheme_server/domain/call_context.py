"""Until when an answer is of use, and whose turn it is."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Protocol

from markscheme_server.domain.usage import JudgeUsage

_turns = itertools.count()


@dataclass(slots=True)
class Deadline:
    """A time on the event loop's clock; shared work is due when the last of those who wait for it stops waiting."""

    at: float

    def extend(self, at: float) -> None:
        """Allow until ``at``, when that is later."""
        self.at = max(self.at, at)


@dataclass(slots=True)
class Allowance:
    """Seconds of computing that the checks of one request may still take."""

    left_s: float = math.inf


class SpendGuard(Protocol):
    """Who pays for a question; see :class:`markscheme_server.domain.spend_guard.SpendGuard`."""

    usage: JudgeUsage

    async def hold(self, nano: int, deadline: Deadline) -> None: ...


@dataclass(frozen=True, slots=True)
class CallContext:
    """How long a caller waits, its turn (what began earlier is finished before what came later is begun), who pays,
    where there is a budget to keep, which team's share it is, and what computing its request has left."""

    deadline: Deadline
    turn: int = field(default_factory=lambda: next(_turns))
    budget: SpendGuard | None = None
    team: str = ""
    allowance: Allowance = field(default_factory=Allowance)
