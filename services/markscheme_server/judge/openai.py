"""The ``openai`` judge: any OpenAI-compatible endpoint as rubricator and verifier.

The SDK's own retries are off: this module is the only retry loop. Every way of not answering becomes a
:class:`JudgeFailure` with a reason.
"""

import asyncio
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx2
import openai
import tenacity
from openai import AsyncOpenAI, DefaultAioHttpClient

from markscheme.vocabulary import UnscoredReason
from markscheme_server.config import Settings
from markscheme_server.domain.fingerprint import digest
from markscheme_server.judge import parsing, prompts
from markscheme_server.judge.base import (
    Decision,
    Induction,
    InductionTask,
    JudgeFailure,
    JudgeUsage,
    Verification,
    VerifyTask,
)

RETRIES = 2
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.25, 4.0
RETRY_AFTER_MOST_S = 30.0
_TRANSIENT = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)
_STEP_DOWN = {"auto": ("json_schema", "json_object", "text"), "json_schema": ("json_schema",),
              "json_object": ("json_object",), "text": ("text",)}
_SPACE = re.compile(r"\s+")

T = TypeVar("T")


class OpenAIJudge:
    """Asks a model over the chat-completions protocol; see :class:`markscheme_server.judge.base.Judge`."""

    def __init__(self, settings: Settings) -> None:
        key = settings.judge_api_key.get_secret_value() if settings.judge_api_key else "none"
        self._settings = settings
        self._client = AsyncOpenAI(api_key=key, base_url=settings.judge_base_url or None, max_retries=0,
                                   timeout=settings.judge_timeout_s, http_client=DefaultAioHttpClient())
        self._forms = list(_STEP_DOWN[settings.judge_structured])
        self._canary_secret = secrets.token_bytes(16)

    @property
    def rubricator_identity(self) -> str:
        return self._identity(prompts.RUBRICATOR_VERSION, self._settings.judge_rubricator_temperature)

    @property
    def verifier_identity(self) -> str:
        s = self._settings
        extras = "".join(f"+{name}" for name, on in (("evidence", s.judge_evidence), ("nonce", s.judge_nonce),
                                                     ("canary", s.judge_canary)) if on)
        return self._identity(prompts.VERIFIER_VERSION + extras, s.judge_verifier_temperature)

    @property
    def template(self) -> str:
        return f"rubricator/{prompts.RUBRICATOR_VERSION}"

    def _identity(self, template: str, temperature: float | None) -> str:
        s = self._settings
        return (f"openai/{s.judge_model}@{s.judge_revision or s.judge_origin} template={template} "
                f"temperature={temperature} tail={s.judge_max_response_tokens}")

    async def induce(self, task: InductionTask) -> Induction:
        """4 to 12 criteria by contrast (ROPD, arXiv 2605.07396, section 3). Raises :class:`JudgeFailure`."""
        message = prompts.rubricator_prompt(task, max_tokens=self._settings.judge_max_response_tokens)
        criteria, usage = await self._ask(
            message, "rubric", prompts.RUBRIC_SCHEMA, self._settings.judge_rubricator_temperature,
            lambda reply: parsing.read_criteria(parsing.read_object(reply)))
        return Induction(criteria, usage)

    async def verify(self, task: VerifyTask) -> Verification:
        """One call for all criteria. Raises :class:`JudgeFailure`."""
        s = self._settings
        shown = prompts.shown_criteria(task.criteria)
        address = digest([task.prompt, [c.text for c in task.criteria], task.responses])
        nonce = secrets.token_hex(8) if s.judge_nonce else None
        canary = f"c{len(shown) + 1}" if s.judge_canary else None
        if canary is not None:
            # Derived, so that a retried or repeated call asks the very same question; unguessable by a rollout.
            word = hmac.new(self._canary_secret, address.encode(), "sha256").hexdigest()[:20]
            shown.append((canary, f"The answer contains the string {word}."))
        pool = task.verify == "group"
        schema = prompts.verdict_schema(pool=pool, evidence=s.judge_evidence, nonce=nonce is not None)
        message = prompts.verifier_prompt(task, shown, schema, max_tokens=s.judge_max_response_tokens, nonce=nonce)
        ids = [i for i, _ in shown]

        def read(reply: str) -> list[dict[str, Decision]]:
            found = parsing.read_object(reply)
            if nonce is not None and found.get("nonce") != nonce:
                raise parsing.ReplyError("the nonce is missing or wrong")
            if pool:
                return parsing.read_pool(found.get("answers"), len(task.responses), ids, evidence=s.judge_evidence)
            return [parsing.read_verdicts(found.get("verdicts"), ids, evidence=s.judge_evidence)]

        decided, usage = await self._ask(message, "verdicts", schema, s.judge_verifier_temperature, read)
        if canary is not None and any(decisions[canary].met for decisions in decided):
            raise JudgeFailure(UnscoredReason.CANARY_FAILED, "the judge called a surely false criterion met", usage)
        if s.judge_evidence:
            self._require_evidence(decided, task, usage)
        return Verification(tuple({c.id: decisions[f"c{i}"] for i, c in enumerate(task.criteria, 1)}
                                  for decisions in decided), usage)

    async def aclose(self) -> None:
        await self._client.close()

    @staticmethod
    def _require_evidence(decided: list[dict[str, Decision]], task: VerifyTask, usage: JudgeUsage) -> None:
        """A quotation that is not in the response is a made-up one, and the verdict with it."""
        for decisions, response in zip(decided, task.responses, strict=True):
            folded = _SPACE.sub(" ", response).casefold()
            for decision in decisions.values():
                quoted = _SPACE.sub(" ", decision.evidence or "").casefold().strip()
                if decision.met and (not quoted or quoted not in folded):
                    raise JudgeFailure(UnscoredReason.PARSE_FAILURE, "the judge's evidence is not in the response",
                                       usage)

    async def _ask(self, message: str, name: str, schema: dict[str, Any], temperature: float | None,
                   read: Callable[[str], T]) -> tuple[T, JudgeUsage]:
        """Ask, and once more with what was wrong; then give up with the reason."""
        messages = [{"role": "user", "content": message}]
        usage = JudgeUsage()
        for attempt in range(2):
            try:
                reply, cost = await self._complete(messages, name, schema, temperature)
            except JudgeFailure as failure:
                failure.usage += usage
                raise
            usage += cost
            try:
                return read(reply), usage
            except parsing.ReplyError as error:
                if attempt:
                    raise JudgeFailure(error.reason, f"the judge's reply was refused: {error}", usage) from error
                messages += [{"role": "assistant", "content": reply[:20_000]},
                             {"role": "user", "content": f"That reply cannot be used: {error}. Reply again with one "
                                                         "JSON object as asked, and nothing else."}]
        raise AssertionError("unreachable")

    async def _complete(self, messages: list[dict[str, str]], name: str, schema: dict[str, Any],
                        temperature: float | None) -> tuple[str, JudgeUsage]:
        """One reply, with retries for what passes and a step down where the endpoint refuses a form."""
        calls = 0

        async def once() -> Any:
            nonlocal calls
            while True:
                form = self._forms[0]
                calls += 1
                try:
                    async with asyncio.timeout(self._settings.judge_timeout_s):
                        return await self._client.chat.completions.create(
                            **self._arguments(messages, form, name, schema, temperature))
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    if _too_large(error) or not self._step_down(form):
                        raise

        try:
            async for attempt in tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception(lambda e: _may_pass(e)), wait=_wait, reraise=True,
                    stop=tenacity.stop_after_attempt(RETRIES + 1)):
                with attempt:
                    completion = await once()
        except (openai.OpenAIError, TimeoutError) as error:
            raise _failure(error, JudgeUsage(calls=calls)) from error
        usage = JudgeUsage(calls, _tokens(completion, "prompt_tokens"), _tokens(completion, "completion_tokens"))
        return _reply_text(completion, usage), usage

    def _step_down(self, form: str) -> bool:
        """Use the next simpler form from now on; false when there is none. Concurrent callers step once."""
        if self._forms[0] != form:
            return True
        if len(self._forms) == 1:
            return False
        self._forms.pop(0)
        return True

    def _arguments(self, messages: list[dict[str, str]], form: str, name: str, schema: dict[str, Any],
                   temperature: float | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"model": self._settings.judge_model, "messages": messages}
        if temperature is not None:
            arguments["temperature"] = temperature
        if form == "json_schema":
            arguments["response_format"] = {
                "type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
        elif form == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        return arguments

    @property
    def structured_output(self) -> str:
        """The form in use: what the endpoint has not refused so far."""
        return self._forms[0]


def _tokens(completion: Any, name: str) -> int:
    """A count the endpoint stated, where it stated one: the SDK does not validate what it reads."""
    stated = getattr(getattr(completion, "usage", None), name, None)
    return stated if isinstance(stated, int) and 0 <= stated < 2**31 else 0


def _reply_text(completion: Any, usage: JudgeUsage) -> str:
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise JudgeFailure(UnscoredReason.PARSE_FAILURE, "the judge's answer is not the protocol's", usage)
    if getattr(message, "refusal", None) or getattr(choice, "finish_reason", None) == "content_filter":
        raise JudgeFailure(UnscoredReason.REFUSED, "the judge declined to answer", usage)
    content = getattr(message, "content", None)
    return content if isinstance(content, str) else ""


def _took_too_long(error: BaseException) -> bool:
    """Whether a call's time ran out. The SDK's aiohttp transport also calls a dropped connection a time-out."""
    return isinstance(error, TimeoutError) or (
        isinstance(error, openai.APITimeoutError) and not isinstance(error.__cause__, httpx2.ConnectTimeout))


def _may_pass(error: BaseException) -> bool:
    if _took_too_long(error):
        return False  # it already took the whole time of a call
    return isinstance(error, _TRANSIENT) and (_retry_after(error) or 0.0) <= RETRY_AFTER_MOST_S


_jitter = tenacity.wait_random_exponential(multiplier=BACKOFF_FIRST_S, max=BACKOFF_MOST_S)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_jitter(state), (_retry_after(error) if error else None) or 0.0)


