"""Map a provider's error to a kind of refusal.

Providers that speak OpenAI's protocol agree on the shape of a success and on little else: the same
refusal comes as another status, another code, a sentence, or an error inside a 200.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from markscheme_server.judge.refusals import RefusalKind


@dataclass(frozen=True, slots=True)
class ProviderError:
    """Any provider's error object in one shape.

    ``words`` is its message; ``text`` holds message, codes and nested details in lower case.
    """

    status: int
    codes: frozenset[str]
    param: str
    words: str
    text: str


def _says(pattern: str) -> Callable[[ProviderError], bool]:
    compiled = re.compile(pattern)
    return lambda error: compiled.search(error.text) is not None


def _has_code(*codes: str) -> Callable[[ProviderError], bool]:
    wanted = frozenset(codes)
    return lambda error: not wanted.isdisjoint(error.codes)


def _has_status(*statuses: int) -> Callable[[ProviderError], bool]:
    return lambda error: error.status in statuses


def _all(*tests: Callable[[ProviderError], bool]) -> Callable[[ProviderError], bool]:
    return lambda error: all(test(error) for test in tests)


_POLICY = _says(
    r"content management policy|content[ _-]?filter"
    r"|content[ _-]policy|safety (?:system|polic|filter|setting)"
    r"|flagged|usage (?:polic|guideline)|prohibited content|responsible ?ai"
    r"|blocked (?:by|due to|for).{0,40}(?:safety|policy|moderation|content|guardrail)"
    r"|moderation|inappropriate content|content exists risk"
    r"|data[ _]inspection|sensitive (?:content|information|word)|guardrail"
)
_TOO_LONG = _says(
    r"context[ _-]?(?:length|window|size)|maximum context"
    r"|contextwindowexceeded|exceed_context|too many (?:input )?tokens"
    r"|(?:prompt|input|message|request|content)s?(?: \S+){0,3} too (?:long|large)"
    r"|(?:prompt|input) (?:has|contains|with) [\d,]+ tokens"
    r"|longer than the (?:model|max)|must be at least 1, got -"
    r"|(?:input|prompt)(?: tokens?| token count| length)"
    r"[^.]{0,80}(?:exceed|greater than|larger than|longer than)"
    r"|reduce the length|reduce your message size"
    r"|maximum (?:allowed )?(?:input|prompt|number of (?:input )?tokens)"
    r"|tokens must be reduced|string too long"
    r"|exceeds? (?:the )?(?:max|model|limit|available|allowed)[^.]{0,60}(?:token|context|length)"
    r"|(?:max(?:imum)?|total) (?:input )?(?:token|sequence) ?(?:length|limit)[^.]{0,40}exceed"
    r"|token limit exceeded|exceeded (?:the )?model(?:'s)? token limit|range of input length"
    r"|inputs?`? (?:tokens? \+|must have less than)"
)
_RETRY_LATER = _says(r"retrydelay|retry in|try again in|retry after")
_PER_DAY = _says(r"per[ _-]?day|perday|daily")
_PER_MINUTE = _says(r"per[ _-]?min|perminute")
_QUOTA = _says(
    r"insufficient[ _](?:quota|balance|credit|fund)"
    r"|exceeded your (?:current |monthly |assigned )?quota"
    r"|quota (?:has been |is )?(?:exceeded|reached)"
    r"|billing|credit balance|out of (?:call volume )?(?:quota|credit)|more credits"
    r"|available credits|(?:monthly|consumption) limit (?:exceeded|reached)"
    r"|no credits|payment required|spend(?:ing)? (?:limit|cap)"
    r"|budget ?(?:has been )?exceeded|exceededbudget|exceeded budget"
    r"|over budget|account balance|in arrears|top up|usage limit"
)
_RATE = _says(
    r"rate[ _-]?limit|too many requests|tokens per min"
    r"|requests per min|throttl|concurren(?:cy|t) (?:limit|request)"
)
_FORM = _says(
    r"response[ _]?format|response[ _]?schema|json[ _-]?schema"
    r"|json[ _-]?object|json mode|structured[ _]outputs?|guided[ _]"
    r"|grammar|output_config|requested parameters|xgrammar"
    r"|outlines|output_format|generation_config.response|specified schema"
)
_GENERATION = _says(
    r"json_validate_failed|failed[ _]to[ _](?:generate|validate)[ _]json"
    r"|failed_generation|json_generation"
    r"|malformed_function_call|tool_use_failed"
    r"|model (?:output|produced)[^.]{0,60}(?:invalid|not valid|malformed)"
)
_MISCONFIGURED = _says(
    r"api[ _-]?key|unauthori[sz]ed|authenticat|credential"
    r"|forbidden|permission|model[ _-]?not[ _-]?found|invalid model"
    r"|model[^.]{0,120}(?:does not exist|not found|not exist|is not available|not supported)"
    r"|unknown model|no such model"
    r"|deployment[^.]{0,60}(?:does not exist|not found)"
    r"|deploymentnotfound|no connected db|not a valid model|data policy"
    r"|no allowed providers|unknown url|access ?denied|location is not supported"
)
_BUSY = _says(
    r"overloaded|over capacity|at capacity|loading|temporarily"
    r"|currently unavailable|service unavailable|timed? ?out"
    r"|connection error|server error|internal error|high demand"
    r"|insufficient_system_resource|no healthy upstream"
)
# The first row that matches decides.
_TABLE: tuple[tuple[RefusalKind, Callable[[ProviderError], bool]], ...] = (
    (RefusalKind.GENERATION, _GENERATION),
    (
        RefusalKind.TRUNCATED,
        _says(r"(?:max_tokens|output limit|output length)[^.]{0,60} (?:was|were) reached"),
    ),
    (
        RefusalKind.REFUSED,
        _all(_has_status(403), _says(r"flagged|moderation|guardrail|content polic|violates usage")),
    ),
    (
        RefusalKind.REFUSED,
        _has_code(
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "data_inspection_failed",
            "moderation_blocked",
            "invalid_prompt",
            "content_filtered",
            "cyber_policy",
            "1301",  # Zhipu
            "1026",  # MiniMax: the input, and the output
            "1027",
        ),
    ),
    (RefusalKind.TOO_LARGE, _has_status(413)),
    (
        RefusalKind.TOO_LARGE,
        _has_code(
            "context_length_exceeded",
            "exceed_context_size_error",
            "string_above_max_length",
            "request_too_large",
            "tokens_limit_reached",
            "contextwindowexceedederror",
            "1261",  # Zhipu
        ),
    ),
    (RefusalKind.QUOTA, _has_status(402)),
    (
        RefusalKind.QUOTA,
        _has_code(
            "insufficient_quota",
            "billing_hard_limit_reached",
            "billing_not_active",
            "insufficient_balance",
            "insufficient_credits",
            "insufficient_user_quota",
            "arrearage",
            "exceeded_current_quota_error",
            "1113",
            "budget_exceeded",
            "token_quota_reached",
        ),
    ),
    (
        RefusalKind.TOO_LARGE,
        _all(_has_status(429), _says(r"request too large|tokens must be reduced")),
    ),
    (
        RefusalKind.QUOTA,
        _all(_has_status(429), _says(r"limit: 0\b")),
    ),  # the plan does not have this model at all
    (RefusalKind.RATE_LIMITED, _all(_has_status(429), _RETRY_LATER)),
    (RefusalKind.QUOTA, _all(_has_status(429), _PER_DAY)),
    (RefusalKind.RATE_LIMITED, _all(_has_status(429), _PER_MINUTE)),
    (RefusalKind.QUOTA, _QUOTA),
    (RefusalKind.RATE_LIMITED, _has_status(429)),
    (
        RefusalKind.RATE_LIMITED,
        _has_code(
            "rate_limit_exceeded",
            "rate_limit_error",
            "request_limit_exceeded",
            "too_many_requests",
            "throttlingexception",
        ),
    ),
    (
        RefusalKind.MISCONFIGURED,
        _has_code(
            "invalid_api_key",
            "model_not_found",
            "model_decommissioned",
            "deploymentnotfound",
            "authentication_error",
            "permission_denied",
            "unauthenticated",
            "organization_restricted",
        ),
    ),
    (RefusalKind.REFUSED, _all(_has_status(400, 403, 422, 451, 200), _POLICY)),
    (RefusalKind.MISCONFIGURED, _has_status(401, 403)),
    (RefusalKind.TOO_LARGE, _all(_has_status(400, 422, 500, 200), _TOO_LONG)),
    (RefusalKind.FORM, _all(_has_status(400, 404, 422, 500, 501, 200), _FORM)),
    (RefusalKind.MISCONFIGURED, _all(_has_status(400, 404, 422, 500, 200), _MISCONFIGURED)),
    (RefusalKind.RATE_LIMITED, _all(_has_status(400, 500, 503, 200), _RATE)),
    (
        RefusalKind.MISCONFIGURED,
        lambda error: error.status < 400 and error.status != 200,
    ),  # redirects are not followed
    (RefusalKind.MISCONFIGURED, _has_status(404, 405, 410, 421)),
    (RefusalKind.UNAVAILABLE, _has_code("overloaded_error", "engine_overloaded_error")),
    (RefusalKind.UNAVAILABLE, lambda error: error.status >= 500 or error.status in (408, 409, 425)),
    (RefusalKind.UNAVAILABLE, _BUSY),
)


def kind_of(error: ProviderError) -> RefusalKind:
    """Return the kind of the first row that matches; ``UNEXPLAINED`` where none does."""
    return next((kind for kind, matches in _TABLE if matches(error)), RefusalKind.UNEXPLAINED)
