"""The keys of prompts and texts, by which rubrics and responses are found.

Standard library only, so that the service's domain may import it. Stored rows bear these keys:
never change what goes into one without a migration.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from markscheme.messages import same_role, unsupported_parts

ChatMessage = dict[str, Any]
"""`{"role": …, "content": …}`, and of `MESSAGE_FIELDS` those that it has.

`content` is a text; it is a list of parts only where one of them is not text.
"""
MESSAGE_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content")


def canonical_json(value: Any) -> str:
    """Return the JSON of a value with sorted keys, no spaces, and UTF-8 unescaped."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def messages_of(prompt: str | Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """Return a prompt as chat messages; a string becomes one user message.

    Synonyms of roles become one role, and fields that hold nothing are left out.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [
        {"role": same_role(m["role"]), "content": _content(m.get("content"))}
        | {name: m[name] for name in MESSAGE_FIELDS if m.get(name)}
        for m in prompt
    ]


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content or ""
    # An image is known by its hash: no judge can read it, so its bytes are not stored.
    return [
        {
            "type": part.get("type"),
            "sha256": text_key(json.dumps(part, sort_keys=True, default=str)),
        }
        if unsupported_parts({"content": [part]})
        else part
        for part in content
    ]


def prompt_key(messages: Sequence[ChatMessage]) -> str:
    """Return the key of a prompt."""
    return digest(list(messages))


def text_key(text: str) -> str:
    """Return the key of one text."""
    return hashlib.sha256(text.encode()).hexdigest()
