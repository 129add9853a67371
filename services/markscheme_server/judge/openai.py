"""The ``openai`` judge: any OpenAI-compatible model as rubricator, verifier and teacher.

This module decides what to ask. `gateway` limits and retries the calls, `chat_request` sends them,
`replies` reads the answers and `refusals` the refusals. Every failure becomes a `JudgeFailure` with
a reason.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import openai

from markscheme.text import replace_invalid
from markscheme.vocabulary import UnscoredReason, View
from markscheme_server import metrics
from markscheme_server.domain.call_context import CallContext, Deadline, SpendGuard
from markscheme_server.domain.hashing import (
    ChatMessage,
    canonical_json,
    digest,
    message_text,
    prompt_text,
)
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import CHARACTERS_PER_TOKEN, Judged, material
from markscheme_server.judge import prompts, replies
from markscheme_server.judge.base import (
    MAX_ATTEMPTS,
    Decision,
    InductionTask,
    JudgeFailure,
    Verification,
    VerifyTask,
)
from markscheme_server.judge.capabilities import StructuredForm
from markscheme_server.judge.chat_request import ChatRequest, ChatSender, Messages
from markscheme_server.judge.endpoint import Endpoint
from markscheme_server.judge.failures import failure_of
from markscheme_server.judge.gateway import Gateway
from markscheme_server.judge.refusals import Refusal, RefusalKind, Refused
from markscheme_server.judge.replies import ReplyError, Truncated
from markscheme_server.judge.reply_cap import UnusableReply
from markscheme_server.judge.retry import ProtocolError
from markscheme_server.judge.sanitise import quotes
from markscheme_server.judge.spend import Spending
from markscheme_server.judge_settings import JudgeSettings, Role

THINKING_TOKENS = 4096
"""Allowance for thinking in the computed reply length."""
TEACHER_TOKENS = 8192
"""Longest response of a teacher where the operator sets no length."""
PROBE_TOKENS = 1024
"""Longest reply to a probe or the canned question."""
ENLARGE_FACTOR = 4
"""Factor by which the reply length grows after a reply was cut off."""
_TOKENS = {
    "verdict": 20,
    "applicable": 6,
    "criterion": 40,
    "evidence": 100,
    "rationale": 60,
    "reply": 16,
}
"""Usual lengths of a reply's parts, in tokens."""
_REPEATED_CHARACTERS = 20_000
_REWORDED = (
    "Reply with the JSON object alone: the first character is {{ and the last one is }}. {error}"
)

