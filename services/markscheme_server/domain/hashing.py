"""Content addresses: when two pieces of work are the same work.

Every key is a sha256 over canonical JSON, so a key says what it depends on and nothing else. The URL of a
judge is provenance, never part of a key; points, criterion order and rubric id are not part of a verdict's.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markscheme.thinking import split_thinking
from markscheme.vocabulary import Thinking, VerifyMode
from markscheme_server.domain.rubric import Criterion

ChatMessage = dict[str, str]
"""``{"role": …, "content": …}``."""


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8 kept."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def digest(value: Any) -> str:
    """sha256 hex of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def messages_of(prompt: str | Sequence[ChatMessage]) -> list[ChatMessage]:
    """A prompt as chat messages; a string is one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def prompt_text(messages: Sequence[ChatMessage]) -> str:
    """A prompt as one text: a lone message's own words, else ``ROLE: words`` blocks."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].upper()}: {m['content']}" for m in messages)


def prompt_key(messages: Sequence[ChatMessage]) -> str:
    """The address of a prompt."""
    return digest(list(messages))


def judged_text(text: str, thinking: Thinking = "auto") -> str:
    """The part of a response that is judged: its answer, white space trimmed.

    ``auto`` cuts off a thought that the response itself opens at its beginning; ``strip`` also one that
    the chat template had opened; ``keep`` nothing. A thought without an answer is an empty answer.
    """
    if thinking == "keep":
        return text.strip()
    return split_thinking(text, opened=thinking == "strip").answer.strip()


def text_key(text: str) -> str:
    """The address of one text."""
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(criteria: Sequence[Criterion]) -> str:
    """The address of a rubric's content: what would change a reward, in the rubric's own order."""
    return digest(
        [
            {
                "id": c.id,
                "text": c.text,
                "points": c.points,
                "category": c.category,
                "check": dict(c.check) if c.check else None,
            }
            for c in criteria
        ]
    )


def criterion_key(criterion: Criterion) -> str:
    """The address of what is asked: the check when there is one, else the words."""
    return (
        digest({"check": dict(criterion.check)}) if criterion.check else _words_key(criterion.text)
    )


@lru_cache(maxsize=65_536)
def _words_key(text: str) -> str:
    """A rubric's criteria are looked up for each of its rollouts, step after step."""
    return digest({"text": text})


def pool_key(texts: Sequence[str]) -> str:
    """The address of a group-mode pool: rivals matter there, so they are part of the verdict."""
    return digest(list(texts))


class VerdictAddress:
    """The addresses of one criterion's verdicts: everything but the response is hashed once.

    ``prompt`` and ``criterion`` are keys themselves; ``judge`` is the judge's identity (model, revision, sampling,
    prompt template); ``pool`` is set in group mode only, ``judged_with`` (the criteria of the same call) only where
    verdicts are reused by exact set.
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
        judged_with: str = "",
    ) -> None:
        self._hash = hashlib.sha256(
            canonical_json([team, prompt, criterion, judge, verify, pool, judged_with]).encode()
        )

    def of(self, response: str) -> str:
        """The address for the response of this key."""
        whole = self._hash.copy()
        whole.update(response.encode())
        return whole.hexdigest()


def induction_key(
    *, team: str, prompt: str, teachers: Sequence[str], students: Sequence[str], rubricator: str
) -> str:
    """The address of an induction: the exact question, so that asking twice pays once.

    ``teachers`` and ``students`` are sets of text keys; order and repeats do not matter.
    """
    return digest(
        {
            "team": team,
            "prompt": prompt,
            "teachers": sorted(set(teachers)),
            "students": sorted(set(students)),
            "rubricator": rubricator,
        }
    )
