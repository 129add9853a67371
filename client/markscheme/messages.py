"""Convert the chat messages of data sets and chat templates into the service's plain messages."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from markscheme.vocabulary import Role

ROLES: tuple[Role, ...] = get_args(Role)
_OTHER_NAMES: dict[str, Role] = {"developer": "system", "function": "tool"}
"""Names that newer and older APIs use for our roles."""
_TEXT_PARTS = ("text", "input_text", "output_text")


class MessageError(ValueError):
    """A message that has no plain-text form; the message says where."""


def text_of(content: object, location: str = "content") -> str:
    """Return the text of a message's content: a string, text parts, or nothing.

    Raises `MessageError` for a part that is not text, such as an image: it is never dropped
    silently.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return _part(content, location)
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return "".join(_part(part, f"{location}[{number}]") for number, part in enumerate(content))
    raise MessageError(f"{location}: must be a text or a list of text parts, not {_kind(content)}")


def role_of(message: object, location: str) -> str:
    """Return the role that a message states. Raises `MessageError`."""
    if not isinstance(message, Mapping):
        raise MessageError(
            f"{location}: must be a message with role and content, not {_kind(message)}"
        )
    role = message.get("role")
    if not isinstance(role, str):
        raise MessageError(
            f"{location}.role: "
            + ("is missing" if role is None else f"must be a text, not {_kind(role)}")
        )
    return role


def plain_message(message: object, location: str) -> dict[str, str]:
    """Return role and text of a message, without tool calls and other fields.

    Raises `MessageError`.
    """
    role_name = role_of(message, location)
    assert isinstance(message, Mapping)
    role = _OTHER_NAMES.get(role_name, role_name)
    if role not in ROLES:
        raise MessageError(
            f"{location}.role: {role_name!r} is none of {', '.join([*ROLES, *_OTHER_NAMES])}"
        )
    return {"role": role, "content": text_of(message.get("content"), f"{location}.content")}


def plain_prompt(prompt: Any, location: str = "prompt") -> Any:
    """Return a prompt of a file with plain messages; anything but a list of messages is unchanged.

    Empty columns are ignored. What would be lost is refused: tool calls, names and the like, and a
    message without content. Raises `MessageError`.
    """
    if not isinstance(prompt, list):
        return prompt
    plain = []
    for number, message in enumerate(prompt):
        here = f"{location}[{number}]"
        plain.append(plain_message(message, here))
        for name, value in message.items():
            if name not in ("role", "content") and not _empty(value):
                raise MessageError(
                    f"{here}.{name}: a message of a prompt has role and content only; "
                    f"leave {name} out, or say it in the content"
                )
        if message.get("content") is None:
            raise MessageError(f"{here}.content: is missing")
    return plain


def _part(part: object, location: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise MessageError(f"{location}: must be a part with type and text, not {_kind(part)}")
    # A part that is not text must raise: dropping an image would change what is judged.
    kind, text = part.get("type"), part.get("text")
    other = [
        str(name)
        for name, value in part.items()
        if name not in ("type", "text") and not _empty(value)
    ]
    if kind is None and (other or text is None):
        raise MessageError(
            f"{location}: a part without a type ({', '.join(other) or 'empty'}); only text can be "
            "used"
        )
    if kind is not None and kind not in _TEXT_PARTS:
        raise MessageError(f"{location}: a part of type {kind!r}; only text can be used")
    if not isinstance(text, str):
        raise MessageError(
            f"{location}.text: "
            + ("is missing" if text is None else f"must be a text, not {_kind(text)}")
        )
    return text


def _empty(value: object) -> bool:
    """Return whether a column holds nothing: tables pad rows with empty values."""
    if isinstance(value, Mapping):
        return all(_empty(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(_empty(each) for each in value)
    return value is None or value is False or value == ""


def _kind(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), f"a {type(value).__name__}")
