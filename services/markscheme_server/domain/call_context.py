"""Deadline, queue priority and budget that travel with a judge call."""

import itertools
import math
from dataclasses import dataclass, field

from markscheme_server.domain.usage import JudgeUsage

_priorities = itertools.count()


@dataclass(slots=True)
class Deadline:
    """A time on the event loop's clock, in seconds.

    Work that several callers share is due at the latest of their deadlines.
    """

    at: float

    def extend(self, at: float) -> None:
        """Move the deadline to `at` if that is later."""
        self.at = max(self.at, at)


@dataclass(slots=True)
class Allowance:
    """Seconds of computing that the checks of one request may still take."""

    left_s: float = math.inf


class SpendGuard:
    """What one question has cost so far, and the money for its next request. Sets no limit.

    `usage` is kept up to date by the judge: a request counts at its highest possible cost from
    the moment it is sent, and at its real cost once that is known.
    """

    def __init__(self) -> None:
        self.usage = JudgeUsage()

    async def hold(self, nano: int, deadline: Deadline) -> None:
        """Set aside `nano` nano-dollars, the most that the next request can cost.

        Raises `JudgeFailure` when the budget is spent, or has no money free before the deadline.
        """


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a judge call needs to know of the request that it belongs to.

    `priority`: lower values go first; by default requests go in the order in which they began.
    `budget`: who pays, if there is a budget. `team`: whose share of the judge is used.
    `allowance`: the computing time that is left for checks. `spent`: one for each question that
    was asked for the request; questions that it only waited for are not among them.
    """

    deadline: Deadline
    priority: int = field(default_factory=lambda: next(_priorities))
    budget: SpendGuard | None = None
    team: str = ""
    allowance: Allowance = field(default_factory=Allowance)
    spent: list[SpendGuard] = field(default_factory=list)

    @property
    def usage(self) -> JudgeUsage:
        """What the request's questions have cost so far, answered or not."""
        return sum((guard.usage for guard in self.spent), JudgeUsage())
