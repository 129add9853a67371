"""A trajectory as the self-teacher reads it: one readable text, shortened where it must be.

What the service's judges read of a trajectory is rendered by the service; this text is for the
student's own model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markscheme.thinking import judged_text
from markscheme.vocabulary import Thinking

MIN_CHARACTERS = 200
"""Length down to which tool calls and results are shortened before anything else is left out."""
LEFT_OUT = "[… left out …]"


def readable(
    messages: Sequence[Mapping[str, Any]],
    max_characters: int | None = None,
    *,
    thinking: Thinking = "auto",
) -> str:
    """Return a trajectory as text, each message and tool call under a line that says whose it is.

    A lone message is its text.

    Args:
        messages: The trajectory, in its normal form. `reasoning_content` is left out.
        max_characters: Maximum length of each tool call's arguments and of each result, of which
            beginning and end are kept; `None`: all.
        thinking: Which thoughts of the assistant are left out, as in `thinking.judged_text`.
    """
    if len(messages) == 1 and not messages[0].get("tool_calls"):
        return _said(messages[0], thinking)
    blocks = []
    for message in messages:
        role, content = message["role"], _said(message, thinking)
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
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int,
    count: Callable[[str], int],
    *,
    thinking: Thinking = "auto",
) -> str:
    """Return the trajectory as text with calls and results as long as `max_tokens` allows.

    With the shortest ones it may still be longer.

    Args:
        messages: The trajectory.
        max_tokens: Tokens to fit into.
        count: Counts the tokens of a text.
        thinking: See `readable`.
    """
    text = readable(messages, thinking=thinking)
    limit = len(text)
    while count(text) > max_tokens and limit > MIN_CHARACTERS:
        limit = max(limit // 2, MIN_CHARACTERS)
        text = readable(messages, limit, thinking=thinking)
    return text


def _said(message: Mapping[str, Any], thinking: Thinking) -> str:
    text = _text(message)
    if message["role"] != "assistant":
        return text
    # A parser that took the thought out has left none at the beginning of the content.
    return judged_text(text, "auto" if message.get("reasoning_content") else thinking)


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
