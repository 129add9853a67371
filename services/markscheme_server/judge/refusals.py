"""Why an endpoint gave no completion: one table from what it said to a kind of refusal.

Providers that speak OpenAI's protocol agree on the shape of a success and on little else: the same
refusal comes as another status, another code, a sentence, or an error inside a 200. The table below
reads all of them. What follows from a kind is decided in one place each: the reason on the wire
here, whether the call is tried again in :mod:`markscheme_server.judge.retry`, what the next call
leaves out in :mod:`markscheme_server.judge.openai`.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from markscheme.vocabulary import UnscoredReason

WORDS_SHOWN = 200
"""Characters of the endpoint's own sentence that the operator sees."""
_READ_CHARACTERS = 2_000
_ECHO_CHARACTERS = 16


class Kind(StrEnum):
    """What a refusal says about the call that was refused."""

    REFUSED = "refused"
    """The provider's policy refuses this material."""
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    """Money or quota is spent; waiting does not help."""
    UNAVAILABLE = "unavailable"
    PARAMETER = "parameter"
    """A request parameter, which is named, is not taken."""
    FORM = "form"
    """Structured output in this form is not taken."""
    GENERATION = "generation"
    """The model's output failed the endpoint's own check of its form."""
    TRUNCATED = "truncated"
    """The model's output reached its length limit, told as an error."""
    MISCONFIGURED = "misconfigured"
    """Key, model or path are wrong."""
    UNEXPLAINED = "unexplained"
    """A 4xx whose words say none of the above."""


REASONS: Mapping[Kind, UnscoredReason] = {
    Kind.REFUSED: UnscoredReason.REFUSED,
    Kind.TOO_LARGE: UnscoredReason.TOO_LARGE,
    Kind.RATE_LIMITED: UnscoredReason.RATE_LIMITED,
    Kind.QUOTA: UnscoredReason.QUOTA,
    Kind.UNAVAILABLE: UnscoredReason.UNAVAILABLE,
    Kind.PARAMETER: UnscoredReason.MISCONFIGURED,
    Kind.FORM: UnscoredReason.MISCONFIGURED,
    Kind.GENERATION: UnscoredReason.PARSE_FAILURE,
    Kind.TRUNCATED: UnscoredReason.TRUNCATED,
    Kind.MISCONFIGURED: UnscoredReason.MISCONFIGURED,
    Kind.UNEXPLAINED: UnscoredReason.MISCONFIGURED,
}
"""The reason on the wire for each kind."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal as read. ``words``: the endpoint's own sentence, for the operator only.

    ``parameter`` names the one that is not taken; ``most`` is the largest value of it that the
    endpoint named. ``room`` is how many tokens its context leaves for a reply, where it said so.
    """

    kind: Kind
    status: int
    words: str = ""
    parameter: str | None = None
    most: int | None = None
    room: int | None = None

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


@dataclass(frozen=True, slots=True)
class _Error:
    """An error object of any provider, in one shape. ``text``: its words and codes, lower case."""

    status: int
    codes: frozenset[str]
    param: str
    words: str
    text: str


def _words(pattern: str) -> Callable[[_Error], bool]:
    compiled = re.compile(pattern)
    return lambda error: compiled.search(error.text) is not None


def _codes(*codes: str) -> Callable[[_Error], bool]:
    wanted = frozenset(codes)
    return lambda error: not wanted.isdisjoint(error.codes)


def _status(*statuses: int) -> Callable[[_Error], bool]:
    return lambda error: error.status in statuses


def _all(*tests: Callable[[_Error], bool]) -> Callable[[_Error], bool]:
    return lambda error: all(test(error) for test in tests)


