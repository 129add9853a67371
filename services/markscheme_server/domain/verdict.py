"""Verdicts: met, not met, not applicable, or not known for a stated reason."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


class _HasDecision(Protocol):
    @property
    def met(self) -> bool | None: ...

    @property
    def applicable(self) -> bool: ...


MET, NOT_MET, NOT_APPLICABLE, UNKNOWN = "10-?"


def verdict_string(verdicts: Iterable[_HasDecision]) -> str:
    """Return verdicts as they are stored with a rollout: one character each, in their order.

    `1` met, `0` not met, `-` not applicable, `?` unknown.
    """
    return "".join(
        (MET if verdict.met else NOT_MET)
        if verdict.met is not None
        else (UNKNOWN if verdict.applicable else NOT_APPLICABLE)
        for verdict in verdicts
    )
