"""The ``openai`` judge: any OpenAI-compatible endpoint as rubricator and verifier, and as the teacher itself.

What is asked is here. How often, how long and which endpoint is asked is the gateway's; how an
answer is read is in :mod:`replies`, why there is none in :mod:`refusals`. Every way of not answering
becomes a :class:`JudgeFailure` with a reason.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx2
import openai

from markscheme.text import replace_invalid
from markscheme.vocabulary import UnscoredReason
from markscheme_server import metrics
from markscheme_server.config import JudgeSettings, Role
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.hashing import ChatMessage, digest, prompt_text
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.spend_guard import SpendGuard
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.judge import prompts, refusals, replies
from markscheme_server.judge.base import (
    ASKS,
    Decision,
    Induction,
    InductionTask,
    JudgeFailure,
    Verification,
    VerifyTask,
)
from markscheme_server.judge.capabilities import Capabilities, StructuredForm
from markscheme_server.judge.gateway import Endpoint, Gateway, failure_of
from markscheme_server.judge.refusals import Kind, Refusal, Refused
from markscheme_server.judge.replies import ReplyError, Truncated
from markscheme_server.judge.reply_cap import UnusableReply
from markscheme_server.judge.retry import NotTheProtocol
from markscheme_server.judge.sanitise import quotes
from markscheme_server.judge.spend import LONGEST_REPLY_TOKENS, Spending

THINKING_TOKENS = 4096
"""Allowance for thinking in the computed length of a reply."""
TEACHER_TOKENS = 8192
"""Longest response of a teacher where the operator sets none."""
PROBE_TOKENS = 1024
"""Longest reply to a small question."""
LARGER = 4
"""By this much the length grows when a reply was cut off."""
_TOKENS = {"verdict": 20, "criterion": 40, "evidence": 100, "rationale": 60, "reply": 16}
"""Usual lengths of a reply's parts."""
_SHOWN_AGAIN_CHARACTERS = 20_000
_ONCE_MORE = (
    "Reply with the JSON object alone: the first character is {{ and the last one is }}. {error}"
)

_CANNED = VerifyTask(
    ({"role": "user", "content": "Say hello."},),
    (Criterion(id="c1", text="It is a greeting.", points=1),),
    ("Hello!",),
)

T = TypeVar("T")
Messages = list[dict[str, str]]