def _retry_after(error: BaseException) -> float | None:
    if not isinstance(error, openai.APIStatusError):
        return None
    headers: Mapping[str, str] = error.response.headers
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _too_large(error: openai.APIStatusError) -> bool:
    return error.status_code == 413 or getattr(error, "code", None) == "context_length_exceeded"


def _failure(error: Exception, usage: JudgeUsage) -> JudgeFailure:
    """The reason for an error, in words that hold nothing of the request or the reply."""
    if _took_too_long(error):
        return JudgeFailure(UnscoredReason.TIMEOUT, "the judge did not answer in time", usage)
    if isinstance(error, openai.RateLimitError):
        return JudgeFailure(UnscoredReason.RATE_LIMITED, "the judge's rate limit held", usage)
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        return JudgeFailure(UnscoredReason.UNAVAILABLE, "the judge refused the key: check MARKSCHEME_JUDGE_API_KEY",
                            usage)
    if isinstance(error, openai.NotFoundError):
        return JudgeFailure(UnscoredReason.UNAVAILABLE,
                            "the judge knows no such model or path: check MARKSCHEME_JUDGE_MODEL and _BASE_URL", usage)
    if isinstance(error, openai.APIStatusError):
        if _too_large(error):
            return JudgeFailure(UnscoredReason.TOO_LARGE, "the material is too large for the judge", usage)
        return JudgeFailure(UnscoredReason.UNAVAILABLE, f"the judge answered with status {error.status_code}", usage)
    if isinstance(error, openai.APIResponseValidationError):
        return JudgeFailure(UnscoredReason.PARSE_FAILURE, "the judge's answer is not the protocol's", usage)
    return JudgeFailure(UnscoredReason.UNAVAILABLE, "the judge could not be reached", usage)
