"""Words of the wire format that the service's domain shares, and their meaning.

Standard library only, so that the service's pure domain may import it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, get_args


class UnscoredReason(StrEnum):
    """Why a verdict, and with it a reward, is not known. Never stored as a verdict."""

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
    NOT_SUPPORTED = "not_supported"
    NOT_APPLICABLE = "not_applicable"


TRANSIENT_REASONS = frozenset(
    {UnscoredReason.TIMEOUT, UnscoredReason.RATE_LIMITED, UnscoredReason.UNAVAILABLE}
)
"""Reasons that pass with time. All others last until someone fixes what they name."""

REASON_HELP: Mapping[UnscoredReason, str] = {
    UnscoredReason.TIMEOUT: (
        "The judge did not answer in time. Wait; if it stays so, raise "
        "MARKSCHEME_JUDGE_TIMEOUT_S or lower MARKSCHEME_JUDGE_CONCURRENCY."
    ),
    UnscoredReason.RATE_LIMITED: (
        "The judge's rate limit was reached. Wait; if it stays so, have the limit raised or lower "
        "MARKSCHEME_JUDGE_CONCURRENCY."
    ),
    UnscoredReason.UNAVAILABLE: (
        "The judge could not be reached or was failing. Wait; if it stays so, see what "
        "'markscheme doctor' says."
    ),
    UnscoredReason.PARSE_FAILURE: (
        "The judge's replies could not be read. See what 'markscheme doctor' says of structured "
        "output, or take another judge."
    ),
    UnscoredReason.OFF_MENU: (
        "The judge answered for criteria that it was not asked about. Take another judge."
    ),
    UnscoredReason.REFUSED: (
        "The judge or its provider's filter declined the material. Leave these prompts out, or "
        "take another judge."
    ),
    UnscoredReason.CANARY_FAILED: (
        "The judge called a surely false criterion met. Take another judge."
    ),
    UnscoredReason.TOO_LARGE: (
        "The material is too large for the judge. Shorten it, or take a judge with a longer "
        "context."
    ),
    UnscoredReason.TRUNCATED: (
        "The judge's replies were cut off before their verdict. Raise MARKSCHEME_JUDGE_MAX_TOKENS."
    ),
    UnscoredReason.QUOTA: (
        "The judge's account has no credit left. Top it up, or take another judge."
    ),
    UnscoredReason.MISCONFIGURED: (
        "The judge refuses requests as they are set up: key, model, address or a setting. See "
        "what 'markscheme doctor' says, and mend it."
    ),
    UnscoredReason.BUDGET: ("A hard budget is spent. Raise it, or wait for its next window."),
    UnscoredReason.NO_RUBRIC: (
        "There is no rubric for the prompt and none could be made. Bring one, or give teacher "
        "responses."
    ),
    UnscoredReason.NOT_SUPPORTED: (
        "The material has parts that are not text, such as images or audio, and judges read text "
        "only. Leave these parts out, or replace them by words."
    ),
    UnscoredReason.NOT_APPLICABLE: (
        "No criterion that earns points applies to the rollout. That is the judge's verdict, and "
        "stays; write a criterion that applies to every response."
    ),
}
"""What each reason means and what to do about it."""


def describe_reasons(reasons: Mapping[str, int]) -> list[str]:
    """Return a line a reason: how many rollouts, what it means, what to do; most frequent first."""
    return [
        f"{count} {name}: {REASON_HELP[UnscoredReason(name)]}"
        for name, count in sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    ]


Category = Literal["task_fulfilment", "observable_quality", "general_reasoning"]
ReusePolicy = Literal["always_new", "if_fresh", "frozen"]
ReuseScope = Literal["own", "shared", "organisation"]
VerifyMode = Literal["rollout", "group"]
Thinking = Literal["auto", "strip", "keep"]
Clamp = Literal["zero", "signed"]
RubricOrigin = Literal["induced", "imported", "forked"]
AssignedOrigin = Literal["induced", "reused", "given"]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
View = Literal["reply", "assistant", "full"]
Visibility = Literal["private", "organisation"]
BudgetWindow = Literal["day", "month", "total"]
Scope = Literal["read", "score", "induce", "admin"]
UsageKey = Literal["team", "run", "rubric", "role", "judge", "day", "month"]
EdgeKind = Literal["version", "fork", "contrasted", "made", "scored"]
MakerRole = Literal["rubricator", "template", "teacher_model"]
ResponseRole = Literal["teacher", "student"]
ExchangeFormat = Literal[
    "native",
    "ropd",
    "healthbench",
    "healthbench-meta-eval",
    "healthbench-professional",
    "rar",
    "rubrichub",
    "researchrubrics",
    "wildchecklists",
    "openrubrics",
    "ifeval",
    "promptfoo",
    "verifiers",
    "mapped",
]
RunState = Literal["running", "silent", "finished", "stopped", "failed"]
"""`silent`: said to run, but not heard of for ten times its median step."""
ReplayState = Literal["queued", "running", "paused", "finished", "cancelled", "failed"]
FindingKind = Literal[
    "inverted",
    "falling",
    "saturated",
    "out_of_reach",
    "repeats",
    "noisy",
    "judges_part",
    "length_pays",
    "above_teacher",
    "no_spread",
    "unknown",
    "cut_off",
    "money",
    "collapse",
]
"""What may be wrong with a run; docs/runs.md has the rule of each."""
FindingLevel = Literal["alarm", "watch"]
GroupSort = Literal[
    "newest", "spread", "flat", "above_teacher", "unknown", "length", "disagreement"
]
MapField = Literal["prompt", "criteria", "text", "points", "reference", "id"]

VIEWS: tuple[View, ...] = get_args(View)
THINKING_MODES: tuple[Thinking, ...] = get_args(Thinking)
CATEGORIES: tuple[Category, ...] = get_args(Category)
MAKER_ROLES: tuple[MakerRole, ...] = get_args(MakerRole)
RESPONSE_ROLES: tuple[ResponseRole, ...] = get_args(ResponseRole)
EXCHANGE_FORMATS: tuple[ExchangeFormat, ...] = get_args(ExchangeFormat)
MAP_FIELDS: tuple[MapField, ...] = get_args(MapField)
"""Parts of a rubric that a mapping gives the place of."""
USAGE_KEYS: tuple[UsageKey, ...] = get_args(UsageKey)
"""Keys that usage can be grouped by."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a key may do: read; score; make rubrics and fill the teacher bank; administer."""
