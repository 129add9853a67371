"""Verdicts: met, not met, or not known for a stated reason."""

from dataclasses import dataclass
from typing import NamedTuple

from markscheme.vocabulary import UnscoredReason


class StoredDecision(NamedTuple):
    """A decided verdict as it is stored.

    `cost_usd`: its part of what its call cost; `None`: not known.
    """

    met: bool
    evidence: str | None
    cost_usd: float | None
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one criterion for one response.

    Exactly one of `met` and `reason` is set. `cached`: it was stored before this request.
    """

    criterion_id: str
    met: bool | None
    reason: UnscoredReason | None = None
    evidence: str | None = None
    cached: bool = False
    rationale: str | None = None

    def __post_init__(self) -> None:
        if (self.met is None) == (self.reason is None):
            raise ValueError("a verdict is met, not met, or unscored with a reason")
        if self.met is not None and not isinstance(self.met, bool):
            raise TypeError("met must be a boolean")
