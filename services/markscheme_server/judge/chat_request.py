"""A chat completion request, and how to send it in the form that an endpoint accepts."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import openai

from markscheme_server.domain.hashing import ChatMessage, message_text
from markscheme_server.judge import replies
from markscheme_server.judge.capabilities import Capabilities, StructuredForm
from markscheme_server.judge.endpoint import Endpoint
from markscheme_server.judge.refusal_parsing import of_completion, of_response
from markscheme_server.judge.refusals import Refusal, RefusalKind, Refused
from markscheme_server.judge.retry import ProtocolError
from markscheme_server.judge.spend import LONGEST_REPLY_TOKENS, Spending
from markscheme_server.judge.transport import Reply
from markscheme_server.judge_settings import JudgeSettings, Role

MIN_REPLY_TOKENS = 64
"""Below this a reply is not worth asking for."""

Messages = list[ChatMessage]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion to ask for, whatever endpoint it goes to.

    ``cap`` is the longest reply in tokens; ``fixed``: the operator set it. Without a ``schema`` the
    reply is plain text.
    """

    role: Role
    messages: Messages
    cap: int
    fixed: bool
    schema: dict[str, Any] | None = None
    schema_name: str = ""
    forms: tuple[StructuredForm, ...] | None = None
    """Only these forms of structured output, whatever the endpoint is known to accept."""

    @property
    def material(self) -> str:
        """All text of the request."""
        return "\n".join(message_text(message) for message in self.messages)


