"""Prompts and responses as trainers hold them, in the form that the service takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from markscheme.messages import (
    MessageError,
    normal_message,
    plain_prompt,
    role_of,
    text_of,
    visible,
)
from markscheme.schema import Message
from markscheme.text import replace_invalid

Conversation = str | list[dict[str, Any]]
"""A text, or messages in their normal form; see `markscheme.messages.normal_message`."""


def normal_conversation(given: Any, name: str) -> Conversation:
    """Return a prompt or response of a trainer as a text or as messages in their normal form.

    Fields without a value are left out. Of a part that is not text only its type stays, so that
    no image travels between processes or to the service.

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
    for number, message in enumerate(given):
        location = f"{name}[{number}]"
        role_of(message, location)
        fields = normal_message(message, location)
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


def check_text_only(conversation: Conversation, name: str) -> None:
    """Raise `MessageError` if a message has parts that are not text."""
    for number, message in enumerate(() if isinstance(conversation, str) else conversation):
        text_of(message.get("content"), f"{name}[{number}].content")


def wire_prompt(prompt: Conversation) -> str | list[Message]:
    """Return a prompt in the service's form.

    Raises:
        MessageError: A message cannot be read, or holds parts that are not text.
        ValueError: The service does not take it.
    """
    if isinstance(prompt, str):
        return replace_invalid(prompt)
    return [Message.model_validate(visible(message)) for message in plain_prompt(prompt)]


def wire_response(response: Conversation) -> str | list[Message]:
    """Return a response in the service's form. Raises `ValueError` for what it does not take."""
    plain = text_if_plain(response)
    if isinstance(plain, str):
        return plain
    return [Message.model_validate(visible(message)) for message in plain]


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


def _without_media(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    kind = part.get("type") if isinstance(part, Mapping) else None
    return {"type": kind if isinstance(kind, str) else "unknown"}
