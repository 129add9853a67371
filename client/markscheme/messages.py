"""Normalise the chat messages of data sets, chat templates and trainers.

Every program writes messages a little differently. `normal_message` returns the one form that the
service stores, judges and hashes: role, content, tool calls, and what a tool's result refers to.
Standard library only, so that the service's domain may import it.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import Any, get_args

from markscheme.text import check_valid, replace_invalid
from markscheme.vocabulary import Role

ROLES: tuple[Role, ...] = get_args(Role)
MAX_DEPTH = 32
"""Levels of a tool call's arguments that are kept as an object; deeper ones become a string."""
_SAME_ROLES: dict[str, Role] = {
    "developer": "system",
    "function": "tool",
    "ipython": "tool",  # Llama 3
    "observation": "tool",  # GLM
    "environment": "tool",  # InternLM 2, OLMo 3
    "tool_response": "tool",
    "function_response": "tool",
}
"""Names that newer and older APIs, chat templates and data sets use for a role."""
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THINKING_PARTS = ("thinking", "redacted_thinking", "reasoning")
_THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_TOOL_ROLES = ("tool", *(name for name, role in _SAME_ROLES.items() if role == "tool"))
_MEDIA = frozenset({"audio", "image", "images", "video", "videos", "input_audio", "image_url"})
"""Fields outside the content that hold what no text says."""


class MessageError(ValueError):
    """A message that cannot be read; the message says where."""


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


def same_role(role: str) -> str:
    """Return the role that a synonym stands for: `developer` is system, `ipython` is tool."""
    return _SAME_ROLES.get(role, role)


def plain_prompt(prompt: Any, location: str = "prompt") -> Any:
    """Return a prompt of a file with normal messages; anything but a list is unchanged.

    Raises `MessageError` for a message that cannot be read, a part that is not text, and a message
    without content that calls no tool.
    """
    if not isinstance(prompt, list):
        return prompt
    normal = []
    for number, message in enumerate(separate_results(prompt)):
        here = f"{location}[{number}]"
        role = _known_role(message, here)
        content, _ = _without_tool_uses(message.get("content"))
        text = text_of(content, f"{here}.content")
        found = {
            name: value
            for name, value in normal_message(message, here).items()
            if value is not None and name != "content"
        }
        if content is None and "tool_calls" not in found:
            raise MessageError(f"{here}.content: is missing")
        normal.append(found | {"role": same_role(role), "content": text})
    return normal


def separate_results(messages: Any) -> Any:
    """Return messages with each `tool_result` part, as Anthropic writes them, as a tool's message.

    What stands beside the results stays a message of its role; anything but a list is unchanged.
    """
    if not isinstance(messages, list) or not any(map(_has_results, messages)):
        return messages
    found: list[Any] = []
    for message in messages:
        if not _has_results(message):
            found.append(message)
            continue
        # In order: what stands between two results stays between them.
        for is_result, parts in groupby(message["content"], _is_result):
            if is_result:
                found += (
                    {
                        "role": "tool",
                        "content": part.get("content") or "",
                        "tool_call_id": part.get("tool_use_id"),
                    }
                    for part in parts
                )
            else:
                found.append({**message, "content": list(parts)})
    return found


class NormalMessage(dict[str, Any]):
    """A message in its normal form, which is not normalised again."""


def normal_message(message: Mapping[str, Any], location: str = "") -> NormalMessage:
    """Return a message in its normal form; other fields are left out.

    Text parts become one string, thinking of any spelling `reasoning_content`, a `function_call`
    and Anthropic's `tool_use` parts tool calls, empty values null, and a template's name for a
    tool's result the role `tool`. `separate_results` comes
    before: a `tool_result` part is a message of its own. Content with parts that are not text stays
    a list, so that `unsupported_parts` names them. What has the wrong type is left to the caller's
    validation.

    Raises `MessageError` for tool calls that cannot be read.
    """
    if isinstance(message, NormalMessage):
        return message
    content = message.get("content")
    if message.get("role") in _TOOL_ROLES and not _is_content(content):
        content = _as_json(content)  # what a tool returned, which was never made a text
    content, used = _without_tool_uses(content)
    content, thoughts = _normal_content(content)
    refusal = message.get("refusal")
    if content in (None, "") and isinstance(refusal, str) and refusal:
        content = refusal
    media = [name for name in message if name in _MEDIA and not _empty(message[name])]
    if media:
        # The bytes are not kept: the part only says that there is something no text says.
        parts = _as_parts(content)
        content = [*parts, *({"type": name} for name in media)]
    thinking = next((message[name] for name in _THINKING_FIELDS if message.get(name)), None)
    calls = _normal_calls(message.get("tool_calls"), f"{location}.tool_calls".lstrip("."))
    # A program that writes both says the same call twice.
    calls = calls or _normal_calls(used, f"{location}.content".lstrip("."))
    if not calls and not _empty(message.get("function_call")):
        where = f"{location}.function_call".lstrip(".")
        calls = [_normal_call(message["function_call"], where)]
    return NormalMessage(
        role=_role_in_api(message.get("role")),
        content=content,
        tool_calls=calls or None,
        tool_call_id=_identifier(message.get("tool_call_id")),
        name=message.get("name") or None,
        reasoning_content=thinking if isinstance(thinking, str) else "\n".join(thoughts) or None,
    )


