"""Verdicts: met, not met, not applicable, or not known for a stated reason."""

from dataclasses import dataclass
from typing import NamedTuple

from markscheme.vocabulary import UnscoredReason


class StoredDecision(NamedTuple):
    """A decided verdict as it is stored.

    `met`: `None` where the criterion does not apply. `cost_usd`: its part of what its call cost;
    `None`: not known.
    """

    met: bool | None
    evidence: str | None
    cost_usd: float | None
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one criterion for one response.

    `met` is set, or `reason`, or neither where the criterion is not `applicable`. `cached`: it was
    stored before this request.
    """

    criterion_id: str
    met: bool | None
    reason: UnscoredReason | None = None
    evidence: str | None = None
    cached: bool = False
    rationale: str | None = None
    applicable: bool = True

    def __post_init__(self) -> None:
        if (self.met is not None) + (self.reason is not None) + (not self.applicable) != 1:
            raise ValueError("a verdict is met, not met, not applicable, or unscored with a reason")
        if self.met is not None and not isinstance(self.met, bool):
            raise TypeError("met must be a boolean")
