"""Responses that are messages: their normal form, the views of them, and what a judge is shown.

A response is a text or a `Trajectory`. `judged` gives the part of it that is judged: a text, or a
`Transcript` where a view holds more than one text. One assistant message that only says something
is the same response as its text, in every view, so that it has the same keys.

`show` fits a transcript into a number of tokens. Marks and sanitising are the prompt's: see
`judge.prompts`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from markscheme.messages import unsupported_parts
from markscheme.vocabulary import Thinking, View
from markscheme_server.domain.hashing import (
    ChatMessage,
    call_text,
    canonical_json,
    digest,
    judged_text,
    messages_of,
    text_key,
)

CHARACTERS_PER_TOKEN = 4
"""The usual estimate for English; good enough for a bound on cost."""
DEFAULT_VIEW: View = "reply"
RENDERING = "transcript/1"
"""Increment when a transcript is shown otherwise or explained in other words: part of its key."""
MIN_SHARE = 256
"""Characters that a call or a result keeps before whole messages are left out."""
LINE_CHARACTERS = 48
"""What the line before each message counts."""
_NEWEST_SHARE = 0.75
"""Share of the room that the newest messages get where not all messages fit."""

Kind = Literal["said", "call", "result", "other"]


@dataclass(frozen=True)
class Trajectory:
    """The messages of a response, as canonical JSON."""

    json: str

    @cached_property
    def messages(self) -> list[ChatMessage]:
        """The messages in their normal form."""
        found: list[ChatMessage] = json.loads(self.json)
        return found

    @property
    def key(self) -> str:
        """The key under which it is stored."""
        # No text holds NUL, so that no text has the key of a trajectory.
        return text_key(f"\0{self.json}")

    @property
    def unsupported(self) -> list[str]:
        """The types of its parts that are not text, each once."""
        return unsupported_in(self.messages)


Response = str | Trajectory


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a transcript, or one of the tool calls in it.

    `call`: the number of the tool call that it is, or that it is the result of. `role`: who said
    it, where it is neither the assistant nor a tool.
    """

    kind: Kind
    text: str
    call: int | None = None
    role: str = ""

    @property
    def line(self) -> str:
        """What the judge is told of it."""
        match self.kind:
            case "said":
                return "the assistant says"
            case "call":
                return f"the assistant makes tool call {self.call}"
            case "result":
                return f"result of tool call {self.call}" if self.call else "result of a tool call"
        return f"the {self.role} says"


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is judged of a response where it is more than one text.

    `reply`: the last text of the assistant, for rules that read nothing else.
    """

    key: str
    view: View = field(compare=False)
    parts: tuple[Part, ...] = field(compare=False)
    reply: str = field(compare=False)

    @property
    def text(self) -> str:
        """All its texts, for checks: code has no use for marks and lines."""
        return "\n\n".join(part.text for part in self.parts)

    @property
    def readable(self) -> str:
        """The record for people, with a line before each message."""
        return "\n\n".join(f"[{part.line}]\n{part.text}" for part in self.parts)


Judged = str | Transcript


class Answer:
    """A response to judge. Its views are computed once."""

    def __init__(self, response: Response, thinking: Thinking = "auto") -> None:
        self.response = response
        self._thinking = thinking
        self._views: dict[View, Judged] = {}

    def judged(self, view: View) -> Judged:
        """Return what is judged of it in a view."""
        if view not in self._views:
            self._views[view] = judged(self.response, view, self._thinking)
        return self._views[view]

    def judged_in(self, views: Iterable[View]) -> tuple[Judged, ...]:
        """Return what is judged of it in several views."""
        return tuple(self.judged(view) for view in views)

    @property
    def unsupported(self) -> list[str]:
        """The types of its parts that are not text."""
        return [] if isinstance(self.response, str) else self.response.unsupported


@dataclass(frozen=True, slots=True)
class Piece:
    """Words to show. `is_ours`: they are the service's own and stand on a marked line."""

    text: str
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """What a judge is shown of a response, and about how many tokens it is not shown."""

    pieces: tuple[Piece, ...]
    shown_tokens: int
    left_out_tokens: int

    @property
    def text(self) -> str:
        """The response's own words among it."""
        return "\n".join(piece.text for piece in self.pieces if not piece.is_ours)


