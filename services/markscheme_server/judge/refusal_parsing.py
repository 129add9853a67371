"""Read a refusal from an endpoint's answer: an error response, or an error inside a success."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from markscheme_server.judge.choices import finish_of, is_refusal
from markscheme_server.judge.refusal_table import ProviderError, kind_of
from markscheme_server.judge.refusals import Refusal, RefusalKind

MAX_WORDS = 200
"""Characters of the endpoint's own message that the operator sees."""
_MAX_READ = 2_000
_ECHO_CHARACTERS = 16
_NOT_ACCEPTED = re.compile(
    r"unsupported|not support|n.t support|unrecogni[sz]ed|unknown"
    r"|unexpected|deprecated|not permitted|not allowed|extra"
    r"|invalid|must be|cannot be|can.t be|removed|not available"
    r"|no longer|too large|at most|less than or equal"
    r"|incompatible|does not accept|only .{0,30}(?:supported|allowed)"
    r"|maximum allowed|valid range|may only"
)
_REFUSING_FINISH = re.compile(
    r"filter|safety|refus|recitation|prohibited|blocklist|spii|sensitive|model_armor|guardrail"
    r"|violation|toxic|moderation"
)
_FAILING_FINISHES: Mapping[str, int] = {
    "error": 502,
    "network_error": 502,
    "insufficient_system_resource": 503,
    "abort": 503,
    "aborted": 503,
    "cancelled": 503,
    "timeout": 504,
    "rate_limit": 429,
    "rate_limit_exceeded": 429,
}

_SENTENCES = (
    "message",
    "detail",
    "msg",
    "error_msg",
    "error_message",
    "reason",
    "status_msg",
    "faultstring",
    "title",
)
"""Fields that say in words what is wrong."""
_CODES = ("code", "type", "__type", "error_code", "error_type", "errorcode", "status_code")

PARAMETERS = (
    "temperature",
    "max_completion_tokens",
    "max_tokens",
    "reasoning_effort",
    "seed",
    "top_p",
)
"""Parameters that a message may name; the caller adds those of ``extra_body``."""


def of_response(
    status: int, body: object, sent: Collection[str] = (), material: str = ""
) -> Refusal:
    """Read a response with an error status.

    ``body`` is its decoded JSON, or its text. ``sent`` are the names of the request's parameters.
    ``material`` is the text of the request; passages of it are removed from the message.
    """
    return _read(_error(status, body, material), sent)


def of_completion(
    completion: Any, sent: Collection[str] = (), material: str = ""
) -> Refusal | None:
    """Read a refusal inside a success: an error object or a finish reason. ``None``: no refusal."""
    if not isinstance(completion, dict):
        return None
    choices = completion.get("choices")
    choice = (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )
    # Beside a choice only `error` counts: `code` and `message` may be the body's own fields.
    stated = _error_in(completion) if not choice else completion.get("error")
    error = stated or choice.get("error")
    if error:
        refusal = _read(_error(_status_of(error), {"error": error}, material), sent)
        failed = refusal.kind in (RefusalKind.UNEXPLAINED, RefusalKind.UNAVAILABLE)
        # It neither names a status nor says that the request is at fault.
        if failed and refusal.status == 200:
            return replace(refusal, kind=RefusalKind.UNAVAILABLE, status=502)
        return refusal
    message = choice.get("message")
    finish = finish_of(choice)
    if isinstance(message, dict) and is_refusal(message):
        return Refusal(RefusalKind.REFUSED, 200)
    if _REFUSING_FINISH.search(finish):
        return Refusal(RefusalKind.REFUSED, 200, f"finish_reason {finish}")
    if finish in _FAILING_FINISHES:
        status = _FAILING_FINISHES[finish]
        kind = RefusalKind.RATE_LIMITED if status == 429 else RefusalKind.UNAVAILABLE
        return Refusal(kind, status, f"finish_reason {finish}")
    if finish == "malformed_function_call":
        return Refusal(RefusalKind.GENERATION, 200, f"finish_reason {finish}")
    feedback = completion.get("prompt_feedback") or completion.get("promptFeedback")
    if (
        not choice
        and isinstance(feedback, dict)
        and (feedback.get("block_reason") or feedback.get("blockReason"))
    ):
        return Refusal(RefusalKind.REFUSED, 200, "the prompt was blocked")
    return None


_ERROR_FIELDS = ("error", "errors", "base_resp", "fault")
"""Fields that hold the error; `errors` of Cloudflare and watsonx, `base_resp` of MiniMax."""


def _error_in(completion: dict[str, Any]) -> Any:
    """Return the error of a success without choices: in a field of its own, or the body itself."""
    stated = _stated_error(completion)
    if stated is not None:
        return stated
    # A chat message, as Ollama's own protocol has it, is no sentence.
    says = any(isinstance(completion.get(name), str) for name in _SENTENCES)
    return completion if says or completion.get("object") == "error" else None


def _stated_error(body: Any) -> Any:
    """Return the innermost error in the fields of a body; `None` where they hold none."""
    error: Any = None
    for _ in range(4):
        found = (
            next((body[name] for name in _ERROR_FIELDS if body.get(name)), None)
            if isinstance(body, Mapping)
            else body[0]
            if isinstance(body, list) and body
            else None
        )
        if found is None:
            break
        error = body = found
        # An error with words of its own is the one, whatever causes it lists.
        if isinstance(error, Mapping) and _sentence(error):
            break
    return error


def _status_of(error: Any) -> int:
    """Return the HTTP status that an error inside a success names; 200 where it names none."""
    if isinstance(error, dict):
        for name in ("code", "status", "status_code"):
            value = error.get(name)
            if isinstance(value, str) and value.isdecimal() and len(value) == 3:
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
                return value
    return 200


