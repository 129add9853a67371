"""What judging costs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JudgeUsage:
    """What a piece of judging cost. ``cached_tokens``: those of the prompt's that the endpoint had at hand.

    ``cost_usd`` is what the tokens come to that the endpoint stated; ``None`` when the judge has no prices.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = 0.0

    def __add__(self, other: "JudgeUsage") -> "JudgeUsage":
        known = self.cost_usd is not None and other.cost_usd is not None
        return JudgeUsage(self.calls + other.calls, self.prompt_tokens + other.prompt_tokens,
                          self.completion_tokens + other.completion_tokens, self.cached_tokens + other.cached_tokens,
                          (self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None)
