"""Read one choice of a completion: its finish reason in one spelling, its text, its refusal.

Providers spell a finish reason as OpenAI does, as their own enum does, or as an object, and put
text into a string or into typed parts.
"""

import re
from collections.abc import Mapping
from typing import Any

MAX_WORD = 100
"""Characters of a finish reason that are read."""
_TEXT_PARTS = frozenset({"none", "text", "output_text"})
_CLASS = re.compile(r"\w+\.(?=\w+$)")
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CUT_OFF = re.compile(
    r"length|max_(?:\w+_)?tokens|(?:token|time|error)_limit|context_window|incomplete"
)


def finish_of(choice: Mapping[str, Any]) -> str:
    """Return why a choice ended, such as `max_tokens`; empty where it does not say so."""
    names = ("finish_reason", "native_finish_reason", "stop_reason")
    stated = next((choice[name] for name in names if choice.get(name)), "")
    if isinstance(stated, Mapping):  # SGLang's own form
        stated = stated.get("type")
    # `FinishReason.MAX_TOKENS` and `maxTokens`. Cut first: the patterns are not linear.
    word = _WORD_START.sub("_", _CLASS.sub("", str(stated or "").strip()[:MAX_WORD]))
    return word.lower().replace("-", "_")


def is_cut_off(choice: Mapping[str, Any]) -> bool:
    """Return whether a choice ended at a limit."""
    return _CUT_OFF.search(finish_of(choice)) is not None


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's text: a string, or the parts that say they are text, and not a thought."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in _parts(content)]
    return "".join(texts)


def is_refusal(message: Mapping[str, Any]) -> bool:
    """Return whether the model refused, in the message's `refusal` or in a part of that type."""
    stated = [
        message.get("refusal"),
        *(part.get("refusal") for part in _parts(message.get("content")) if isinstance(part, dict)),
    ]
    return any(words.strip() if isinstance(words, str) else words for words in stated)


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [content]


def _text_of_part(part: Any) -> str:
    # Any other type may hold a thought, and a draft in it is no verdict.
    if not isinstance(part, dict) or part.get("thought"):
        return ""
    text = part.get("text")
    kind = str(part.get("type")).lower()
    return text if isinstance(text, str) and kind in _TEXT_PARTS else ""