def response_of(response: str | Sequence[ChatMessage]) -> Response:
    """Return a response in its normal form: a text if nothing else is in it."""
    if isinstance(response, str):
        return response
    messages = messages_of(response)
    if not messages:
        return ""
    if len(messages) == 1 and messages[0].keys() <= {"role", "content", "name"}:
        only = messages[0]
        if only["role"] == "assistant" and isinstance(only["content"], str):
            return str(only["content"])
    return Trajectory(canonical_json(messages))


def response_key(response: Response) -> str:
    """Return the key under which a response is stored."""
    return text_key(response) if isinstance(response, str) else response.key


def unsupported_in(messages: Iterable[ChatMessage]) -> list[str]:
    """Return the types of parts that are not text in these messages, each once."""
    return list(dict.fromkeys(kind for each in messages for kind in unsupported_parts(each)))


def reply_of(response: Response, thinking: Thinking = "auto") -> str:
    """Return the judged part of the last text that the assistant said; empty if it said none."""
    if isinstance(response, str):
        return judged_text(response, thinking)
    return _reply(response.messages, thinking)


def judged(response: Response, view: View = DEFAULT_VIEW, thinking: Thinking = "auto") -> Judged:
    """Return what is judged of a response in a view.

    `reply` is the last text of the assistant, `assistant` all of them, `full` all messages with
    tool calls and results. Thoughts are removed from each text as from a response that is a text.
    """
    if isinstance(response, str):
        return judged_text(response, thinking)
    messages = response.messages
    reply = _reply(messages, thinking)
    if view == "reply":
        return reply
    parts = tuple(_parts(messages, view, thinking))
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].kind == "said":
        return parts[0].text
    key = text_key(
        "\0" + canonical_json([RENDERING, view, [[p.kind, p.text, p.call, p.role] for p in parts]])
    )
    return Transcript(key, view, parts, reply)


def judged_key(response: Judged) -> str:
    """Return the key of what is judged, as it is part of a verdict's key."""
    return text_key(response) if isinstance(response, str) else response.key


def pool_key(responses: Sequence[Judged]) -> str:
    """Return the key of a group-mode pool, whose responses are compared with each other."""
    return digest([material(response) for response in responses])


def material(response: Judged) -> str | list[str]:
    """Return what stands for a response in a digest of several things."""
    return response if isinstance(response, str) else [response.key]


def reply_text(response: Judged) -> str:
    """Return the last text of the assistant in what is judged."""
    return response if isinstance(response, str) else response.reply


def checked_text(response: Judged) -> str:
    """Return the text that a check reads."""
    return response if isinstance(response, str) else response.text