_POLICY = _words(
    r"content management policy|content[ _-]?filter"
    r"|content[ _-]policy|safety (?:system|polic|filter|setting)"
    r"|flagged|usage polic|prohibited content|responsible ?ai|blocked (?:by|due to|for).{0,40}"
    r"(?:safety|policy|moderation|content|guardrail)"
    r"|moderation|inappropriate content|content exists risk"
    r"|data[ _]inspection|sensitive (?:content|information|word)|guardrail"
)
_LONG = _words(
    r"context[ _-]?(?:length|window|size)|maximum context"
    r"|contextwindowexceeded|exceed_context|too many (?:input )?tokens"
    r"|(?:prompt|input|message|request|content)s?(?: \S+){0,3} (?:is|are) too (?:long|large)"
    r"|(?:prompt|input) (?:has|contains|with) [\d,]+ tokens"
    r"|longer than the (?:model|max)|must be at least 1, got -|(?:input|prompt)(?: tokens?| token count| length)"
    r"[^.]{0,80}(?:exceed|greater than|larger than|longer than)"
    r"|reduce the length|reduce your message size"
    r"|maximum (?:allowed )?(?:input|prompt|number of (?:input )?tokens)"
    r"|tokens must be reduced|string too long"
    r"|exceeds? (?:the )?(?:max|model|limit|available|allowed)[^.]{0,60}(?:token|context|length)"
    r"|(?:max(?:imum)?|total) (?:input )?(?:token|sequence) ?(?:length|limit)[^.]{0,40}exceed"
    r"|token limit exceeded"
)
_PASSES = _words(r"retrydelay|retry in|try again in|retry after")
_BY_THE_DAY = _words(r"per[ _-]?day|perday|daily")
_BY_THE_MINUTE = _words(r"per[ _-]?min|perminute")
_MONEY = _words(
    r"insufficient[ _](?:quota|balance|credit|fund)"
    r"|exceeded your (?:current |monthly |assigned )?quota|quota (?:has been )?exceeded"
    r"|billing|credit balance|out of credit|more credits"
    r"|no credits|payment required|spend(?:ing)? (?:limit|cap)"
    r"|budget ?(?:has been )?exceeded|exceededbudget|exceeded budget"
    r"|over budget|account balance|in arrears|top up|usage limit"
)
_RATE = _words(
    r"rate[ _-]?limit|too many requests|tokens per min"
    r"|requests per min|throttl|concurren(?:cy|t) (?:limit|request)"
)
_FORM = _words(
    r"response[ _]?format|response[ _]?schema|json[ _-]?schema"
    r"|json[ _-]?object|json mode|structured[ _]outputs?|guided[ _]"
    r"|grammar|output_config|requested parameters|xgrammar"
    r"|outlines|output_format|generation_config.response"
)
_GENERATION = _words(
    r"json_validate_failed|failed[ _]to[ _](?:generate|validate)[ _]json"
    r"|failed_generation|json_generation"
    r"|malformed_function_call|tool_use_failed"
    r"|model (?:output|produced)[^.]{0,60}(?:invalid|not valid|malformed)"
)
_WRONG_ADDRESS = _words(
    r"api[ _-]?key|unauthori[sz]ed|authenticat|credential"
    r"|forbidden|permission|model[ _-]?not[ _-]?found|invalid model"
    r"|model[^.]{0,120}(?:does not exist|not found|not exist|is not available|not supported)"
    r"|unknown model|no such model"
    r"|deployment[^.]{0,60}(?:does not exist|not found)"
    r"|deploymentnotfound|no connected db|not a valid model|data policy"
    r"|no allowed providers|unknown url|access denied"
)
_BUSY = _words(
    r"overloaded|over capacity|at capacity|loading|temporarily"
    r"|currently unavailable|service unavailable|timed? ?out"
    r"|connection error|server error|internal error|high demand"
    r"|insufficient_system_resource|no healthy upstream"
)
_NOT_TAKEN = re.compile(
    r"unsupported|not support|n.t support|unrecogni[sz]ed|unknown"
    r"|unexpected|deprecated|not permitted|not allowed|extra"
    r"|invalid|must be|cannot be|can.t be|removed|not available"
    r"|no longer|too large|at most|less than or equal"
    r"|incompatible|does not accept|only .{0,30}(?:supported|allowed)"
    r"|maximum allowed|valid range|may only"
)