class OpenAIJudge:
    """Asks a model over the chat-completions protocol; see :class:`markscheme_server.judge.base.Judge`."""

    def __init__(self, settings: JudgeSettings, gateway: Gateway, *, secret: bytes) -> None:
        self._settings, self.gateway = settings, gateway
        self._marks = prompts.PromptSecrets(secret)
        gateway.canned = self._ask_canned

    @property
    def name(self) -> str:
        return self.gateway.name

    @property
    def model(self) -> str:
        return self._settings.model

    @property
    def max_criteria(self) -> int | None:
        return self._settings.max_criteria

    @property
    def rubricator_identity(self) -> str:
        return self._identity(prompts.RUBRICATOR_VERSION, "rubricator")

    @property
    def verifier_identity(self) -> str:
        s = self._settings
        extras = "".join(
            f"+{name}"
            for name, on in (
                ("evidence", s.evidence),
                ("nonce", s.nonce),
                ("canary", s.canary),
                ("rationale", s.rationale != "off"),
            )
            if on
        )
        return self._identity(prompts.VERIFIER_VERSION + extras, "verifier")

    @property
    def template(self) -> str:
        return f"rubricator/{prompts.RUBRICATOR_VERSION}"

    def _identity(self, template: str, role: Role) -> str:
        """What the operator configured. Lengths of replies and what was learnt of an endpoint are not in it."""
        s = self._settings
        return (
            f"openai/{s.model}@{s.revision or s.origin} template={template} "
            f"temperature={_stated(s, role)} tail={s.max_response_tokens}{_sampling(s)}"
        )

    async def induce(
        self, task: InductionTask, context: CallContext, *, asks: int = ASKS
    ) -> Induction:
        """4 to 12 criteria by contrast (ROPD, arXiv 2605.07396, section 3). Raises :class:`JudgeFailure`."""
        message = prompts.rubricator_prompt(
            task, self._marks, max_tokens=self._settings.max_response_tokens
        )
        question = _Question(
            "rubricator",
            message,
            "rubric",
            prompts.RUBRIC_SCHEMA,
            replies.MAX_CRITERIA * _TOKENS["criterion"],
        )
        prompt = prompt_text(task.prompt)
        criteria, usage = await self._ask(
            question, context, lambda reply: replies.read_criteria(reply, prompt), asks
        )
        return Induction(criteria, usage)

    async def verify(self, task: VerifyTask, context: CallContext) -> Verification:
        """One call for all criteria. Raises :class:`JudgeFailure`."""
        s = self._settings
        shown = prompts.shown_criteria(task.criteria)
        address = [list(task.prompt), [c.text for c in task.criteria], list(task.responses)]
        nonce = self._marks.derive("nonce", address) if s.nonce else None
        canary = None
        if s.canary:
            word = self._marks.derive("canary", address)
            canary = (f"c{len(shown) + 1}", f"The answer contains the string {word}.")
        pool, rationale = task.verify == "group", s.rationale != "off"
        schema = prompts.verdict_schema(
            pool=pool, evidence=s.evidence, nonce=nonce is not None, rationale=rationale
        )
        message = prompts.verifier_prompt(
            task,
            shown,
            schema,
            self._marks,
            max_tokens=s.max_response_tokens,
            nonce=nonce,
            canary=canary,
            rationale=rationale,
        )
        ids = [i for i, _ in shown] + ([canary[0]] if canary else [])

        def read(reply: Any) -> list[dict[str, Decision]]:
            if nonce is not None and (not isinstance(reply, dict) or reply.get("nonce") != nonce):
                raise ReplyError("the nonce is missing or wrong")
            if pool:
                decided = replies.read_pool(
                    reply, len(task.responses), ids, evidence=s.evidence, rationale=rationale
                )
            else:
                decided = [
                    replies.read_verdicts(reply, ids, evidence=s.evidence, rationale=rationale)
                ]
            if s.evidence:
                self._require_evidence(decided, task.responses)
            return decided

        each = (
            _TOKENS["verdict"] + s.evidence * _TOKENS["evidence"] + rationale * _TOKENS["rationale"]
        )
        question = _Question(
            "verifier", message, "verdicts", schema, len(ids) * len(task.responses) * each
        )
        decided, usage = await self._ask(question, context, read)
        if canary is not None and any(decisions[canary[0]].met for decisions in decided):
            metrics.CANARY_FAILURES.labels(judge=self.name).inc()
            raise JudgeFailure(
                UnscoredReason.CANARY_FAILED, "the judge called a surely false criterion met", usage
            )
        return Verification(
            tuple(
                {c.id: decisions[f"c{i}"] for i, c in enumerate(task.criteria, 1)}
                for decisions in decided
            ),
            usage,
        )

    @property
    def teacher_model(self) -> str:
        return self._settings.model

    @property
    def teacher_identity(self) -> str:
        s = self._settings
        return (
            f"openai/{s.model}@{s.revision or s.origin} temperature={_stated(s, 'teacher')} "
            f"tokens={s.teacher_max_tokens or TEACHER_TOKENS}{_sampling(s)}"
        )

    async def respond(
        self, prompt: tuple[ChatMessage, ...], context: CallContext
    ) -> tuple[str, JudgeUsage]:
        """The prompt itself is asked, nothing around it. A response that is empty or was cut off is none."""
        s = self._settings
        longest = s.teacher_max_tokens or TEACHER_TOKENS
        request = _Request("teacher", list(prompt), longest, fixed=s.teacher_max_tokens is not None)
        spending = self._spending("teacher", context)
        completion, _ = await self._call(request, longest, context, spending)
        usage = spending.usage
        try:
            text = replace_invalid(replies.read_text(completion, response=True))
        except Truncated as error:
            raise JudgeFailure(
                UnscoredReason.TRUNCATED,
                "the teacher's response was cut off; raise its teacher_max_tokens",
                usage,
            ) from error
        except ReplyError as error:
            raise JudgeFailure(
                error.reason, f"the teacher's response cannot be used: {error}", usage
            ) from error
        if not text.strip():
            raise JudgeFailure(
                UnscoredReason.PARSE_FAILURE, "the teacher's response is empty", usage
            )
        return text, usage

    async def probe(
        self,
        question: str,
        schema: dict[str, Any],
        form: StructuredForm,
        endpoint: Endpoint,
        context: CallContext,
    ) -> str | Refusal:
        """One small question to one endpoint in one form, past the gateway: the reply's text, or the refusal.

        For :mod:`probing`. Raises :class:`JudgeFailure` where neither came.
        """
        request = _Request(
            "verifier",
            _user(question),
            self._settings.max_tokens or PROBE_TOKENS,
            fixed=self._settings.max_tokens is not None,
            schema=schema,
            form_name="probe",
            forms=(form,),
        )
        try:
            async with asyncio.timeout_at(context.deadline.at):
                spending = self._spending("verifier", context)
                return replies.read_text(
                    await _Sender(self._settings, request, spending).send(endpoint)
                )
        except Refused as refused:
            return refused.refusal
        except ReplyError as error:
            raise JudgeFailure(error.reason, str(error)) from error
        except (openai.OpenAIError, TimeoutError, UnusableReply, NotTheProtocol) as error:
            raise failure_of(error) from error

    async def _ask_canned(self, endpoint: Endpoint) -> None:
        """One criterion about one response, none of it a caller's. Raises as a call does.

        What it takes is in the metrics with the role ``canned``, and on no team's books.
        """
        s = self._settings
        schema = prompts.verdict_schema(pool=False, evidence=False, nonce=False, rationale=False)
        message = prompts.verifier_prompt(
            _CANNED,
            prompts.shown_criteria(_CANNED.criteria),
            schema,
            self._marks,
            max_tokens=s.max_response_tokens,
            nonce=None,
            canary=None,
            rationale=False,
        )
        request = _Request(
            "verifier",
            _user(message),
            s.max_tokens or PROBE_TOKENS,
            fixed=s.max_tokens is not None,
            schema=schema,
            form_name="verdicts",
        )
        spending = Spending(s, self.name, "canned", SpendGuard(), Deadline(math.inf))
        await _Sender(s, request, spending).send(endpoint)

    async def aclose(self) -> None:
        await self.gateway.aclose()

    def _require_evidence(
        self, decided: list[dict[str, Decision]], responses: Sequence[str]
    ) -> None:
        """A quotation that is not in what the judge was shown is a made-up one, and the verdict with it."""
        for decisions, response in zip(decided, responses, strict=True):
            shown = prompts.shown(response, self._settings.max_response_tokens)
            for name, decision in decisions.items():
                if decision.met and not quotes(decision.evidence or "", shown):
                    raise ReplyError(
                        f"the evidence for {name} is not in the answer: quote the answer word for word"
                    )

    async def _ask(
        self,
        question: "_Question",
        context: CallContext,
        read: Callable[[Any], T],
        asks: int = ASKS,
    ) -> tuple[T, JudgeUsage]:
        """Ask, once more with what was wrong, and once in other words; then give up with the reason.

        A reply that was cut off is asked for once more with more room. No ask repeats an earlier one to the
        byte: at temperature 0 it would be answered in the same way.
        """
        s = self._settings
        request = _Request(
            question.role,
            _user(question.message),
            self._cap(question.usual_tokens),
            fixed=s.max_tokens is not None,
            schema=question.schema,
            form_name=question.form_name,
        )
        spending, text = self._spending(question.role, context), ""
        for attempt in range(1, asks + 1):
            try:
                completion, length = await self._call(
                    request, question.usual_tokens, context, spending
                )
            except JudgeFailure as failure:
                again = self._after_refusal(failure, request, question, attempt)
                if attempt == asks or again is None:
                    raise
                request = again
                continue
            usage = spending.usage
            try:
                text = replies.read_text(completion)
                return read(replies.read_object(text)), usage
            except Truncated as error:
                larger = self._enlarged(request, question, length)
                if attempt == asks or larger is None:
                    advice = "; raise MARKSCHEME_JUDGE_MAX_TOKENS" if request.fixed else ""
                    raise JudgeFailure(
                        error.reason, f"the judge gave no verdict: {error}{advice}", usage
                    ) from error
                request = larger
            except ReplyError as error:
                if attempt == asks or not error.again:
                    raise JudgeFailure(
                        error.reason, f"the judge's reply was refused: {error}", usage
                    ) from error
                request = replace(
                    request, messages=_reworded(question.message, attempt, text, str(error))
                )
        raise AssertionError("unreachable")

    def _after_refusal(
        self, failure: JudgeFailure, request: "_Request", question: "_Question", attempt: int
    ) -> "_Request | None":
        """What to ask after an endpoint refused its own model's output; ``None``: the refusal stands."""
        cause = failure.__cause__
        kind = cause.refusal.kind if isinstance(cause, Refused) else None
        if kind is Kind.TRUNCATED:
            return self._enlarged(request, question, request.cap)
        if kind is Kind.GENERATION:
            return replace(request, messages=_reworded(question.message, attempt, "", str(failure)))
        return None

    def _enlarged(
        self, request: "_Request", question: "_Question", length: int | None
    ) -> "_Request | None":
        """The same with more room for the reply, once; ``None`` where there cannot be more.

        ``length`` is what was asked for in the end: less than the request's cap where the endpoint takes no more.
        """
        first = self._cap(question.usual_tokens)
        full = length is None or length < request.cap
        return (
            None
            if request.fixed or full or request.cap > first
            else replace(request, cap=first * LARGER)
        )

    def _cap(self, usual_tokens: int) -> int:
        """The longest reply to ask for, tokens: what the operator set, else four times the usual and room to think."""
        return (
            self._settings.max_tokens
            or LARGER * (_TOKENS["reply"] + usual_tokens) + THINKING_TOKENS
        )

    def _spending(self, role: Role, context: CallContext) -> Spending:
        return Spending(
            self._settings, self.name, role, context.budget or SpendGuard(), context.deadline
        )

    async def _call(
        self, request: "_Request", usual_tokens: int, context: CallContext, spending: Spending
    ) -> tuple[Any, int | None]:
        """A completion by way of the gateway, and the longest reply that was asked for in the end (``None``: none).

        A failure carries what the question has cost so far.
        """
        tokens = (
            sum(len(m["content"]) for m in request.messages) // prompts.CHARACTERS_PER_TOKEN
            + usual_tokens
        )
        sender = _Sender(self._settings, request, spending)
        try:
            completion = await self.gateway.call(
                sender.send,
                cover=lambda: sender.cover(self.gateway.endpoints),
                role=request.role,
                tokens=tokens,
                context=context,
            )
        except JudgeFailure as failure:
            failure.usage = spending.usage
            raise
        return completion, sender.length


