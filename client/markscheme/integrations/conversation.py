"""Prompts and responses as trainers hold them, in the form that the service takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from markscheme.messages import (
    MessageError,
    normal_message,
    role_of,
    separate_results,
    unsupported_parts,
    visible_message,
)
from markscheme.schema import Message
from markscheme.text import replace_invalid

Conversation = str | list[dict[str, Any]]
"""A text, or messages in their normal form; see `markscheme.messages.normal_message`."""


def normal_conversation(given: Any, name: str) -> Conversation:
    """Return a prompt or response of a trainer as a text or as messages in their normal form.

    Fields without a value are left out. Of a part that is not text only its type stays: no image
    travels between processes or to the service, which leaves unscored what has one.

    Args:
        given: A text, or messages with texts, parts, tool calls and results.
        name: What it is, for errors.

    Raises:
        MessageError: It is neither, or holds a message that cannot be read.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, Sequence):
        raise MessageError(f"{name}: must be a text or a list of messages")
    normal = []
    for number, message in enumerate(separate_results(list(given))):
        location = f"{name}[{number}]"
        role_of(message, location)
        fields = dict(normal_message(message, location))
        content = fields["content"]
        # Chat templates and TRL read the content of every message, also where there is none.
        fields["content"] = (
            [_without_media(part) for part in content]
            if isinstance(content, list)
            else ""
            if content is None
            else content
        )
        normal.append({field: value for field, value in fields.items() if value is not None})
    return normal


def wire_prompt(prompt: Conversation) -> str | list[Message]:
    """Return a prompt in the service's form. Raises `ValueError` for what it does not take."""
    if isinstance(prompt, str):
        return replace_invalid(prompt)
    return _wire_messages(prompt, "prompt")


def wire_response(response: Conversation, name: str) -> str | list[Message]:
    """Return a response in the service's form. Raises `ValueError` for what it does not take."""
    plain = text_if_plain(response)
    if isinstance(plain, str):
        return plain
    return _wire_messages(plain, name)


def text_if_plain(response: Conversation) -> Conversation:
    """Return the text of a response that is one plain message of the assistant, else the response.

    No message is an empty text.
    """
    if isinstance(response, str):
        return response
    if not response:
        return ""
    if len(response) == 1 and set(response[0]) <= {"role", "content"}:
        content = response[0].get("content", "")
        if response[0]["role"] == "assistant" and isinstance(content, str):
            return content
    return response


def _wire_messages(messages: Sequence[Mapping[str, Any]], name: str) -> list[Message]:
    wire = []
    for number, message in enumerate(messages):
        try:
            wire.append(Message.model_validate(visible_message(message)))
        except ValidationError as error:
            raise MessageError(f"{name}[{number}].{first_error(error)}") from error
    return wire


def first_error(error: ValidationError) -> str:
    """Return the first fault and its place, without the value: it may be a rollout."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _without_media(part: Any) -> dict[str, Any]:
    """Return a part of normal content: a text as it is, of anything else a type that is no text."""
    if not unsupported_parts({"content": [part]}):
        return {"type": "text", "text": part["text"]}
    kind = part.get("type") if isinstance(part, Mapping) else None
    bare = {"type": kind}
    # Alone, the type of a text would be read as an empty text.
    is_kept = isinstance(kind, str) and kind and unsupported_parts({"content": [bare]})
    return bare if is_kept else {"type": "unknown"}
