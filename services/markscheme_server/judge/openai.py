"""The ``openai`` judge: any OpenAI-compatible endpoint as rubricator and verifier, and as the teacher itself.

What it says and how it reads the reply is here; how often, how long and where it is asked is the gateway's. Every way
of not answering becomes a :class:`JudgeFailure` with a reason.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from openai import AsyncOpenAI

from markscheme.vocabulary import UnscoredReason
from markscheme_server import metrics
from markscheme_server.config import JudgeSettings
from markscheme_server.domain.deadline import Patience
from markscheme_server.domain.fingerprint import ChatMessage
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.judge import parsing, prompts
from markscheme_server.judge.base import Decision, Induction, InductionTask, JudgeFailure, Verification, VerifyTask
from markscheme_server.judge.gateway import Gateway, Spent, too_large
from markscheme_server.judge.retry import NotTheProtocol

_STEP_DOWN = {"auto": ("json_schema", "json_object", "text"), "json_schema": ("json_schema",),
              "json_object": ("json_object",), "text": ("text",)}
ASKS = 3
_REPLY_TOKENS_A_CRITERION = 20
LONG_REPLY = 4
"""How many times as long as usual a reply is feared to be, where a budget is to be kept."""
_SHOWN_AGAIN_CHARACTERS = 20_000
_SPACE = re.compile(r"\s+")

T = TypeVar("T")
Messages = list[dict[str, str]]


class OpenAIJudge:
    """Asks a model over the chat-completions protocol; see :class:`markscheme_server.judge.base.Judge`."""

    def __init__(self, settings: JudgeSettings, gateway: Gateway, *, secret: bytes) -> None:
        self._settings, self.gateway = settings, gateway
        self._marks = prompts.Marks(secret)
        self._forms = list(_STEP_DOWN[settings.structured])
        self._longest_reply = 0

    @property
    def name(self) -> str:
        return self.gateway.name

    @property
    def max_criteria(self) -> int | None:
        return self._settings.max_criteria

    @property
    def rubricator_identity(self) -> str:
        return self._identity(prompts.RUBRICATOR_VERSION, self._settings.rubricator_temperature)

    @property
    def verifier_identity(self) -> str:
        s = self._settings
        extras = "".join(f"+{name}" for name, on in (("evidence", s.evidence), ("nonce", s.nonce),
                                                     ("canary", s.canary)) if on)
        return self._identity(prompts.VERIFIER_VERSION + extras, s.verifier_temperature)

    @property
    def template(self) -> str:
        return f"rubricator/{prompts.RUBRICATOR_VERSION}"

    def _identity(self, template: str, temperature: float | None) -> str:
        s = self._settings
        return (f"openai/{s.model}@{s.revision or s.origin} template={template} "
                f"temperature={temperature} tail={s.max_response_tokens}")

    async def induce(self, task: InductionTask, patience: Patience) -> Induction:
        """4 to 12 criteria by contrast (ROPD, arXiv 2605.07396, section 3). Raises :class:`JudgeFailure`."""
        message = prompts.rubricator_prompt(task, self._marks, max_tokens=self._settings.max_response_tokens)
        question = _Question("rubricator", message, "rubric", prompts.RUBRIC_SCHEMA,
                             self._settings.rubricator_temperature, parsing.MAX_CRITERIA * 2)
        criteria, usage = await self._ask(question, patience,
                                          lambda reply: parsing.read_criteria(parsing.read_object(reply)))
        return Induction(criteria, usage)

    async def verify(self, task: VerifyTask, patience: Patience) -> Verification:
        """One call for all criteria. Raises :class:`JudgeFailure`."""
        s = self._settings
        shown = prompts.shown_criteria(task.criteria)
        address = [list(task.prompt), [c.text for c in task.criteria], list(task.responses)]
        nonce = self._marks.derive("nonce", address) if s.nonce else None
        canary = None
        if s.canary:
            word = self._marks.derive("canary", address)
            canary = (f"c{len(shown) + 1}", f"The answer contains the string {word}.")
        pool = task.verify == "group"
        schema = prompts.verdict_schema(pool=pool, evidence=s.evidence, nonce=nonce is not None)
        message = prompts.verifier_prompt(task, shown, schema, self._marks, max_tokens=s.max_response_tokens,
                                          nonce=nonce, canary=canary)
        ids = [i for i, _ in shown] + ([canary[0]] if canary else [])

        def read(reply: str) -> list[dict[str, Decision]]:
            found = parsing.read_object(reply)
            if nonce is not None and found.get("nonce") != nonce:
                raise parsing.ReplyError("the nonce is missing or wrong")
            if pool:
                return parsing.read_pool(found.get("answers"), len(task.responses), ids, evidence=s.evidence)
            return [parsing.read_verdicts(found.get("verdicts"), ids, evidence=s.evidence)]

        question = _Question("verifier", message, "verdicts", schema, s.verifier_temperature,
                             len(ids) * len(task.responses))
        decided, usage = await self._ask(question, patience, read)
        if canary is not None and any(decisions[canary[0]].met for decisions in decided):
            raise JudgeFailure(UnscoredReason.CANARY_FAILED, "the judge called a surely false criterion met", usage)
        if s.evidence:
            self._require_evidence(decided, task, usage)
        return Verification(tuple({c.id: decisions[f"c{i}"] for i, c in enumerate(task.criteria, 1)}
                                  for decisions in decided), usage)

    @property
    def teacher_model(self) -> str:
        return self._settings.model

    @property
    def teacher_identity(self) -> str:
        s = self._settings
        return (f"openai/{s.model}@{s.revision or s.origin} temperature={s.teacher_temperature} "
                f"tokens={s.teacher_max_tokens}")

    async def respond(self, prompt: tuple[ChatMessage, ...], patience: Patience) -> tuple[str, JudgeUsage]:
        """The prompt itself is asked, nothing around it. A response that is empty or was cut off is none."""
        s = self._settings
        body = {"model": s.model, "messages": list(prompt), "max_tokens": s.teacher_max_tokens}
        if s.teacher_temperature is not None:
            body["temperature"] = s.teacher_temperature
        spent = Spent()

        async def send(client: AsyncOpenAI) -> Any:
            try:
                return _checked(await client.post("/chat/completions", cast_to=object, body=body))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise NotTheProtocol("the body is not JSON") from error

        tokens = sum(len(m["content"]) for m in prompt) // prompts.CHARACTERS_PER_TOKEN + s.teacher_max_tokens
        bound = self._bound(prompt, s.teacher_max_tokens)
        completion, usage = await self._call(send, "teacher", tokens, bound, patience, spent)
        text = _reply_text(completion, usage)
        if _field(_choice(completion), "finish_reason") == "length":
            raise JudgeFailure(UnscoredReason.TOO_LARGE, "the teacher's response was cut off; raise its "
                               "teacher_max_tokens", usage)
        if not text.strip():
            raise JudgeFailure(UnscoredReason.PARSE_FAILURE, "the teacher's response is empty", usage)
        return text, usage

    async def aclose(self) -> None:
        await self.gateway.aclose()

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

    async def _ask(self, question: "_Question", patience: Patience,
                   read: Callable[[str], T]) -> tuple[T, JudgeUsage]:
        """Ask, once more with what was wrong, and once afresh; then give up with the reason."""
        plain: Messages = [{"role": "user", "content": question.message}]
        messages, usage = plain, JudgeUsage()
        for attempt in range(ASKS):
            try:
                reply, cost = await self._complete(messages, question, patience)
            except JudgeFailure as failure:
                failure.usage += usage
                raise
            usage += cost
            try:
                return read(reply), usage
            except parsing.ReplyError as error:
                if attempt + 1 == ASKS:
                    raise JudgeFailure(error.reason, f"the judge's reply was refused: {error}", usage) from error
                again = (f"That reply cannot be used: {error}. Reply again with one JSON object as asked, and "
                         "nothing else.")
                messages = plain if attempt else [
                    *plain, {"role": "assistant", "content": reply[:_SHOWN_AGAIN_CHARACTERS]},
                    {"role": "user", "content": again}]
        raise AssertionError("unreachable")

    async def _complete(self, messages: Messages, question: "_Question",
                        patience: Patience) -> tuple[str, JudgeUsage]:
        """One reply; where the endpoint refuses a form of structured output, in the next simpler one."""
        spent = Spent()

        async def send(client: AsyncOpenAI) -> Any:
            while True:
                form = self._forms[0]
                try:
                    # Not chat.completions.create: it walks all parameters and builds models of the reply, which
                    # takes longer than all that we do for a call; the reply is checked below either way.
                    return _checked(await client.post("/chat/completions", cast_to=object,
                                                      body=self._arguments(messages, form, question)))
                except (UnicodeDecodeError, json.JSONDecodeError) as error:
                    raise NotTheProtocol("the body is not JSON") from error
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    if too_large(error) or not self._step_down(form):
                        raise
                    spent.calls += 1

        tokens = sum(len(m["content"]) for m in messages) // prompts.CHARACTERS_PER_TOKEN + question.reply_tokens
        bound = self._bound(messages, max(LONG_REPLY * question.reply_tokens, 2 * self._longest_reply))
        completion, usage = await self._call(send, question.role, tokens, bound, patience, spent)
        return _reply_text(completion, usage), usage

    def _bound(self, messages: Sequence[ChatMessage], reply_tokens: int) -> float | None:
        """The most that a call is thought to cost, USD: a token is a byte at least. ``None``: there are no prices."""
        return self._settings.cost_usd(sum(len(m["content"].encode()) for m in messages), 0, reply_tokens)

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[Any]], role: str, tokens: int, bound: float | None,
                    patience: Patience, spent: Spent) -> tuple[Any, JudgeUsage]:
        """A completion by way of the gateway, and what it cost; a failure carries what it cost as well."""
        if patience.purse is not None and bound is not None:
            await patience.purse.hold(bound, patience.deadline)
        try:
            completion = await self.gateway.call(send, role=role, tokens=tokens, patience=patience, spent=spent)
        except JudgeFailure as failure:
            failure.usage = JudgeUsage(spent.calls, cost_usd=self._settings.cost_usd(0, 0, 0))
            raise
        usage = self._usage(completion, spent.calls)
        self._longest_reply = max(self._longest_reply, usage.completion_tokens if role != "teacher" else 0)
        self._count(role, usage)
        return completion, usage

    def _usage(self, completion: Any, calls: int) -> JudgeUsage:
        usage = _field(completion, "usage")
        prompt, reply = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
        cached = min(prompt, _tokens(_field(usage, "prompt_tokens_details"), "cached_tokens"))
        # An endpoint that states no tokens was not free: what it cost is not known.
        cost = self._settings.cost_usd(prompt, cached, reply) if isinstance(usage, dict) else None
        return JudgeUsage(calls, prompt, reply, cached, cost)

    def _count(self, role: str, usage: JudgeUsage) -> None:
        for kind, tokens in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            metrics.TOKENS.labels(judge=self.name, role=role, kind=kind).inc(tokens)
        if usage.cost_usd is not None:
            metrics.COST.labels(judge=self.name, role=role).inc(usage.cost_usd)

    def _step_down(self, form: str) -> bool:
        """Use the next simpler form from now on; false when there is none. Concurrent callers step once."""
        if self._forms[0] != form:
            return True
        if len(self._forms) == 1:
            return False
        self._forms.pop(0)
        return True

    def _arguments(self, messages: Messages, form: str, question: "_Question") -> dict[str, Any]:
        arguments: dict[str, Any] = {"model": self._settings.model, "messages": messages}
        if question.temperature is not None:
            arguments["temperature"] = question.temperature
        if form == "json_schema":
            arguments["response_format"] = {"type": "json_schema", "json_schema": {
                "name": question.form_name, "strict": True, "schema": question.schema}}
        elif form == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        return arguments

    @property
    def structured_output(self) -> str:
        """The form in use: what the endpoint has not refused so far."""
        return self._forms[0]


@dataclass(frozen=True, slots=True)
class _Question:
    """What one role asks: the message, and the form that the reply must have."""

    role: str
    message: str
    form_name: str
    schema: dict[str, Any]
    temperature: float | None
    criteria: int

    @property
    def reply_tokens(self) -> int:
        return self.criteria * _REPLY_TOKENS_A_CRITERION


def _field(value: Any, name: str) -> Any:
    """A field of a JSON object; ``None`` where there is none. Nothing about an endpoint's answer is taken on trust."""
    return value.get(name) if isinstance(value, dict) else None


def _tokens(usage: Any, name: str) -> int:
    """A count the endpoint stated, where it stated a sane one."""
    stated = _field(usage, name)
    sane = isinstance(stated, int) and not isinstance(stated, bool) and 0 <= stated < 2**31
    return stated if sane else 0


def _choice(completion: Any) -> Any:
    choices = _field(completion, "choices")
    return choices[0] if isinstance(choices, list) and choices else None


def _checked(completion: Any) -> Any:
    """The completion, if it is one."""
    if not isinstance(_field(_choice(completion), "message"), dict):
        raise NotTheProtocol("there is no choice with a message")
    return completion


def _reply_text(completion: Any, usage: JudgeUsage) -> str:
    choice = _choice(completion)
    message = _field(choice, "message")
    if _field(message, "refusal") or _field(choice, "finish_reason") == "content_filter":
        raise JudgeFailure(UnscoredReason.REFUSED, "the judge declined to answer", usage)
    content = _field(message, "content")
    return content if isinstance(content, str) else ""