@dataclass(frozen=True, slots=True)
class _Question:
    """What one role asks: the message, and the form that the reply must have. ``usual_tokens``: of a reply."""

    role: Role
    message: str
    form_name: str
    schema: dict[str, Any]
    usual_tokens: int


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, before an endpoint's ways are known. ``cap``: the longest reply, tokens; ``fixed``: the
    operator set it. Without a ``schema`` plain text is asked for."""

    role: Role
    messages: Messages
    cap: int
    fixed: bool
    schema: dict[str, Any] | None = None
    form_name: str = ""
    forms: tuple[StructuredForm, ...] | None = None
    """Only these forms of structured output, whatever the endpoint is known to take."""

    @property
    def material(self) -> str:
        """All text of the request."""
        return "\n".join(message["content"] for message in self.messages)


class _Sender:
    """Sends one request in the way an endpoint takes it, and learns from its refusals."""

    def __init__(self, settings: JudgeSettings, request: _Request, spending: Spending) -> None:
        self._settings, self._request, self._spending = settings, request, spending
        self.length: int | None = None
        """The longest reply that the last request asked for, tokens."""
        self._prompt_bytes = sum(len(message["content"].encode()) for message in request.messages)

    async def cover(self, endpoints: Sequence[Endpoint]) -> None:
        """See to the money for one request, whichever of the endpoints it will go to."""
        most = max(
            _most_tokens(self._length(self._request, endpoint.capabilities))
            for endpoint in endpoints
        )
        await self._spending.cover(self._prompt_bytes, most)

    async def send(self, endpoint: Endpoint) -> Any:
        """The completion. Raises :class:`Refused`, :class:`NotTheProtocol` and the SDK's connection errors."""
        now = asyncio.get_running_loop().time()
        known, request = endpoint.capabilities, self._request
        start = form = self._first_form(known, now)
        unexplained: Refused | None = None
        while True:
            try:
                completion = await self._post(endpoint, self._body(request, form, known))
            except Refused as refused:
                refusal = refused.refusal
                simpler = (
                    self._simpler(known, form)
                    if refusal.kind in (Kind.FORM, Kind.UNEXPLAINED)
                    else None
                )
                if simpler is not None:
                    # Words that do not say what is wrong: only if a simpler form is answered was it the form.
                    unexplained = unexplained or (
                        refused if refusal.kind is Kind.UNEXPLAINED else None
                    )
                    form = simpler
                elif (adapted := self._adapt(refusal, request, known)) is not None:
                    request = adapted
                else:
                    raise unexplained or refused from None
                continue
            if form is not None and (form != start or form != known.form) and request.forms is None:
                known.use_form(form, now)
            return completion

    def _first_form(self, known: Capabilities, now: float) -> StructuredForm | None:
        if self._request.schema is None:
            return None
        return self._request.forms[0] if self._request.forms else known.choose_form(now)

    def _simpler(self, known: Capabilities, form: StructuredForm | None) -> StructuredForm | None:
        return known.simpler(form) if form is not None and self._request.forms is None else None

    async def _post(self, endpoint: Endpoint, body: dict[str, Any]) -> Any:
        # Not chat.completions.create: it walks all parameters and builds models of the reply, which takes longer
        # than all that we do for a call. Not cast_to=object either: it decodes what may not be JSON.
        sent = [name for name in body if name not in ("model", "messages", "response_format")]
        self.length = body.get(endpoint.capabilities.length_name)
        most = _most_tokens(self.length)
        await self._spending.cover(self._prompt_bytes, most)
        call = self._spending.begin(self._prompt_bytes, most)
        try:
            response: httpx2.Response = await endpoint.client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                body=body,
                options={"headers": self._settings.extra_headers}
                if self._settings.extra_headers
                else {},
            )
        except openai.APIStatusError as error:
            content = _error_body(error.response)
            refusal = refusals.of_response(error.status_code, content, sent, self._request.material)
            call.refused(refusal, content)
            raise Refused(refusal, error.response.headers) from error
        except openai.APIConnectionError as error:
            call.disconnected(error)
            raise
        completion = replies.decode(response.content)
        refusal_in_it = refusals.of_completion(completion, sent, self._request.material)
        if refusal_in_it is not None:
            call.refused(refusal_in_it, completion)
            raise Refused(refusal_in_it, response.headers)
        call.answered(completion)
        replies.check_protocol(completion)
        return completion

    def _body(
        self, request: _Request, form: StructuredForm | None, known: Capabilities
    ) -> dict[str, Any]:
        s = self._settings
        body: dict[str, Any] = {"model": s.model, "messages": request.messages}
        temperature = s.temperature_of(request.role)
        if temperature is not None and (
            "temperature" not in known.left_out or s.sets_temperature(request.role)
        ):
            body["temperature"] = temperature
        length = self._length(request, known)
        if length is not None:
            body[known.length_name] = length
        if s.reasoning_effort is not None:
            body["reasoning_effort"] = s.reasoning_effort
        if s.seed is not None:
            body["seed"] = s.seed
        if form == "json_schema":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": request.form_name,
                    "strict": True,
                    "schema": request.schema,
                },
            }
        elif form == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body | s.extra_body

    @staticmethod
    def _length(request: _Request, known: Capabilities) -> int | None:
        """The longest reply that is asked for, tokens; ``None``: the endpoint takes no length."""
        if request.fixed:
            return request.cap
        if "max_tokens" in known.left_out:
            return None
        return request.cap if known.most_tokens is None else min(request.cap, known.most_tokens)

    def _adapt(self, refusal: Refusal, request: _Request, known: Capabilities) -> _Request | None:
        """The request to send in place of the refused one; ``None``: there is none that could do better."""
        if refusal.kind is Kind.TOO_LARGE:
            room = refusal.room
            if room is None or request.fixed or not _TOKENS["reply"] * 4 <= room < request.cap:
                return None
            return replace(request, cap=room)
        if refusal.kind is not Kind.PARAMETER:
            return None
        if refusal.parameter == "temperature":
            if "temperature" in known.left_out or self._settings.sets_temperature(request.role):
                return None
            known.leave_out("temperature")
            return request
        if refusal.parameter in ("max_tokens", "max_completion_tokens"):
            return self._adapt_length(refusal, request, known)
        return None

    @staticmethod
    def _adapt_length(refusal: Refusal, request: _Request, known: Capabilities) -> _Request | None:
        sent = min(request.cap, known.most_tokens or request.cap)
        if refusal.most is not None and not request.fixed and refusal.most < sent:
            known.cap_length(refusal.most)
        elif refusal.parameter == "max_tokens" and known.length_name == "max_tokens":
            known.rename_length()
        elif not request.fixed and "max_tokens" not in known.left_out:
            known.leave_out("max_tokens")
        else:
            return None
        return request


