"""The words that travel on the wire and that the service's domain shares: enumerations only.

Standard library only, so that the pure domain of the service may import it.
"""

from enum import StrEnum
from typing import Literal, get_args


class UnscoredReason(StrEnum):
    """Why a verdict, and with it a reward, is not known. Never stored as an answer."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    PARSE_FAILURE = "parse_failure"
    OFF_MENU = "off_menu"
    REFUSED = "refused"
    CANARY_FAILED = "canary_failed"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    QUOTA = "quota"
    MISCONFIGURED = "misconfigured"
    BUDGET = "budget"
    NO_RUBRIC = "no_rubric"


Category = Literal["task_fulfilment", "observable_quality", "general_reasoning"]
ReusePolicy = Literal["always_new", "if_fresh", "frozen"]
ReuseScope = Literal["own", "shared", "organisation"]
VerifyMode = Literal["rollout", "group"]
Thinking = Literal["auto", "strip", "keep"]
RubricOrigin = Literal["induced", "imported", "forked"]
AssignedOrigin = Literal["induced", "reused", "given"]
Role = Literal["system", "user", "assistant", "tool"]
Visibility = Literal["private", "organisation"]
BudgetWindow = Literal["day", "month", "total"]
Scope = Literal["read", "score", "induce", "admin"]
UsageKey = Literal["team", "run", "rubric", "role", "judge", "day", "month"]
EdgeKind = Literal["version", "fork", "contrasted", "made", "scored"]
MakerRole = Literal["rubricator", "template", "teacher_model"]
ResponseRole = Literal["teacher", "student"]
ExchangeFormat = Literal["native", "ropd", "healthbench", "rar", "verifiers"]

THINKING_MODES: tuple[Thinking, ...] = get_args(Thinking)
CATEGORIES: tuple[Category, ...] = get_args(Category)
MAKER_ROLES: tuple[MakerRole, ...] = get_args(MakerRole)
RESPONSE_ROLES: tuple[ResponseRole, ...] = get_args(ResponseRole)
EXCHANGE_FORMATS: tuple[ExchangeFormat, ...] = get_args(ExchangeFormat)
USAGE_KEYS: tuple[UsageKey, ...] = get_args(UsageKey)
"""By what the ledger can be added up."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a key may do: read what there is; score; make rubrics and fill the teacher bank; run the organisation."""