# Read from the top; the first row that fits decides.
_TABLE: tuple[tuple[Kind, Callable[[_Error], bool]], ...] = (
    (Kind.GENERATION, _GENERATION),
    (
        Kind.TRUNCATED,
        _words(r"(?:max_tokens|output limit|output length)[^.]{0,60} (?:was|were) reached"),
    ),
    (Kind.REFUSED, _all(_status(403), _words(r"flagged|moderation|guardrail|content polic"))),
    (
        Kind.REFUSED,
        _codes(
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "data_inspection_failed",
            "moderation_blocked",
            "invalid_prompt",
            "content_filtered",
            "cyber_policy",
            "1301",
        ),
    ),
    (Kind.TOO_LARGE, _status(413)),
    (
        Kind.TOO_LARGE,
        _codes(
            "context_length_exceeded",
            "exceed_context_size_error",
            "string_above_max_length",
            "request_too_large",
            "tokens_limit_reached",
            "contextwindowexceedederror",
        ),
    ),
    (Kind.QUOTA, _status(402)),
    (
        Kind.QUOTA,
        _codes(
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
        ),
    ),
    (Kind.TOO_LARGE, _all(_status(429), _words(r"request too large|tokens must be reduced"))),
    (
        Kind.QUOTA,
        _all(_status(429), _words(r"limit: 0\b")),
    ),  # the plan does not have this model at all
    (Kind.RATE_LIMITED, _all(_status(429), _PASSES)),
    (Kind.QUOTA, _all(_status(429), _BY_THE_DAY)),
    (Kind.RATE_LIMITED, _all(_status(429), _BY_THE_MINUTE)),
    (Kind.QUOTA, _MONEY),
    (Kind.RATE_LIMITED, _status(429)),
    (
        Kind.RATE_LIMITED,
        _codes(
            "rate_limit_exceeded", "rate_limit_error", "too_many_requests", "throttlingexception"
        ),
    ),
    (
        Kind.MISCONFIGURED,
        _codes(
            "invalid_api_key",
            "model_not_found",
            "model_decommissioned",
            "deploymentnotfound",
            "authentication_error",
            "permission_denied",
            "unauthenticated",
        ),
    ),
    (Kind.REFUSED, _all(_status(400, 403, 422, 451, 200), _POLICY)),
    (Kind.MISCONFIGURED, _status(401, 403)),
    (Kind.TOO_LARGE, _all(_status(400, 422, 500, 200), _LONG)),
    (Kind.FORM, _all(_status(400, 404, 422, 500, 501, 200), _FORM)),
    (Kind.MISCONFIGURED, _all(_status(400, 404, 422, 500), _WRONG_ADDRESS)),
    (Kind.RATE_LIMITED, _all(_status(400, 503, 200), _RATE)),
    (
        Kind.MISCONFIGURED,
        lambda error: error.status < 400 and error.status != 200,
    ),  # redirects are not followed
    (Kind.MISCONFIGURED, _status(404, 405, 410, 421)),
    (Kind.UNAVAILABLE, _codes("overloaded_error", "engine_overloaded_error")),
    (Kind.UNAVAILABLE, lambda error: error.status >= 500 or error.status in (408, 409, 425)),
    (Kind.UNAVAILABLE, _BUSY),
)

_REFUSING_FINISHES = frozenset(
    {
        "content_filter",
        "content_filtered",
        "safety",
        "recitation",
        "prohibited_content",
        "blocklist",
        "spii",
        "image_safety",
        "refusal",
        "sensitive",
        "model_armor",
        "guardrail_intervened",
        "violation",
    }
)
_FAILING_FINISHES: Mapping[str, int] = {
    "error": 502,
    "network_error": 502,
    "insufficient_system_resource": 503,
    "abort": 503,
    "aborted": 503,
    "cancelled": 503,
    "timeout": 504,
}

PARAMETERS = (
    "temperature",
    "max_completion_tokens",
    "max_tokens",
    "reasoning_effort",
    "seed",
    "top_p",
)
"""Parameters that a sentence may name; those of ``extra_body`` are added by the caller."""


def of_response(
    status: int, body: object, sent: Collection[str] = (), material: str = ""
) -> Refusal:
    """Read an answer other than success.

    ``body`` is its decoded JSON, or its text. ``sent`` are the names of the request's parameters.
    ``material`` is what the request held: passages of it are taken out of the words.
    """
    return _read(_error(status, body, material), sent)


