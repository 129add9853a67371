"""Probe which form of structured output an endpoint enforces, with one or two small questions.

Only ``doctor`` and ``serve --probe`` do this. Some servers accept a schema and ignore it, and their
answers to real questions do not show it. The probe therefore asks about the weather, under a schema
that no sentence about the weather satisfies.
"""

import secrets
from dataclasses import dataclass
from typing import Any, Literal

import openai

from markscheme_server.domain.call_context import CallContext
from markscheme_server.judge.capabilities import StructuredForm
from markscheme_server.judge.endpoint import Endpoint
from markscheme_server.judge.failures import failure_of
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.judge.refusals import Refusal, RefusalKind, Refused
from markscheme_server.judge.replies import ReplyError, decode, read_object
from markscheme_server.judge.reply_cap import UnusableReply
from markscheme_server.judge.retry import ProtocolError

_QUESTION = (
    "Say in one short sentence of plain words, not json, what the weather is like in autumn."
)


@dataclass(frozen=True, slots=True)
class SchemaSupport:
    """How an endpoint treats a schema, and the strictest form that it honours."""

    json_schema: Literal["enforced", "ignored", "refused"]
    form: StructuredForm

    @property
    def summary(self) -> str:
        """The line that ``doctor`` prints."""
        treatment = "accepted but ignored" if self.json_schema == "ignored" else self.json_schema
        in_use = "" if self.form == "json_schema" else f"; 'auto' asks for {self.form}"
        return f"json_schema: {treatment}{in_use}"


async def probe_schema(
    judge: OpenAIJudge, endpoint: Endpoint, context: CallContext
) -> SchemaSupport:
    """Ask under a schema, and in JSON mode where the schema is not enforced.

    Raises `JudgeFailure`.
    """
    # Drawn anew, so that no model can have learnt it or say it by chance.
    word = secrets.token_hex(4)
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["word"],
        "properties": {"word": {"type": "string", "enum": [word]}},
    }
    strict = await _ask(judge, endpoint, schema, "json_schema", context)
    if isinstance(strict, str) and _object(strict).get("word") == word:
        return SchemaSupport("enforced", "json_schema")
    support: Literal["ignored", "refused"] = "ignored" if isinstance(strict, str) else "refused"
    loose = await _ask(judge, endpoint, schema, "json_object", context)
    holds = isinstance(loose, str) and bool(_object(loose))
    return SchemaSupport(support, "json_object" if holds else "text")


async def listed_models(endpoint: Endpoint) -> frozenset[str]:
    """Return the models that the endpoint lists; empty where it lists none."""
    try:
        models = decode((await endpoint.transport.request("GET", "/models")).content)
    except (openai.OpenAIError, ProtocolError, UnusableReply, TimeoutError):
        return frozenset()
    data = models.get("data") if isinstance(models, dict) else None
    return (
        frozenset(m["id"] for m in data if isinstance(m, dict) and isinstance(m.get("id"), str))
        if isinstance(data, list)
        else frozenset()
    )


async def _ask(
    judge: OpenAIJudge,
    endpoint: Endpoint,
    schema: dict[str, Any],
    form: StructuredForm,
    context: CallContext,
) -> str | Refusal:
    """Return the reply's text or a refusal of the form; raise `JudgeFailure` otherwise."""
    reply = await judge.probe(_QUESTION, schema, form, endpoint, context)
    if isinstance(reply, Refusal) and reply.kind not in (
        RefusalKind.FORM,
        RefusalKind.UNEXPLAINED,
        RefusalKind.GENERATION,
    ):
        raise failure_of(Refused(reply))
    return reply


def _object(text: str) -> dict[str, Any]:
    try:
        found = read_object(text)
    except ReplyError:
        return {}
    return found if isinstance(found, dict) else {}