def unsupported_parts(message: Mapping[str, Any]) -> list[str]:
    """Return the types of a normal message's parts that are not text."""
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [_type_of(part) for part in content if _text_of_part(part) is None]


def visible_message(message: Mapping[str, Any]) -> NormalMessage:
    """Return a message in its normal form with NUL and lone surrogates replaced by U+FFFD."""
    # Normal first: characters that a tool's arguments escape appear when these are parsed.
    normal = normal_message(message)
    return normal if _is_valid(normal) else NormalMessage(_map_strings(normal, replace_invalid))


def check_characters(value: Any) -> None:
    """Raise `ValueError` if a string in the value holds NUL or half of a surrogate pair."""
    if not _is_valid(value):
        _map_strings(value, check_valid)


def _is_valid(value: Any) -> bool:
    """Return whether no string needs a change, where that is cheap to see: usually none does."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return False
    # JSON escapes NUL, whereas halves of surrogate pairs stay as they are.
    return "\\u0000" not in text and replace_invalid(text) is text


def _map_strings(value: Any, change: Any) -> Any:
    if value is None or isinstance(value, str):
        return value and change(value)
    if isinstance(value, dict):
        return {_map_strings(k, change): _map_strings(each, change) for k, each in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(each, change) for each in value]
    return value


def _known_role(message: object, location: str) -> str:
    role = role_of(message, location)
    if same_role(role) not in ROLES:
        raise MessageError(f"{location}.role: {role!r:.60} is none of {', '.join(ROLES)}")
    return role


def _role_in_api(role: Any) -> Any:
    """Return a role as the API names it; what is none of ours is left to the validation."""
    return same_role(role) if isinstance(role, str) and role not in ROLES else role


def _normal_content(content: Any) -> tuple[Any, list[str]]:
    """Return the content, as one string where all its parts are text, and its thoughts."""
    if content is None or isinstance(content, str):
        return content, []
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        return content, []
    thoughts: list[str] = []
    parts: list[Any] = []
    for part in content:
        thought = _thought_of_part(part)
        if thought is not None:
            thoughts.append(thought)
        elif not _empty(part) or part == "":
            parts.append(part)
    texts = [_text_of_part(part) for part in parts]
    if all(text is not None for text in texts):
        return "".join(text for text in texts if text is not None), thoughts
    return [
        {"type": "text", "text": text} if text is not None else part
        for part, text in zip(parts, texts, strict=True)
    ], thoughts


def _has_results(message: object) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    return isinstance(content, list) and any(map(_is_result, content))


def _is_result(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "tool_result"


def _without_tool_uses(content: Any) -> tuple[Any, list[Any]]:
    """Return the content without its `tool_use` parts, null if nothing is left, and these."""
    if not isinstance(content, list | tuple):
        return content, []
    used = [p for p in content if isinstance(p, Mapping) and p.get("type") == "tool_use"]
    if not used:
        return content, []
    return [part for part in content if part not in used] or None, used


def _as_parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _text_of_part(part: object) -> str | None:
    """Return the text of a content part, or `None` for a part that is not text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    # Tables pad a part with the fields of other kinds; only those with a value count.
    only_text = all(_empty(value) for name, value in part.items() if name not in ("type", "text"))
    if kind is None:
        text = part.get("text") if only_text else None
    elif kind == "refusal":
        text = part.get("refusal")
    elif kind in _TEXT_PARTS:
        text = part.get("text")
        if text is None and only_text:
            text = ""
    else:
        return None
    return text if isinstance(text, str) else None