class ChatSender:
    """Sends one request as an endpoint accepts it, and learns from its refusals."""

    def __init__(self, settings: JudgeSettings, request: ChatRequest, spending: Spending) -> None:
        self._settings, self._request, self._spending = settings, request, spending
        self.length: int | None = None
        """The reply length that the last request asked for, in tokens; ``None``: none."""
        self._prompt_bytes = sum(
            len(message_text(message).encode()) for message in request.messages
        )

    async def reserve_budget(self, endpoints: Sequence[Endpoint]) -> None:
        """Reserve the budget of one request, whichever of the endpoints it goes to."""
        # The endpoint is chosen only after the wait, so the most expensive one counts.
        await self._spending.reserve_budget(*self.max_tokens(endpoints))

    def max_tokens(self, endpoints: Sequence[Endpoint]) -> tuple[int, int]:
        """Return the most tokens that the prompt and the reply can have at any of the endpoints."""
        longest = max(
            _max_reply_tokens(self._length(self._request, endpoint.capabilities))
            for endpoint in endpoints
        )
        return self._prompt_bytes, longest

    async def send(self, endpoint: Endpoint) -> Any:
        """Return the completion.

        Raises `Refused`, `ProtocolError` and the SDK's connection errors.
        """
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
                    self._simpler_form(known, form)
                    if refusal.kind in (RefusalKind.FORM, RefusalKind.UNEXPLAINED)
                    else None
                )
                if simpler is not None:
                    # An unexplained refusal was about the form only if a simpler form succeeds.
                    unexplained = unexplained or (
                        refused if refusal.kind is RefusalKind.UNEXPLAINED else None
                    )
                    form = simpler
                elif (adapted := self._adapt(refusal, request, known)) is not None:
                    request = adapted
                else:
                    raise unexplained or refused from None
                continue
            # Remember what was accepted, unless the caller asked for certain forms only.
            if form is not None and (form != start or form != known.form) and request.forms is None:
                known.use_form(form, now)
            return completion

    def _first_form(self, known: Capabilities, now: float) -> StructuredForm | None:
        if self._request.schema is None:
            return None
        return self._request.forms[0] if self._request.forms else known.choose_form(now)

    def _simpler_form(
        self, known: Capabilities, form: StructuredForm | None
    ) -> StructuredForm | None:
        return (
            known.simpler_form(form) if form is not None and self._request.forms is None else None
        )

    async def _post(self, endpoint: Endpoint, body: dict[str, Any]) -> Any:
        sent = [name for name in body if name not in ("model", "messages", "response_format")]
        self.length = body.get(endpoint.capabilities.length_name)
        # Reserved again, for the length that this endpoint is really asked for.
        max_tokens = _max_reply_tokens(self.length)
        await self._spending.reserve_budget(self._prompt_bytes, max_tokens)
        cost = self._spending.begin(self._prompt_bytes, max_tokens)
        try:
            reply = await endpoint.post(body)
        except openai.APIConnectionError as error:
            cost.on_disconnect(error)
            raise
        if not 200 <= reply.status < 300:
            content = _error_body(reply)
            refusal = of_response(reply.status, content, sent, self._request.material)
            cost.on_refusal(refusal, content)
            raise Refused(refusal, reply.headers)
        # If this raises, the request stays recorded at its maximum cost.
        completion = replies.decode(reply.content)
        embedded = of_completion(completion, sent, self._request.material)
        if embedded is not None:
            cost.on_refusal(embedded, completion)
            raise Refused(embedded, reply.headers)
        cost.on_answer(completion)
        replies.check_protocol(completion)
        return completion

    def _body(
        self, request: ChatRequest, form: StructuredForm | None, known: Capabilities
    ) -> dict[str, Any]:
        s = self._settings
        body: dict[str, Any] = {"model": s.model, "messages": request.messages}
        temperature = s.temperature_of(request.role)
        if temperature is not None and (
            "temperature" not in known.omitted or s.sets_temperature(request.role)
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
                    "name": request.schema_name,
                    "strict": True,
                    "schema": request.schema,
                },
            }
        elif form == "json_object":
            body["response_format"] = {"type": "json_object"}
        # Last, so that the operator's own fields win.
        return body | s.extra_body

    @staticmethod
    def _length(request: ChatRequest, known: Capabilities) -> int | None:
        """Return the reply length to ask for, in tokens; ``None``: the endpoint accepts none."""
        if request.fixed:
            return request.cap
        if "max_tokens" in known.omitted:
            return None
        return (
            request.cap
            if known.max_reply_tokens is None
            else min(request.cap, known.max_reply_tokens)
        )

    def _adapt(
        self, refusal: Refusal, request: ChatRequest, known: Capabilities
    ) -> ChatRequest | None:
        """Return the request to send after a refusal; ``None``: the refusal is final."""
        if refusal.kind is RefusalKind.TOO_LARGE:
            left = refusal.reply_tokens
            if left is None or request.fixed or not MIN_REPLY_TOKENS <= left < request.cap:
                return None
            return replace(request, cap=left)
        if refusal.kind is not RefusalKind.PARAMETER:
            return None
        if refusal.parameter == "temperature":
            # What the operator set is never dropped: the identity of the verdicts states it.
            if "temperature" in known.omitted or self._settings.sets_temperature(request.role):
                return None
            known.omit("temperature")
            return request
        if refusal.parameter in ("max_tokens", "max_completion_tokens"):
            return self._adapt_length(refusal, request, known)
        return None

    @staticmethod
    def _adapt_length(
        refusal: Refusal, request: ChatRequest, known: Capabilities
    ) -> ChatRequest | None:
        # In this order: a smaller length, the other name, and no length at all.
        sent = min(request.cap, known.max_reply_tokens or request.cap)
        if refusal.limit is not None and not request.fixed and refusal.limit < sent:
            known.cap_length(refusal.limit)
        elif refusal.parameter == "max_tokens" and known.length_name == "max_tokens":
            known.rename_length()
        elif not request.fixed and "max_tokens" not in known.omitted:
            known.omit("max_tokens")
        else:
            return None
        return request


def _error_body(reply: Reply) -> object:
    """Return an error's body as JSON, or as text where it is not JSON."""
    try:
        return replies.decode(reply.content)
    except ProtocolError:
        return reply.content.decode(errors="replace")


def _max_reply_tokens(length: int | None) -> int:
    """Return the longest reply, in tokens, that can follow a request for ``length``."""
    return LONGEST_REPLY_TOKENS if length is None else length
