"""Cache keys: two pieces of work have the same key if and only if they are the same work.

Every key is a sha256 over canonical JSON, so that it depends on what is named here and on nothing
else. A judge's URL is provenance and part of no key. Points, the order of criteria and the
rubric's id are not part of a verdict's key. Stored rows bear these keys: never change what goes
into one without a migration.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from markscheme.hashing import (
    ChatMessage,
    canonical_json,
    digest,
    messages_of,
    prompt_key,
    text_key,
)
from markscheme.thinking import judged_text
from markscheme.vocabulary import VerifyMode, View
from markscheme_server.domain.rubric import Criterion

__all__ = [
    "ChatMessage",
    "VerdictKey",
    "call_text",
    "canonical_json",
    "check_view",
    "content_hash",
    "criterion_key",
    "digest",
    "induction_key",
    "judged_text",
    "message_text",
    "messages_of",
    "prompt_key",
    "prompt_text",
    "text_key",
]


def call_text(call: Mapping[str, Any]) -> str:
    """Return a tool call in words: `NAME(ARGUMENTS)`."""
    function = call["function"]
    arguments = function["arguments"]
    written = arguments if isinstance(arguments, str) else canonical_json(arguments)
    return f"{function['name']}({written})"


def message_text(message: ChatMessage) -> str:
    """Return the content of a message and its tool calls as one text."""
    content = message["content"]
    said = (
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
    )
    calls = (f"[tool call: {call_text(call)}]" for call in message.get("tool_calls", ()))
    return "\n".join([*([said] if said or "tool_calls" not in message else []), *calls])


def prompt_text(messages: Sequence[ChatMessage]) -> str:
    """Return a prompt as one text: the content of a lone message, else `ROLE: content` blocks."""
    if len(messages) == 1:
        return message_text(messages[0])
    return "\n\n".join(f"{m['role'].upper()}: {message_text(m)}" for m in messages)


def content_hash(criteria: Sequence[Criterion], view: View | None = None) -> str:
    """Return the hash of what would change a reward, in the order of the rubric."""
    listed = [
        {
            "id": c.id,
            "text": c.text,
            "points": c.points,
            "category": c.category,
            "check": dict(c.check) if c.check else None,
        }
        # Only where it is true: the hashes of older rubrics stay.
        | ({"may_not_apply": True} if c.may_not_apply else {})
        for c in criteria
    ]
    # Rubrics without a view keep the hash that they were stored with.
    return digest(listed if view is None else {"criteria": listed, "view": view})


def check_view(criterion: Criterion) -> View:
    """Return what of a trajectory a criterion's check reads: the reply unless it says otherwise."""
    view: View = (criterion.check or {}).get("view", "reply")
    return view


def criterion_key(criterion: Criterion) -> str:
    """Return the key of what is asked: the check if there is one, else the words.

    A criterion that may not apply is another question than one of the same words that always does.
    """
    if criterion.check:
        return digest({"check": dict(criterion.check)})
    return _words_key(criterion.text, criterion.may_not_apply)


# The criteria of a rubric are looked up for each of its rollouts, step after step.
@lru_cache(maxsize=65_536)
def _words_key(text: str, may_not_apply: bool) -> str:
    return digest({"text": text} | ({"may_not_apply": True} if may_not_apply else {}))


class VerdictKey:
    """Makes the keys of one criterion's verdicts; what they have in common is hashed once.

    `prompt` and `criterion` are keys themselves. `judge` is the judge's identity: model,
    revision, sampling and prompt template. `pool` is set in group mode only. Which other criteria
    the same call asks about is no part of the key.
    """

    def __init__(
        self,
        *,
        team: str,
        prompt: str,
        criterion: str,
        judge: str,
        verify: VerifyMode,
        pool: str = "",
    ) -> None:
        # The last element keeps the keys of verdicts that are stored already.
        self._hash = hashlib.sha256(
            canonical_json([team, prompt, criterion, judge, verify, pool, ""]).encode()
        )

    def for_response(self, response: str) -> str:
        """Return the key of the verdict on the response with this text key."""
        copy = self._hash.copy()
        copy.update(response.encode())
        return copy.hexdigest()


def induction_key(
    *,
    team: str,
    prompt: str,
    teachers: Sequence[str],
    students: Sequence[str],
    rubricator: str,
    view: View | None = None,
    replaces: Sequence[str] = (),
) -> str:
    """Return the key of an induction, so that the same question is paid for once.

    `teachers` and `students` are text keys, taken as sets: order and repeats do not matter.
    `view`: the one that the rubric is for, if it is for one. `replaces`: the rubric that the
    rubricator is shown, and the version of the words around it, if there is one.
    """
    asked = {
        "team": team,
        "prompt": prompt,
        "teachers": sorted(set(teachers)),
        "students": sorted(set(students)),
        "rubricator": rubricator,
    }
    # Only where they are given: the keys of older inductions stay.
    more = ({"view": view} if view is not None else {}) | (
        {"replaces": list(replaces)} if replaces else {}
    )
    return digest(asked | more)
