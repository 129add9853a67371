"""What judging costs. Money is counted in whole nano-dollars, so that sums are exact."""

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

NANO = 10**9
"""Nano-dollars in a dollar."""


def to_nano(usd: float) -> int:
    """Return the nearest whole number of nano-dollars. `usd` must be finite."""
    return int((Decimal(repr(float(usd))) * NANO).to_integral_value(ROUND_HALF_EVEN))


def to_usd(nano: int) -> float:
    """Return dollars."""
    return nano / NANO


@dataclass(frozen=True, slots=True)
class JudgeUsage:
    """Calls, tokens and costs.

    `cached_tokens`: prompt tokens that the endpoint had cached. `cost`: of the calls whose cost is
    known, in nano-dollars. `unpriced_calls`: those whose cost is not known, because the judge has
    no prices or the endpoint did not state its usage. `unknown`: the most that those can have
    cost, in nano-dollars, as far as there are prices.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    unpriced_calls: int = 0
    unknown: int = 0

    @property
    def settled(self) -> int:
        """What counts against budgets, in nano-dollars; an unknown cost counts at its maximum."""
        return self.cost + self.unknown

    @property
    def cost_usd(self) -> float | None:
        """The cost in dollars; `None` if the cost of any call is not known."""
        return None if self.unpriced_calls else to_usd(self.cost)

    def __add__(self, other: "JudgeUsage") -> "JudgeUsage":
        return JudgeUsage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cost + other.cost,
            self.unpriced_calls + other.unpriced_calls,
            self.unknown + other.unknown,
        )
