"""Turn the error of a judge call into a `JudgeFailure` with a reason and a message for callers."""

from markscheme.vocabulary import UnscoredReason
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.judge.refusals import Refusal, RefusalKind, Refused
from markscheme_server.judge.reply_cap import UnusableReply
from markscheme_server.judge.retry import ProtocolError, is_timeout

SEE_DOCTOR = "; 'markscheme doctor' shows its own words"


class BreakerOpen(Exception):
    """No endpoint admitted calls within the time that a call waits for one."""


class RateLimited(Exception):
    """The endpoints asked to wait longer than the call may."""


def failure_of(error: Exception) -> JudgeFailure:
    """Return the failure for an error. The message holds nothing of the request or the reply."""
    if isinstance(error, BreakerOpen):
        return JudgeFailure(
            UnscoredReason.UNAVAILABLE,
            "the judge keeps failing, and its breaker is open; try again later",
        )
    if isinstance(error, RateLimited):
        return JudgeFailure(
            UnscoredReason.RATE_LIMITED, "the judge is at its rate limit; try again later"
        )
    if isinstance(error, ProtocolError):
        return JudgeFailure(
            UnscoredReason.PARSE_FAILURE,
            "the judge's answer is not a chat completion; check its base_url",
        )
    if isinstance(error, UnusableReply):
        return JudgeFailure(
            UnscoredReason.PARSE_FAILURE, f"the judge's reply cannot be used: {error}"
        )
    if is_timeout(error):
        return JudgeFailure(UnscoredReason.TIMEOUT, "the judge did not answer in time")
    if isinstance(error, Refused):
        refusal = error.refusal
        return JudgeFailure(refusal.reason, _message(refusal), detail=refusal.words)
    return JudgeFailure(UnscoredReason.UNAVAILABLE, "the judge could not be reached")


def _message(refusal: Refusal) -> str:
    """Say what happened and what to do. The endpoint's own message is for the operator only."""
    match refusal.kind:
        case RefusalKind.REFUSED:
            return "the judge's provider refused this material"
        case RefusalKind.TOO_LARGE:
            return "the material is too large for the judge"
        case RefusalKind.RATE_LIMITED:
            return "the judge is at its rate limit; try again later"
        case RefusalKind.QUOTA:
            return "the judge's quota or credit is used up; waiting does not help"
        case RefusalKind.UNAVAILABLE:
            return f"the judge answered with status {refusal.status}"
        case RefusalKind.TRUNCATED:
            return "the judge's reply was cut off at its length limit"
        case RefusalKind.GENERATION:
            return "the judge's output failed its endpoint's own check"
        case RefusalKind.PARAMETER:
            return (
                f"the judge's endpoint does not take {refusal.parameter!r} as it is set: take it "
                "out of the judge's settings (a temperature of 'default' is not sent)"
            )
        case RefusalKind.FORM:
            return (
                "the judge's endpoint takes no form of structured output that it was asked for: "
                "set the judge's structured to 'auto' or 'text'"
            )
    if refusal.status in (401, 403):
        return (
            "the judge refused the key: check MARKSCHEME_JUDGE_API_KEY or the judge's api_key_env"
        )
    if refusal.status in (404, 405, 410):
        return "the judge knows no such model or path: check the judge's model and base_url"
    return f"the judge refused the request (status {refusal.status}){SEE_DOCTOR}"