def of_completion(
    completion: Any, sent: Collection[str] = (), material: str = ""
) -> Refusal | None:
    """Read a refusal inside a success: an error object, or a finish reason that says so."""
    if not isinstance(completion, dict):
        return None
    choices = completion.get("choices")
    choice = (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )
    stated = _stated(completion) if not choice else completion.get("error")
    error = stated or choice.get("error")
    if error:
        return _read(_error(_status_of(error), {"error": error}, material), sent)
    message = choice.get("message")
    finish = str(choice.get("finish_reason") or choice.get("native_finish_reason") or "").lower()
    if (
        isinstance(message, dict)
        and isinstance(message.get("refusal"), str)
        and message["refusal"].strip()
    ):
        return Refusal(Kind.REFUSED, 200)
    if finish in _REFUSING_FINISHES:
        return Refusal(Kind.REFUSED, 200, f"finish_reason {finish}")
    if finish in _FAILING_FINISHES:
        return Refusal(Kind.UNAVAILABLE, _FAILING_FINISHES[finish], f"finish_reason {finish}")
    if finish == "malformed_function_call":
        return Refusal(Kind.GENERATION, 200, f"finish_reason {finish}")
    feedback = completion.get("prompt_feedback") or completion.get("promptFeedback")
    if (
        not choice
        and isinstance(feedback, dict)
        and (feedback.get("block_reason") or feedback.get("blockReason"))
    ):
        return Refusal(Kind.REFUSED, 200, "the prompt was blocked")
    return None


def _stated(completion: dict[str, Any]) -> Any:
    """The error of a success without choices: under ``error``, or the body itself (``object: error``)."""
    if completion.get("error"):
        return completion["error"]
    if completion.get("object") == "error" or ("message" in completion and "code" in completion):
        return completion
    return None


def _status_of(error: Any) -> int:
    """The HTTP status that an error inside a success stands for; 502 where it states none."""
    if isinstance(error, dict):
        for name in ("code", "status", "status_code"):
            value = error.get(name)
            if isinstance(value, str) and value.isdecimal() and len(value) == 3:
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
                return value
    return 502


def _error(status: int, body: object, material: str) -> _Error:
    """Any provider's error body in one shape, without what it repeats of the request.

    A rollout that an endpoint quotes must not decide what the refusal is taken for.
    """
    if isinstance(body, list) and body:  # Gemini wraps it in an array
        body = body[0]
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if (
        isinstance(error, Mapping)
        and error.get("object") == "error"
        and isinstance(error.get("error"), Mapping)
    ):
        error = error["error"]
    if not isinstance(error, Mapping):
        error = {"message": error}
    codes = {
        str(error[name]).lower()
        for name in ("code", "type", "status")
        if isinstance(error.get(name), (str, int))
    }
    inner = error.get("innererror")
    if isinstance(inner, Mapping) and isinstance(inner.get("code"), str):
        codes.add(inner["code"].lower())
    if isinstance(body, Mapping) and body is not error:
        codes |= {
            str(body[name]).lower()
            for name in ("code", "type")
            if isinstance(body.get(name), (str, int))
        }
    stated = _sentence(error) or (_sentence(body) if isinstance(body, Mapping) else "")
    words = without_echo(stated, material)
    nested = " ".join(_plain(error[name]) for name in ("metadata", "details") if error.get(name))
    nested = without_echo(nested, material)
    if error.get("failed_generation"):
        codes.add("failed_generation")
    param = error.get("param")
    text = " ".join([words, " ".join(sorted(codes)), nested])[:_READ_CHARACTERS].lower()
    return _Error(status, frozenset(codes), param if isinstance(param, str) else "", words, text)


def _sentence(error: Mapping[str, Any]) -> str:
    for name in ("message", "detail", "msg", "error_msg", "error_message", "reason"):
        value = error.get(name)
        if value:
            return _plain(value)
    return ""


def _plain(value: object) -> str:
    """A value as one line of text, bounded before it is encoded."""
    text = value[:_READ_CHARACTERS] if isinstance(value, str) else _encoded(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_READ_CHARACTERS]).split())