_CANNED = VerifyTask(
    ({"role": "user", "content": "Say hello."},),
    (Criterion(id="c1", text="It is a greeting.", points=1),),
    ("Hello!",),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CallSize:
    """About how many tokens a call takes, and the most that it can cost in nano-dollars.

    `max_cost`: `None` where the judge has no prices.
    """

    prompt_tokens: int
    completion_tokens: int
    max_cost: int | None


@dataclass(frozen=True, slots=True)
class _VerifierMessage:
    """The message of a verifying call, and what its reply must hold."""

    message: str
    schema: dict[str, Any]
    nonce: str | None
    canary: tuple[str, str] | None
    may_not_apply: Sequence[str]


class OpenAIJudge:
    """Asks a model over the chat-completions protocol; implements `judge.base.Judge`."""

    def __init__(self, settings: JudgeSettings, gateway: Gateway, *, secret: bytes) -> None:
        self._settings, self.gateway = settings, gateway
        self._secrets = prompts.PromptSecrets(secret)
        gateway.ask_canned = self._ask_canned

    @property
    def name(self) -> str:
        """The name in requests and settings."""
        return self.gateway.name

    @property
    def model(self) -> str:
        """The model's name at its endpoints."""
        return self._settings.model

    @property
    def max_criteria(self) -> int | None:
        """The maximum number of criteria per verifying call; ``None``: no maximum."""
        return self._settings.max_criteria

    @property
    def view(self) -> View | None:
        """Which part of a trajectory it judges where neither request nor rubric says so."""
        return self._settings.view

    @property
    def max_response_tokens(self) -> int:
        """How much of a response it is shown, in tokens."""
        return self._settings.max_response_tokens

    @cached_property
    def rubricator_identity(self) -> str:
        """Model, revision, sampling and template that induce."""
        return self._identity(prompts.RUBRICATOR_VERSION, "rubricator")

    @cached_property
    def verifier_identity(self) -> str:
        """Model, revision, sampling and template that verify, with the options in use."""
        s = self._settings
        # Each option changes what is asked, so verdicts under different options share no key.
        extras = "".join(
            f"+{name}"
            for name, on in (
                ("evidence", s.evidence),
                ("hardening", s.hardening),
                ("rationale", s.rationale != "off"),
            )
            if on
        )
        return self._identity(prompts.VERIFIER_VERSION + extras, "verifier")

    @property
    def template(self) -> str:
        """The version of the rubricator's template."""
        return f"rubricator/{prompts.RUBRICATOR_VERSION}"

    def _identity(self, template: str, role: Role) -> str:
        """Name what the operator configured.

        Reply lengths, and what was learnt of an endpoint, are not part of it.
        """
        s = self._settings
        return (
            f"openai/{s.model}@{s.revision or s.origin} template={template} "
            f"temperature={_temperature(s, role)} tail={s.max_response_tokens}{_sampling(s)}"
        )

    async def induce(
        self, task: InductionTask, context: CallContext, *, max_attempts: int = MAX_ATTEMPTS
    ) -> tuple[Criterion, ...]:
        """Induce 4 to 12 criteria by contrast (ROPD, arXiv 2605.07396, section 3)."""
        message = prompts.rubricator_prompt(
            task, self._secrets, max_tokens=self._settings.max_response_tokens
        )
        question = _Question(
            "rubricator",
            message,
            "rubric",
            prompts.RUBRIC_SCHEMA,
            replies.MAX_CRITERIA * _TOKENS["criterion"],
        )
        prompt = prompt_text(task.prompt)
        return await self._ask(
            question, context, lambda reply: replies.read_criteria(reply, prompt), max_attempts
        )

    def _verifier_message(self, task: VerifyTask) -> "_VerifierMessage":
        s = self._settings
        shown = prompts.number_criteria(task.criteria)
        asked = [
            list(task.prompt),
            [c.text for c in task.criteria],
            [material(response) for response in task.responses],
        ]
        nonce = self._secrets.derive("nonce", asked) if s.hardening else None
        canary = None
        if s.hardening:
            # No answer can contain a word that derives from a secret: "met" is surely false.
            word = self._secrets.derive("canary", asked)
            # Numbered like the criteria, so that only its text tells it apart.
            canary = (f"c{len(shown) + 1}", f"The answer contains the string {word}.")
        pool, rationale = task.verify == "group", s.rationale != "off"
        may_not_apply = [f"c{i}" for i, c in enumerate(task.criteria, 1) if c.may_not_apply]
        schema = prompts.verdict_schema(
            pool=pool,
            evidence=s.evidence,
            nonce=nonce is not None,
            rationale=rationale,
            may_not_apply=bool(may_not_apply),
        )
        message = prompts.verifier_prompt(
            task,
            shown,
            schema,
            self._secrets,
            max_tokens=s.max_response_tokens,
            nonce=nonce,
            canary=canary,
            rationale=rationale,
            may_not_apply=may_not_apply,
        )
        return _VerifierMessage(message, schema, nonce, canary, may_not_apply)

    def shown(self, task: VerifyTask) -> str:
        """Return the message in which the judge is asked to decide the criteria of a task."""
        return self._verifier_message(task).message

    def size(self, task: VerifyTask) -> CallSize:
        """Return how large the call is in which the judge decides the criteria of a task."""
        question = self._verifier_question(task, self._verifier_message(task))
        request = self._request(question)
        nobody = CallContext(Deadline(math.inf), priority=0)
        sender = ChatSender(self._settings, request, self._spending("verifier", nobody))
        return CallSize(
            _prompt_tokens(request),
            question.usual_tokens,
            self._settings.max_cost(*sender.max_tokens(self.gateway.endpoints))
            if self._settings.priced
            else None,
        )

    def _verifier_question(self, task: VerifyTask, asked: "_VerifierMessage") -> "_Question":
        s = self._settings
        each = (
            _TOKENS["verdict"]
            + s.evidence * _TOKENS["evidence"]
            + (s.rationale != "off") * _TOKENS["rationale"]
            + bool(asked.may_not_apply) * _TOKENS["applicable"]
        )
        verdicts = (len(task.criteria) + (asked.canary is not None)) * len(task.responses)
        return _Question("verifier", asked.message, "verdicts", asked.schema, verdicts * each)

    async def verify(self, task: VerifyTask, context: CallContext) -> Verification:
        """Decide all criteria in one call."""
        s = self._settings
        asked = self._verifier_message(task)
        nonce, canary = asked.nonce, asked.canary
        pool, rationale = task.verify == "group", s.rationale != "off"
        may_not_apply, shown = asked.may_not_apply, prompts.number_criteria(task.criteria)
        ids = [i for i, _ in shown] + ([canary[0]] if canary else [])

        def read(reply: Any) -> list[dict[str, Decision]]:
            if nonce is not None and (not isinstance(reply, dict) or reply.get("nonce") != nonce):
                raise ReplyError("the nonce is missing or wrong")
            if pool:
                decided = replies.read_pool(
                    reply,
                    len(task.responses),
                    ids,
                    evidence=s.evidence,
                    rationale=rationale,
                    may_not_apply=may_not_apply,
                )
            else:
                decided = [
                    replies.read_verdicts(
                        reply,
                        ids,
                        evidence=s.evidence,
                        rationale=rationale,
                        may_not_apply=may_not_apply,
                    )
                ]
            if s.evidence:
                self._require_evidence(decided, task.responses)
            return decided

        decided = await self._ask(self._verifier_question(task, asked), context, read)
        # A judge that calls the canary met would call anything met: none of its verdicts counts.
        if canary is not None and any(decisions[canary[0]].met for decisions in decided):
            metrics.CANARY_FAILURES.labels(judge=self.name).inc()
            raise JudgeFailure(
                UnscoredReason.CANARY_FAILED, "the judge called a surely false criterion met"
            )
        return tuple(
            {c.id: decisions[f"c{i}"] for i, c in enumerate(task.criteria, 1)}
            for decisions in decided
        )

    @property
    def teacher_model(self) -> str:
        """The model's name, stored with its responses."""
        return self._settings.model

    @property
    def teacher_identity(self) -> str:
        """Model, revision and sampling; recorded with its calls."""
        s = self._settings
        return (
            f"openai/{s.model}@{s.revision or s.origin} temperature={_temperature(s, 'teacher')} "
            f"tokens={s.teacher_max_tokens or TEACHER_TOKENS}{_sampling(s)}"
        )

    async def respond(self, prompt: tuple[ChatMessage, ...], context: CallContext) -> str:
        """Send the prompt as it is, and refuse a response that is empty or was cut off."""
        s = self._settings
        longest = s.teacher_max_tokens or TEACHER_TOKENS
        request = ChatRequest(
            "teacher", _sendable(prompt), longest, fixed=s.teacher_max_tokens is not None
        )
        spending = self._spending("teacher", context)
        completion, _ = await self._call(request, longest, context, spending)
        try:
            text = replace_invalid(replies.read_text(completion, response=True))
        except Truncated as error:
            raise JudgeFailure(
                UnscoredReason.TRUNCATED,
                "the teacher's response was cut off; raise its teacher_max_tokens",
            ) from error
        except ReplyError as error:
            raise JudgeFailure(
                error.reason, f"the teacher's response cannot be used: {error}"
            ) from error
        if not text.strip():
            raise JudgeFailure(UnscoredReason.PARSE_FAILURE, "the teacher's response is empty")
        return text

    async def probe(
        self,
        question: str,
        schema: dict[str, Any],
        form: StructuredForm,
        endpoint: Endpoint,
        context: CallContext,
    ) -> str | Refusal:
        """Ask one endpoint a small question in one form; return the reply's text, or the refusal.

        Bypasses the gateway; for `probing`. Raises `JudgeFailure` for other failures.
        """
        request = ChatRequest(
            "verifier",
            _user(question),
            self._settings.max_tokens or PROBE_TOKENS,
            fixed=self._settings.max_tokens is not None,
            schema=schema,
            schema_name="probe",
            forms=(form,),
        )
        try:
            async with asyncio.timeout_at(context.deadline.at):
                spending = self._spending("verifier", context)
                return replies.read_text(
                    await ChatSender(self._settings, request, spending).send(endpoint)
                )
        except Refused as refused:
            return refused.refusal
        except ReplyError as error:
            raise JudgeFailure(error.reason, str(error)) from error
        except (openai.OpenAIError, TimeoutError, UnusableReply, ProtocolError) as error:
            raise failure_of(error) from error

    async def _ask_canned(self, endpoint: Endpoint) -> None:
        """Ask about one fixed criterion and response. Raises as a call does.

        Its tokens are counted in the metrics under the role ``canned``, and in no team's ledger.
        """
        s = self._settings
        schema = prompts.verdict_schema(pool=False, evidence=False, nonce=False, rationale=False)
        message = prompts.verifier_prompt(
            _CANNED,
            prompts.number_criteria(_CANNED.criteria),
            schema,
            self._secrets,
            max_tokens=s.max_response_tokens,
            nonce=None,
            canary=None,
            rationale=False,
        )
        request = ChatRequest(
            "verifier",
            _user(message),
            s.max_tokens or PROBE_TOKENS,
            fixed=s.max_tokens is not None,
            schema=schema,
            schema_name="verdicts",
        )
        # No team pays for it, and the gateway bounds its time.
        spending = Spending(s, self.name, "canned", SpendGuard(), Deadline(math.inf))
        await ChatSender(s, request, spending).send(endpoint)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.gateway.aclose()

    def _require_evidence(
        self, decided: list[dict[str, Decision]], responses: Sequence[Judged]
    ) -> None:
        """Refuse evidence that is not in the answer as the judge was shown it."""
        for decisions, response in zip(decided, responses, strict=True):
            shown = prompts.shown_text(response, self._settings.max_response_tokens)
            for name, decision in decisions.items():
                if decision.met and not quotes(decision.evidence or "", shown):
                    raise ReplyError(
                        f"the evidence for {name} is not in the answer: "
                        "quote the answer word for word"
                    )

    async def _ask(
        self,
        question: "_Question",
        context: CallContext,
        read: Callable[[Any], T],
        max_attempts: int = MAX_ATTEMPTS,
    ) -> T:
        """Ask, then ask again with the error of the first reply, then reworded.

        After a reply that was cut off, ask once more for a longer one. No attempt repeats an
        earlier one to the byte: at temperature 0 it would get the same reply.
        """
        request = self._request(question)
        # One record for all attempts.
        spending, text = self._spending(question.role, context), ""
        for attempt in range(1, max_attempts + 1):
            try:
                completion, length = await self._call(
                    request, question.usual_tokens, context, spending
                )
            except JudgeFailure as failure:
                again = self._after_refusal(failure, request, question, attempt)
                if attempt == max_attempts or again is None:
                    raise
                request = again
                continue
            try:
                text = replies.read_text(completion)
                return read(replies.read_object(text))
            except Truncated as error:
                larger = self._enlarged(request, question, length)
                if attempt == max_attempts or larger is None:
                    advice = "; raise MARKSCHEME_JUDGE_MAX_TOKENS" if request.fixed else ""
                    raise JudgeFailure(
                        error.reason, f"the judge gave no verdict: {error}{advice}"
                    ) from error
                request = larger
            except ReplyError as error:
                if attempt == max_attempts or not error.again:
                    raise JudgeFailure(
                        error.reason, f"the judge's reply cannot be used: {error}"
                    ) from error
                request = replace(
                    request, messages=_reworded(question.message, attempt, text, str(error))
                )
        raise AssertionError("unreachable")

    def _request(self, question: "_Question") -> "ChatRequest":
        """Return the request of a question's first attempt."""
        return ChatRequest(
            question.role,
            _user(question.message),
            self._cap(question.usual_tokens),
            fixed=self._settings.max_tokens is not None,
            schema=question.schema,
            schema_name=question.schema_name,
        )

    def _after_refusal(
        self, failure: JudgeFailure, request: "ChatRequest", question: "_Question", attempt: int
    ) -> "ChatRequest | None":
        """Return the request after an endpoint refused its model's output; ``None``: give up."""
        cause = failure.__cause__
        kind = cause.refusal.kind if isinstance(cause, Refused) else None
        # Such an endpoint refuses with an error what others answer with an unusable reply.
        if kind is RefusalKind.TRUNCATED:
            return self._enlarged(request, question, request.cap)
        if kind is RefusalKind.GENERATION:
            return replace(request, messages=_reworded(question.message, attempt, "", str(failure)))
        return None

    def _enlarged(
        self, request: "ChatRequest", question: "_Question", length: int | None
    ) -> "ChatRequest | None":
        """Return the request with a longer reply length, once; ``None`` where it cannot grow.

        ``length`` is the length that was sent: less than the request's cap where the endpoint
        accepts no more.
        """
        # Larger only once: a model that needs still more usually never ends.
        first_cap = self._cap(question.usual_tokens)
        at_limit = length is None or length < request.cap
        if request.fixed or at_limit or request.cap > first_cap:
            return None
        return replace(request, cap=first_cap * ENLARGE_FACTOR)

    def _cap(self, usual_tokens: int) -> int:
        """Return the longest reply to ask for, in tokens.

        That is what the operator set, else four times the usual length and `THINKING_TOKENS`.
        """
        computed = ENLARGE_FACTOR * (_TOKENS["reply"] + usual_tokens) + THINKING_TOKENS
        return self._settings.max_tokens or computed

    def _spending(self, role: Role, context: CallContext) -> Spending:
        return Spending(
            self._settings, self.name, role, context.budget or SpendGuard(), context.deadline
        )

    async def _call(
        self, request: "ChatRequest", usual_tokens: int, context: CallContext, spending: Spending
    ) -> tuple[Any, int | None]:
        """Return a completion and the reply length that was sent (``None``: none)."""
        # An estimate is enough for the quota; budgets count bytes.
        tokens = _prompt_tokens(request) + usual_tokens
        sender = ChatSender(self._settings, request, spending)
        completion = await self.gateway.call(
            sender.send,
            reserve_budget=lambda: sender.reserve_budget(self.gateway.endpoints),
            role=request.role,
            tokens=tokens,
            context=context,
        )
        return completion, sender.length


@dataclass(frozen=True, slots=True)
class _Question:
    """A message for one role, the schema of its reply, and the reply's usual length in tokens."""

    role: Role
    message: str
    schema_name: str
    schema: dict[str, Any]
    usual_tokens: int


def _prompt_tokens(request: ChatRequest) -> int:
    return sum(len(message_text(m)) for m in request.messages) // CHARACTERS_PER_TOKEN


def _sendable(prompt: Sequence[ChatMessage]) -> Messages:
    """Return a prompt as the chat-completions protocol has it.

    There arguments are a string, and nobody sends thoughts back.
    """
    messages = []
    for message in prompt:
        sent = {name: value for name, value in message.items() if name != "reasoning_content"}
        if "tool_calls" in sent:
            sent["tool_calls"] = [
                call | {"function": call["function"] | {"arguments": _arguments(call)}}
                for call in sent["tool_calls"]
            ]
        messages.append(sent)
    return messages


def _arguments(call: ChatMessage) -> str:
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else canonical_json(arguments)


def _user(message: str) -> Messages:
    return [{"role": "user", "content": message}]


def _reworded(message: str, attempt: int, reply: str, error: str) -> Messages:
    """Return the question after an unusable reply: first with that reply, then without it."""
    if attempt == 1 and reply:
        return [
            *_user(message),
            {"role": "assistant", "content": replace_invalid(reply[:_REPEATED_CHARACTERS])},
            *_user(
                f"That reply cannot be used: {error}. Reply again with one JSON object as asked, "
                "and nothing else."
            ),
        ]
    said = "A reply before was refused." if attempt == 1 else "Two replies before were refused."
    return _user(f"{message}\n\n{_REWORDED.format(error=said)}")


def _temperature(settings: JudgeSettings, role: Role) -> str:
    temperature = settings.temperature_of(role)
    return "default" if temperature is None else str(temperature)


def _sampling(settings: JudgeSettings) -> str:
    """Name the settings beyond the temperature that change sampling; empty where none is set."""
    parts = [
        ("effort", settings.reasoning_effort),
        ("seed", settings.seed),
        ("extra", digest(settings.extra_body)[:12] if settings.extra_body else None),
    ]
    return "".join(f" {name}={value}" for name, value in parts if value is not None)