def _error(status: int, body: object, material: str) -> ProviderError:
    """Bring an error body into one shape, without passages of the request.

    A rollout that an endpoint quotes must not decide the kind of the refusal.
    """
    if isinstance(body, list) and body:  # Gemini wraps it in an array
        body = body[0]
    stated = _stated_error(body)
    error = body if stated is None else stated
    if not isinstance(error, Mapping):
        error = {"message": error}
    # Codes may stand in the error, in Azure's inner error, and beside the error.
    codes = _codes(error, *_CODES, "status")
    inner = error.get("innererror")
    if isinstance(inner, Mapping):
        codes |= _codes(inner, "code")
    if isinstance(body, Mapping) and body is not error:
        codes |= _codes(body, *_CODES)
    words = _sentence(error) or (_sentence(body) if isinstance(body, Mapping) else "")
    words = without_echo(words, material)
    nested = " ".join(_one_line(error[name]) for name in ("metadata", "details") if error.get(name))
    nested = without_echo(nested, material)
    # Groq states here the model's output that it could not use.
    if error.get("failed_generation"):
        codes.add("failed_generation")
    param = error.get("param")
    text = " ".join([words, " ".join(sorted(codes)), nested])[:_MAX_READ].lower()
    return ProviderError(
        status, frozenset(codes), param if isinstance(param, str) else "", words, text
    )


def _codes(error: Mapping[str, Any], *names: str) -> set[str]:
    """Return the codes in these fields, in lower case."""
    return {str(error[name]).lower() for name in names if isinstance(error.get(name), (str, int))}


def _sentence(error: Mapping[str, Any]) -> str:
    for name in _SENTENCES:
        value = error.get(name)
        if value:
            return _one_line(value)
    return ""


def _one_line(value: object) -> str:
    """Return a value as one line of text, cut before it is encoded."""
    text = value[:_MAX_READ] if isinstance(value, str) else _encoded(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_MAX_READ]).split())


def _encoded(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[:_MAX_READ]
    except (ValueError, TypeError, RecursionError):
        return ""


def _read(error: ProviderError, sent: Collection[str]) -> Refusal:
    words = error.words[:MAX_WORDS]
    parameter = _parameter(error, sent) if error.status in (200, 400, 404, 422, 501, 500) else None
    kind = kind_of(error)
    reply_tokens = _reply_tokens(error.text)
    # A message about a parameter may mention schemas or lengths too: naming the parameter decides.
    if (
        parameter is not None
        and kind
        in (
            RefusalKind.FORM,
            RefusalKind.TOO_LARGE,
            RefusalKind.UNEXPLAINED,
            RefusalKind.MISCONFIGURED,
        )
        and not (
            kind is RefusalKind.TOO_LARGE
            and (reply_tokens is not None or not _is_length(parameter) or "got -" in error.text)
        )
    ):
        return Refusal(
            RefusalKind.PARAMETER,
            error.status,
            words,
            parameter,
            _stated_limit(error.text, parameter),
        )
    return Refusal(
        kind,
        error.status,
        words,
        reply_tokens=reply_tokens if kind is RefusalKind.TOO_LARGE else None,
    )


def _is_length(parameter: str) -> bool:
    return parameter in ("max_tokens", "max_completion_tokens")


def _parameter(error: ProviderError, sent: Collection[str]) -> str | None:
    """Return the parameter that was not accepted, among those that were sent."""
    names = [*dict.fromkeys([*PARAMETERS, *sent])]
    named = error.param.split(".")[0].split("[")[0]
    if named in names and named in (sent or names):
        return named
    if not _NOT_ACCEPTED.search(error.text):
        return None
    found = [
        (at, name)
        for name in names
        if name not in _NEVER_REFUSED
        and (not sent or name in sent)
        and (at := _find_word(error.text, name.lower())) != -1
    ]
    # The first one that is named: those after it are often what to use instead.
    return min(found)[1] if found else None


_NEVER_REFUSED = frozenset({"model", "messages", "response_format", "stream", "user"})


def _find_word(text: str, name: str) -> int:
    found = re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", text)
    return found.start() if found else -1


def _stated_limit(text: str, parameter: str) -> int | None:
    """Return the largest value that the endpoint says it accepts; of a length only."""
    if not _is_length(parameter):
        return None
    stated = re.search(
        r"(?:at most|less than or equal to|maximum(?: allowed)?(?: value)?(?: \S+){0,6}?"
        r"|up to|<=|, )"
        r" ?`?(\d{2,7})",
        text,
    )
    # "9000 > 4096": the second number is the limit.
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


def _reply_tokens(text: str) -> int | None:
    """Return the tokens left for a reply, where the context's and prompt's lengths are stated."""
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
    """Remove passages of ``material`` from ``words``: some endpoints repeat the request.

    A passage of twice ``_ECHO_CHARACTERS`` is always found; a shorter one may remain.
    """
    size = _ECHO_CHARACTERS
    # Look for passages in steps of ``size``, join neighbours, and then extend them by characters.
    runs: list[list[int]] = []
    for start in range(0, len(words) - size + 1, size) if material else ():
        if words[start : start + size] not in material:
            continue
        if runs and runs[-1][1] == start:
            runs[-1][1] = start + size
        else:
            runs.append([start, start + size])
    parts, at = [], 0
    for first, last in runs:
        while first > at and words[first - 1 : first + size - 1] in material:
            first -= 1
        while last < len(words) and words[last - size + 1 : last + 1] in material:
            last += 1
        parts.append(words[at:first])
        at = last
    return "…".join([*parts, words[at:]]) if runs else words