def _thought_of_part(part: object) -> str | None:
    """Return the text of a part that holds thinking, or `None` for another part."""
    if not isinstance(part, Mapping) or part.get("type") not in _THINKING_PARTS:
        return None
    found = part.get("thinking") or part.get("text") or part.get("reasoning") or ""
    if isinstance(found, list):  # as Mistral writes it: text parts inside a thinking part
        found = "".join(_text_of_part(each) or "" for each in found)
    return found if isinstance(found, str) else ""


def _type_of(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) and kind else "without a type"


def _normal_calls(calls: Any, location: str) -> list[dict[str, Any]]:
    # Tables often hold the calls as JSON.
    if isinstance(calls, str):
        if calls.strip() in ("", "null"):
            return []
        parsed = _parsed(calls)
        calls = [parsed] if isinstance(parsed, dict) else calls if parsed is None else parsed
    if _empty(calls):
        return []
    if not isinstance(calls, list | tuple):
        raise MessageError(f"{location}: must be a list of tool calls")
    return [
        _normal_call(call, f"{location}[{number}]")
        for number, call in enumerate(calls)
        if not _empty(call)
    ]


def _normal_call(call: Any, location: str) -> dict[str, Any]:
    """Return a tool call as `{"id", "type", "function": {"name", "arguments"}}`."""
    if isinstance(call, str):  # verifiers stores each call as JSON
        call = _parsed(call)
    if not isinstance(call, Mapping):
        raise MessageError(f"{location}: must be a tool call with function.name and arguments")
    # OpenAI's newest custom tools, and calls without the outer object, as Qwen and LangChain write.
    inner = next(
        (call[name] for name in ("function", "custom") if isinstance(call.get(name), Mapping)), call
    )
    arguments = next(
        (inner[name] for name in ("arguments", "args", "input", "parameters") if name in inner),
        None,
    )
    name, identifier = inner.get("name"), _identifier(call.get("id"))
    normal: dict[str, Any] = {
        "type": "function",
        "function": {
            "name": name if isinstance(name, str) else "",
            "arguments": _normal_arguments(arguments),
        },
    }
    return normal if identifier is None else normal | {"id": identifier}


def _normal_arguments(arguments: Any) -> dict[str, Any] | str:
    """Return arguments as an object where they are one, else as a string: models write both."""
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        parsed = _parsed(arguments)
        return parsed if isinstance(parsed, dict) and _is_plain(parsed) else arguments
    if isinstance(arguments, Mapping) and _is_plain(arguments):
        return dict(arguments)
    return _as_json(arguments)


def _is_content(content: Any) -> bool:
    """Return whether it is what the protocol has as content: a text, parts of a type, or null."""
    if isinstance(content, list | tuple):
        return all(isinstance(part, str) or _has_type(part) for part in content if part is not None)
    return content is None or isinstance(content, str) or _has_type(content)


def _has_type(part: Any) -> bool:
    return isinstance(part, Mapping) and ("type" in part or "text" in part)


def _identifier(value: Any) -> Any:
    """Return an id as a string; some programs count their calls."""
    return str(value) if isinstance(value, int) else value or None


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        return "(a value that JSON cannot say)"


def _parsed(text: str) -> Any:
    """Return what JSON text stands for, or `None` where it is not JSON or says something twice."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _is_plain(value: Any, depth: int = 1) -> bool:
    """Return whether JSON can say the value, with finite numbers and no deep nesting."""
    if isinstance(value, Mapping):
        return depth <= MAX_DEPTH and all(
            isinstance(name, str) and _is_plain(each, depth + 1) for name, each in value.items()
        )
    if isinstance(value, list | tuple):
        return depth <= MAX_DEPTH and all(_is_plain(each, depth + 1) for each in value)
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, int):
        return abs(value) <= 2**63
    return value is None or isinstance(value, str)


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
            f"{location}: a part without a type ({', '.join(other)[:200] or 'empty'}); "
            "only text can be used"
        )
    if kind is not None and kind not in _TEXT_PARTS:
        raise MessageError(f"{location}: a part of type {kind!r:.60}; only text can be used")
    if not isinstance(text, str):
        raise MessageError(
            f"{location}.text: "
            + ("is missing" if text is None else f"must be a text, not {_kind(text)}")
        )
    return text


def _empty(value: object, depth: int = 1) -> bool:
    """Return whether a column holds nothing: tables pad rows with empty values, not deep ones."""
    if value is None or isinstance(value, str):
        return not value
    if isinstance(value, Mapping | list | tuple):
        within = value.values() if isinstance(value, Mapping) else value
        return depth <= MAX_DEPTH and all(_empty(each, depth + 1) for each in within)
    return value is False


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