def _error_body(response: httpx2.Response) -> object:
    """What came with an error: JSON where it is, else its text."""
    try:
        return replies.decode(response.content)
    except NotTheProtocol:
        return response.text


def _user(message: str) -> Messages:
    return [{"role": "user", "content": message}]


def _reworded(message: str, attempt: int, reply: str, error: str) -> Messages:
    """The question after a reply that could not be used: with that reply at first, afterwards without it."""
    if attempt == 1 and reply:
        return [
            *_user(message),
            {"role": "assistant", "content": replace_invalid(reply[:_SHOWN_AGAIN_CHARACTERS])},
            *_user(
                f"That reply cannot be used: {error}. Reply again with one JSON object as asked, and "
                "nothing else."
            ),
        ]
    said = "A reply before was refused." if attempt == 1 else "Two replies before were refused."
    return _user(f"{message}\n\n{_ONCE_MORE.format(error=said)}")


def _stated(settings: JudgeSettings, role: Role) -> str:
    temperature = settings.temperature_of(role)
    return "default" if temperature is None else str(temperature)


def _sampling(settings: JudgeSettings) -> str:
    """Settings beyond the temperature that change what is sampled; nothing where none is set."""
    parts = [
        ("effort", settings.reasoning_effort),
        ("seed", settings.seed),
        ("extra", digest(settings.extra_body)[:12] if settings.extra_body else None),
    ]
    return "".join(f" {name}={value}" for name, value in parts if value is not None)


def _most_tokens(length: int | None) -> int:
    """The longest reply that can come where ``length`` was asked for, tokens."""
    return LONGEST_REPLY_TOKENS if length is None else length
