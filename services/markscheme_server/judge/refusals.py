"""The kinds of refusal: why an endpoint gave no completion.

`refusal_parsing` reads an endpoint's answer, and `refusal_table` maps it to a kind. The kind
decides the reason on the wire (here), whether the call is retried (`retry`), and what the next call
omits (`chat_request`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from markscheme.vocabulary import UnscoredReason


class RefusalKind(StrEnum):
    """What a refusal says about the call that was refused."""

    REFUSED = "refused"
    """The provider's policy refuses this material."""
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    """Money or quota is spent; waiting does not help."""
    UNAVAILABLE = "unavailable"
    PARAMETER = "parameter"
    """The endpoint does not accept a request parameter, which it names."""
    FORM = "form"
    """The endpoint does not accept this form of structured output."""
    GENERATION = "generation"
    """The model's output failed the endpoint's own check of its form."""
    TRUNCATED = "truncated"
    """The model's output reached its length limit, reported as an error."""
    MISCONFIGURED = "misconfigured"
    """The key, model or path is wrong."""
    UNEXPLAINED = "unexplained"
    """A 4xx whose message says none of the above."""


REASONS: Mapping[RefusalKind, UnscoredReason] = {
    RefusalKind.REFUSED: UnscoredReason.REFUSED,
    RefusalKind.TOO_LARGE: UnscoredReason.TOO_LARGE,
    RefusalKind.RATE_LIMITED: UnscoredReason.RATE_LIMITED,
    RefusalKind.QUOTA: UnscoredReason.QUOTA,
    RefusalKind.UNAVAILABLE: UnscoredReason.UNAVAILABLE,
    RefusalKind.PARAMETER: UnscoredReason.MISCONFIGURED,
    RefusalKind.FORM: UnscoredReason.MISCONFIGURED,
    RefusalKind.GENERATION: UnscoredReason.PARSE_FAILURE,
    RefusalKind.TRUNCATED: UnscoredReason.TRUNCATED,
    RefusalKind.MISCONFIGURED: UnscoredReason.MISCONFIGURED,
    RefusalKind.UNEXPLAINED: UnscoredReason.MISCONFIGURED,
}
"""The reason on the wire for each kind."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal. ``words`` is the endpoint's own message, for the operator only.

    ``parameter`` names the parameter that was not accepted, and ``limit`` the largest value that
    the endpoint says it accepts. ``reply_tokens`` is how many tokens the context leaves for a
    reply, where the endpoint says so.
    """

    kind: RefusalKind
    status: int
    words: str = ""
    parameter: str | None = None
    limit: int | None = None
    reply_tokens: int | None = None

    @property
    def reason(self) -> UnscoredReason:
        """The reason on the wire."""
        return REASONS[self.kind]


class Refused(Exception):
    """An endpoint refused a call."""

    def __init__(self, refusal: Refusal, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(refusal.kind)
        self.refusal = refusal
        self.headers = headers or {}
