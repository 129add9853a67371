"""Read an endpoint's reply: from the bytes of a response to verdicts, criteria or a text.

    bytes ─► decode ─► completion ─► read_text ─► text ─► read_object ─► JSON ─► read_verdicts …

All three roles use these functions. Thinking is cut off, and the JSON must be all that is left.
Deviations raise `ReplyError`, except those that cannot change a verdict: a trailing comma, an array
without its object, ``5.0``, ``C1``. Every step takes linear time and bounded memory, because a
rollout may make a judge repeat anything.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from markscheme.text import is_blank, replace_invalid
from markscheme.thinking import after_last_close, split_reply, split_response
from markscheme.vocabulary import CATEGORIES, UnscoredReason
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import Decision
from markscheme_server.judge.choices import is_cut_off, text_of
from markscheme_server.judge.retry import ProtocolError

MIN_CRITERIA, MAX_CRITERIA = 4, 12
MIN_POINTS, MAX_POINTS = 1, 5
MAX_CRITERION_CHARACTERS = 1000
MAX_QUOTED_CHARACTERS = 4000
"""Maximum length of evidence or a rationale; the rest is cut off."""
MAX_REPLY_CHARACTERS = 256 * 1024
MAX_OBJECTS = 20_000
"""Maximum number of JSON objects in a reply: more than any pool needs, and quick to read."""
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_CODE_FENCE = re.compile(r"```[A-Za-z0-9_+-]*")
# A string, or a comma before a closing bracket. An unterminated string matches to the end, so that
# no part of the text is scanned twice.
_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.|\\\Z)*(?:"|\Z)|,(?=\s*[}\]])', re.DOTALL)
_NUMBERED = re.compile(r"\b(student|reference)s? ?#?(\d+)\b", re.IGNORECASE)
_DELIMITER = re.compile(r"material-[0-9a-f]{8,}", re.IGNORECASE)


class ReplyError(ValueError):
    """An unusable reply. The message may be sent to the judge when it is asked again.

    ``again``: whether asking again can help.
    """

    def __init__(
        self,
        message: str,
        reason: UnscoredReason = UnscoredReason.PARSE_FAILURE,
        *,
        again: bool = True,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.again = again


class Truncated(ReplyError):
    """A reply that was cut off."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UnscoredReason.TRUNCATED)