def _encoded(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[:_READ_CHARACTERS]
    except (ValueError, TypeError, RecursionError):
        return ""


def _read(error: _Error, sent: Collection[str]) -> Refusal:
    words = error.words[:WORDS_SHOWN]
    parameter = _parameter(error, sent) if error.status in (400, 404, 422, 501, 500) else None
    kind = next((kind for kind, fits in _TABLE if fits(error)), Kind.UNEXPLAINED)
    room = _room(error.text)
    # A parameter's words may speak of schemas or lengths too; what names it outright is about it.
    if (
        parameter is not None
        and kind in (Kind.FORM, Kind.TOO_LARGE, Kind.UNEXPLAINED, Kind.MISCONFIGURED)
        and not (
            kind is Kind.TOO_LARGE
            and (room is not None or not _names_a_length(parameter) or "got -" in error.text)
        )
    ):
        return Refusal(Kind.PARAMETER, error.status, words, parameter, _most(error.text, parameter))
    return Refusal(kind, error.status, words, room=room if kind is Kind.TOO_LARGE else None)


def _names_a_length(parameter: str) -> bool:
    return parameter in ("max_tokens", "max_completion_tokens")


def _parameter(error: _Error, sent: Collection[str]) -> str | None:
    """The parameter that is not taken, among those that were sent."""
    names = [*dict.fromkeys([*PARAMETERS, *sent])]
    place = error.param.split(".")[0].split("[")[0]
    if place in names and place in (sent or names):
        return place
    if not _NOT_TAKEN.search(error.text):
        return None
    found = [
        (at, name)
        for name in names
        if name not in _NO_PARAMETERS
        and (not sent or name in sent)
        and (at := _find_word(error.text, name.lower())) != -1
    ]
    return min(found)[1] if found else None


_NO_PARAMETERS = frozenset({"model", "messages", "response_format", "stream", "user"})


def _find_word(text: str, name: str) -> int:
    found = re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", text)
    return found.start() if found else -1


def _most(text: str, parameter: str) -> int | None:
    """The largest value that the endpoint says it takes, for a length only."""
    if not _names_a_length(parameter):
        return None
    stated = re.search(
        r"(?:at most|less than or equal to|maximum(?: allowed)?(?: value)?(?: \S+){0,6}?|up to|<=|, )"
        r" ?`?(\d{2,7})",
        text,
    )
    over = re.search(r"(\d{2,9}) ?> ?(\d{2,7})", text)
    if over:
        return int(over[2])
    bound = re.search(
        r"(?:not be|n.t be|is|are) (?:greater|larger|more|higher|longer) than"
        r"(?: [a-z_'.-]+){0,5}?[ =:]+`?(\d{2,7})",
        text,
    )
    if bound:
        return int(bound[1])
    return int(stated[1]) if stated else None


def _room(text: str) -> int | None:
    """Tokens left for a reply, where the endpoint stated its context length and the prompt's."""
    context = re.search(
        r"(?:context (?:length|window|size)|context length of)\D{0,40}?(\d{3,9})", text
    )
    prompt = re.search(
        r"(\d+)(?: tokens)? (?:in the messages|input tokens|of text input|in (?:the|your) prompt)"
        r"|prompt contains(?: at least)? (\d+)|(?:you passed|passed|has) (\d+) input tokens",
        text,
    )
    if context is None or prompt is None:
        return None
    used = next(int(group) for group in prompt.groups() if group)
    return max(0, int(context[1]) - used)


def without_echo(words: str, material: str) -> str:
    """``words`` without passages that stand in ``material``: some endpoints repeat the request.

    A passage of twice ``_ECHO_CHARACTERS`` is always found; a shorter one may stay.
    """
    size = _ECHO_CHARACTERS
    runs: list[list[int]] = []
    for start in range(0, len(words) - size + 1, size) if material else ():
        if words[start : start + size] not in material:
            continue
        if runs and runs[-1][1] == start:
            runs[-1][1] = start + size
        else:
            runs.append([start, start + size])
    kept, at = [], 0
    for first, last in runs:
        while first > at and words[first - 1 : first + size - 1] in material:
            first -= 1
        while last < len(words) and words[last - size + 1 : last + 1] in material:
            last += 1
        kept.append(words[at:first])
        at = last
    return "…".join([*kept, words[at:]]) if runs else words
