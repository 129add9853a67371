"""A trajectory as the self-teacher reads it: one readable text, shortened where it must be.

What the service's judges read of a trajectory is rendered by the service; this text is for the
student's own model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MIN_CHARACTERS = 200
"""Length down to which tool calls and results are shortened before anything else is left out."""
LEFT_OUT = "[… left out …]"


def readable(messages: Sequence[Mapping[str, Any]], max_characters: int | None = None) -> str:
    """Return a trajectory as text, each message and tool call under a line that says whose it is.

    A lone message is its text.

    Args:
        messages: The trajectory, in its normal form. Thinking is left out.
        max_characters: Maximum length of each tool call's arguments and of each result, of which
            beginning and end are kept; `None`: all.
    """
    if len(messages) == 1 and not messages[0].get("tool_calls"):
        return _text(messages[0])
    blocks = []
    for message in messages:
        role, content = message["role"], _text(message)
        if role in ("tool", "function"):
            name = f" of {message['name']}" if message.get("name") else ""
            blocks.append(f"[Result{name}]\n{_shortened(content, max_characters)}")
            continue
        if content:
            blocks.append(f"[{role.capitalize()}]\n{content}")
        for call in message.get("tool_calls") or ():
            function = call["function"]
            arguments = function["arguments"]
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            blocks.append(f"[Call of {function['name']}]\n{_shortened(arguments, max_characters)}")
    return "\n\n".join(blocks)


def fitting(
    messages: Sequence[Mapping[str, Any]], max_tokens: int, count: Callable[[str], int]
) -> str:
    """Return the trajectory as text with calls and results as long as `max_tokens` allows.

    With the shortest ones it may still be longer.

    Args:
        messages: The trajectory.
        max_tokens: Tokens to fit into.
        count: Counts the tokens of a text.
    """
    text = readable(messages)
    limit = len(text)
    while count(text) > max_tokens and limit > MIN_CHARACTERS:
        limit = max(limit // 2, MIN_CHARACTERS)
        text = readable(messages, limit)
    return text


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or f"[{part.get('type')}]" for part in content)


def _shortened(text: str, max_characters: int | None) -> str:
    if max_characters is None or len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}\n{LEFT_OUT}\n{text[len(text) - half :]}"