def decode(content: bytes) -> Any:
    """Parse the JSON of a response's body. Raises `ProtocolError` for anything else."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        # Not UTF-8, not JSON, nested too deeply, or a number with too many digits.
        raise ProtocolError("the body is not JSON") from error


def check_protocol(completion: Any) -> None:
    """Raise `ProtocolError` unless there is one choice, with a message or cut off."""
    choice = _first_choice(completion)
    if not isinstance(choice.get("message"), dict) and not is_cut_off(choice):
        raise ProtocolError("there is no choice with a message")


def read_text(completion: Any, *, response: bool = False) -> str:
    """Return the choice's content without its thinking.

    ``response``: it is a teacher's response, not a judge's reply. Raises `Truncated` where the
    completion or its thinking does not end, `ReplyError` where there is reasoning and no reply, and
    `ProtocolError` where there is no choice with a message.
    """
    choice = _first_choice(completion)
    if is_cut_off(choice):
        raise Truncated("the reply was cut off at its length limit")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ProtocolError("there is no choice with a message")
    content = text_of(message)
    if not content.strip() and any(message.get(name) for name in _REASONING_FIELDS):
        raise ReplyError(
            "the reply has reasoning_content and no content: only content decides. Switch the "
            "endpoint's reasoning parser off, or allow more tokens",
            again=False,
        )
    output = split_response(content) if response else split_reply(content)
    if not output.finished:
        raise Truncated("the reply ends inside its thinking")
    return output.answer.strip("\ufeff \t\r\n")


def read_object(text: str) -> Any:
    """Parse ``text`` as one JSON object or array; a code fence around it is allowed.

    Two objects, or an object within prose, are refused: it is a guess which one is meant, and one
    may be quoted from the material.
    """
    if len(text) > MAX_REPLY_CHARACTERS:
        raise ReplyError(f"the reply is longer than {MAX_REPLY_CHARACTERS:,} characters")
    try:
        return _parse(_without_fence(text.strip("\ufeff \t\r\n")))
    except ReplyError:
        # Thinking that the chat template opened, its closing tag, and then the reply.
        split = after_last_close(text)
        if split is None:
            raise
        return _parse(_without_fence(split.answer.strip()))


def read_verdicts(
    reply: Any,
    ids: Sequence[str],
    *,
    evidence: bool = False,
    rationale: bool = False,
    may_not_apply: Collection[str] = (),
) -> dict[str, Decision]:
    """Read ``[{"id", "met", …}]`` as decisions by id: exactly the ``ids``, with booleans.

    Those of ``may_not_apply`` may have ``{"applicable": false, "met": null}`` instead.
    """
    if isinstance(reply, dict):
        reply = reply.get("verdicts")
    if not isinstance(reply, list):
        raise ReplyError("verdicts must be an array")
    decisions: dict[str, Decision] = {}
    for item in reply:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise ReplyError("each verdict must be an object with an id")
        name = item["id"].strip().lower()
        if name not in ids:
            raise ReplyError(
                f"a verdict names a criterion that was not offered; offered: {', '.join(ids)}",
                UnscoredReason.OFF_MENU,
            )
        if name in decisions:
            raise ReplyError(f"{name} is decided twice")
        decisions[name] = Decision(
            _met(item, name, may_not_apply=name in may_not_apply),
            _quoted(item, "evidence") if evidence else None,
            _quoted(item, "rationale") if rationale else None,
        )
    missing = [i for i in ids if i not in decisions]
    if missing:
        raise ReplyError(f"not decided: {', '.join(missing)}")
    return decisions


def _met(item: dict[str, Any], name: str, *, may_not_apply: bool) -> bool | None:
    """Return whether a criterion is met; ``None``: it does not apply."""
    met, applicable = item.get("met"), item.get("applicable", True)
    if not may_not_apply:
        if applicable is False:
            raise ReplyError(f"{name} applies to every answer: met must be true or false")
        if not isinstance(met, bool):
            raise ReplyError(f"met must be true or false for {name}")
        return met
    if applicable is False and met is None:
        return None
    # A contradiction is no verdict: nothing says which half of it is meant.
    if applicable is not True or not isinstance(met, bool):
        raise ReplyError(
            f"{name} needs applicable true with met true or false, or applicable false with met "
            "null"
        )
    return met


def read_pool(
    reply: Any,
    size: int,
    ids: Sequence[str],
    *,
    evidence: bool = False,
    rationale: bool = False,
    may_not_apply: Collection[str] = (),
) -> list[dict[str, Decision]]:
    """Read the decisions of group mode: one entry per answer, numbered 1 … ``size``."""
    if isinstance(reply, dict):
        reply = reply.get("answers")
    if not isinstance(reply, list):
        raise ReplyError("answers must be an array")
    decided: dict[int, dict[str, Decision]] = {}
    for item in reply:
        number = _whole(item.get("answer")) if isinstance(item, dict) else None
        if number is None or not 1 <= number <= size or number in decided:
            raise ReplyError(f"answers must be numbered 1 to {size}, each once")
        decided[number] = read_verdicts(
            item.get("verdicts"),
            ids,
            evidence=evidence,
            rationale=rationale,
            may_not_apply=may_not_apply,
        )
    if len(decided) != size:
        raise ReplyError(f"{size} answers were given, {len(decided)} were marked")
    return [decided[i] for i in range(1, size + 1)]


def read_criteria(reply: Any, prompt: str = "") -> tuple[Criterion, ...]:
    """Read the rubricator's criteria: 4 to 12 of them, with whole points from 1 to 5.

    The ids are assigned here. ``prompt`` is the task's text: a criterion may repeat its words.
    """
    items = reply.get("criteria") if isinstance(reply, dict) else reply
    if not isinstance(items, list) or not MIN_CRITERIA <= len(items) <= MAX_CRITERIA:
        raise ReplyError(f"criteria must be an array of {MIN_CRITERIA} to {MAX_CRITERIA}")
    return tuple(_criterion(f"c{i}", item, prompt) for i, item in enumerate(items, 1))


def _criterion(criterion_id: str, item: Any, prompt: str) -> Criterion:
    if not isinstance(item, dict):
        raise ReplyError("each criterion must be an object")
    text, points = item.get("criterion"), _whole(item.get("points"))
    if not isinstance(text, str) or is_blank(text) or len(text) > MAX_CRITERION_CHARACTERS:
        raise ReplyError(f"criterion must be text of 1 to {MAX_CRITERION_CHARACTERS} characters")
    if points is None or not MIN_POINTS <= points <= MAX_POINTS:
        raise ReplyError(f"points must be a whole number from {MIN_POINTS} to {MAX_POINTS}")
    category = _category(item.get("category"))
    if category not in CATEGORIES:
        raise ReplyError(f"category must be one of {', '.join(CATEGORIES)}")
    _refuse_names_of_this_call(text, prompt)
    return Criterion(criterion_id, replace_invalid(text.strip()), points, category)


def _refuse_names_of_this_call(text: str, prompt: str) -> None:
    """Refuse a criterion that names answers of this call: the verifier sees one answer alone."""
    stated = {match.group().lower() for match in _NUMBERED.finditer(prompt)}
    if _DELIMITER.search(text) or any(
        m.group().lower() not in stated for m in _NUMBERED.finditer(text)
    ):
        raise ReplyError(
            "a criterion must not name an answer of this call, such as Student 3 or Reference 2, "
            "or a mark around the material"
        )


def _category(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    folded = re.sub(r"[\s-]+", "_", value.strip().lower())
    return folded.replace("fulfillment", "fulfilment")


def _whole(value: Any) -> int | None:
    """Return a whole number, also from ``5.0``; ``None`` for anything else."""
    # `bool` is a subclass of `int`.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _quoted(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    return (
        replace_invalid(value[:MAX_QUOTED_CHARACTERS]) if isinstance(value, str) and value else None
    )


def _first_choice(completion: Any) -> dict[str, Any]:
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ProtocolError("there is not exactly one choice")
    return choices[0]


def _without_fence(text: str) -> str:
    """Return the content of a code fence around the whole of ``text``; else ``text``."""
    # Six characters: an opening and a closing fence, not one that is both.
    if not (text.startswith("```") and text.endswith("```") and len(text) >= 6):
        return text
    opening = _CODE_FENCE.match(text)
    assert opening is not None
    return text[opening.end() : -3].strip()


def _parse(text: str) -> Any:
    if not text.startswith(("{", "[")):
        raise ReplyError(
            "the reply holds no JSON object"
            if "{" not in text and "[" not in text
            else "the reply must be one JSON object, without words around it"
        )
    # Checked before parsing, which would build them all.
    if text.count("{") > MAX_OBJECTS:
        raise ReplyError(f"the reply holds more than {MAX_OBJECTS:,} objects")
    try:
        return _loads(text)
    except ReplyError:
        raise
    except (ValueError, RecursionError):
        pass
    try:
        return _loads(
            _TRAILING_COMMA.sub(lambda match: "" if match.group() == "," else match.group(), text)
        )
    except ReplyError:
        raise
    except (ValueError, RecursionError) as error:
        raise ReplyError(
            "the reply must be exactly one JSON object, complete and without words around it"
        ) from error


def _loads(text: str) -> Any:
    return json.loads(
        text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicate_keys
    )


def _refuse_constant(name: str) -> Any:
    raise ReplyError(f"{name} is not JSON")


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    # Readers differ in which of two equal keys counts, and a verdict must not depend on it.
    if len(result) != len(pairs):
        raise ReplyError("a key stands twice in one object")
    return result