def show(response: Judged, max_tokens: int) -> Shown:
    """Return what a judge is shown of a response within `max_tokens` (estimated).

    Of a long text the end is shown. In a transcript, tool calls and results are shortened first,
    each to the same length, by leaving out their middle. If that is not enough, messages are left
    out between the first and the last ones, and of a last message that is too long itself the end
    is shown. Each omission is stated where it is.
    """
    room = max_tokens * CHARACTERS_PER_TOKEN
    if isinstance(response, str):
        shown = len(response) if len(response) <= room else room
        return Shown((Piece(response[-shown:] if shown else ""),), *_count(len(response), shown))
    share = _fair_share(response.parts, room)
    pieces: list[Piece] = []
    shown = 0
    first, last = _omitted(response.parts, room, share)
    for number, part in enumerate(response.parts):
        if first <= number < last:
            if number == first:
                gap = response.parts[first:last]
                about = _tokens(sum(len(each.text) for each in gap))
                pieces.append(
                    Piece(f"messages left out here: {len(gap)}, of about {about} tokens", True)
                )
            continue
        pieces.append(Piece(f"{number + 1}: {part.line}", True))
        kept = min(len(part.text), _length(part, share))
        # Only the last message can be longer than the room, because `_omitted` always keeps it.
        if number == len(response.parts) - 1 and kept + LINE_CHARACTERS > room:
            kept = max(room - LINE_CHARACTERS, min(kept, room))
            pieces += _shortened(part.text, 0, kept)
        else:
            pieces += _shortened(part.text, kept // 2, kept - kept // 2)
        shown += kept
    return Shown(tuple(pieces), *_count(sum(len(p.text) for p in response.parts), shown))


def measure(response: Judged, max_tokens: int | None) -> tuple[int, int]:
    """Return about how many tokens a judge is shown of a response, and how many it is not.

    `max_tokens`: `None` where there is no limit.
    """
    if isinstance(response, str):
        limit = len(response) if max_tokens is None else max_tokens * CHARACTERS_PER_TOKEN
        return _count(len(response), min(len(response), limit))
    if max_tokens is None:
        return _tokens(sum(len(part.text) for part in response.parts)), 0
    shown = show(response, max_tokens)
    return shown.shown_tokens, shown.left_out_tokens


def _count(total: int, shown: int) -> tuple[int, int]:
    return _tokens(shown), _tokens(total - shown)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _is_bulky(part: Part) -> bool:
    return part.kind in ("call", "result")


def _length(part: Part, share: int) -> int:
    return min(len(part.text), share) if _is_bulky(part) else len(part.text)


def _fair_share(parts: Sequence[Part], room: int) -> int:
    """Return the length to which calls and results are shortened, `MIN_SHARE` at least."""
    room -= sum(LINE_CHARACTERS + (0 if _is_bulky(part) else len(part.text)) for part in parts)
    lengths = sorted(len(part.text) for part in parts if _is_bulky(part))
    # Short ones leave room for long ones, so begin with the shortest.
    for number, length in enumerate(lengths):
        share = room // (len(lengths) - number)
        if length > share:
            return max(share, MIN_SHARE)
        room -= length
    return lengths[-1] if lengths else 0


def _omitted(parts: Sequence[Part], room: int, share: int) -> tuple[int, int]:
    """Return from which part on and before which one parts are left out; equal if none is."""
    costs = [LINE_CHARACTERS + _length(part, share) for part in parts]
    total, count = sum(costs), len(parts)
    if total <= room:
        return count, count
    # From the end backwards; what room is left then is filled from the beginning.
    last, used = count - 1, costs[-1]
    while last > 0 and used + costs[last - 1] <= room * _NEWEST_SHARE:
        last -= 1
        used += costs[last]
    first = 0
    while first < last and used + costs[first] <= room:
        used += costs[first]
        first += 1
    return first, last


def _shortened(text: str, head: int, tail: int) -> Iterator[Piece]:
    left_out = len(text) - head - tail
    if left_out <= 0:
        yield Piece(text)
        return
    if head:
        yield Piece(text[:head])
    yield Piece(f"about {_tokens(left_out)} tokens are left out here", True)
    yield Piece(text[len(text) - tail :])


def _reply(messages: Sequence[ChatMessage], thinking: Thinking) -> str:
    for message in reversed(messages):
        # An unfinished thought at the end is an empty reply; the text before it is not the reply.
        if message["role"] == "assistant" and _content(message).strip():
            return _said(message, thinking)
    return ""


def _parts(messages: Sequence[ChatMessage], view: View, thinking: Thinking) -> Iterator[Part]:
    calls = 0
    open_calls: list[tuple[int, str | None, str]] = []
    for message in messages:
        role = message["role"]
        if role == "assistant":
            if said := _said(message, thinking):
                yield Part("said", said)
            if view != "full":
                continue
            for call in message.get("tool_calls", ()):
                calls += 1
                # Open until its result comes, which may name it by id, by tool or not at all.
                open_calls.append((calls, call.get("id"), call["function"]["name"]))
                yield Part("call", call_text(call), calls)
        elif view == "full" and role == "tool":
            yield Part("result", _content(message), _answered(message, open_calls))
        elif view == "full":
            yield Part("other", _content(message), role=role)


def _answered(message: ChatMessage, open_calls: list[tuple[int, str | None, str]]) -> int | None:
    """Return the number of the call that a result belongs to: by its id, its tool, or its turn."""
    identifier, name = message.get("tool_call_id"), message.get("name")
    found = next(
        (call for call in open_calls if identifier is not None and call[1] == identifier), None
    )
    if found is None and identifier is None:
        found = next((call for call in open_calls if name in (None, call[2])), None)
    if found is None:
        return None
    open_calls.remove(found)
    return found[0]


def _said(message: ChatMessage, thinking: Thinking) -> str:
    content, thought = _content(message), message.get("reasoning_content")
    if not thought:
        return judged_text(content, thinking)
    if thinking == "keep":
        return f"<think>\n{thought}\n</think>\n\n{content}".strip()
    # What the parser took out is no part of the content, so the content begins with no thought.
    return judged_text(content, "auto")


def _content(message: ChatMessage) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)
