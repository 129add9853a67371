"""Whatever an endpoint sends: either the verdicts that it stated as its last word, or a failure.

Replies are made up by hypothesis and handed to the real judge in the process, without a socket.
What the judge decides is compared with an oracle, which knows marks and JSON and nothing else.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from growth import assert_linear, least_seconds
from markscheme_server.app import make_judge
from markscheme_server.config import Settings
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge import gateway, retry
from markscheme_server.judge.base import JudgeFailure, VerifyTask
from markscheme_server.judge.breaker import Breaker
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.judge.transport import Reply, Transport

IDS = ("c1", "c2")
TASK = VerifyTask(
    prompt=({"role": "user", "content": "Which colour is the sky, and why?"},),
    criteria=(Criterion("c1", "It names a colour.", 3), Criterion("c2", "It gives a reason.", 1)),
    responses=("Blue, because air scatters short waves.",),
)
PATIENCE_S = 10.0
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
    ("", "</think>"),
    ("", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
"""What opens and what closes a thought."""
OTHER_CLOSING = (
    "<|END_THINKING|>",
    "<|end_of_thought|>",
    "<channel|>",
    "<unused95>",
    "<|message|>",
    "assistantfinal",
)
CLOSING = tuple({close for _, close in THOUGHTS} | {*OTHER_CLOSING})
HARMONY_ENDS = ("<|return|>", "<|end|>", "<|call|>")
WHITE = "\ufeff \t\r\n"

EXAMPLES = settings(suppress_health_check=[HealthCheck.too_slow])
Verdicts = dict[str, bool]


class Asker:
    """The real judge, whose endpoint answers every call with the bytes that it is given."""

    def __init__(self) -> None:
        self.body, self.status = b"", 200
        self._runner = asyncio.Runner()
        self._runner.run(self._open())

    async def _open(self) -> None:
        made = Settings(
            _env_file=None,
            judge="openai",
            judge_base_url="http://judge/v1",
            judge_model="m",
            judge_api_key="k",
            judge_timeout_s=60,
        )
        judge = make_judge(made, "default", owner="t", secret=b"s" * 16)
        assert isinstance(judge, OpenAIJudge)
        self._judge = judge
        (self._endpoint,) = judge.gateway.endpoints
        self._endpoint.transport = cast(Transport, self)

    async def request(self, *_: object) -> Reply:
        """Answer in the transport's place."""
        return Reply(self.status, {"content-type": "application/json"}, self.body)

    async def aclose(self) -> None:
        """Close nothing."""

    def verdicts_from(self, body: bytes, status: int = 200) -> Verdicts | None:
        """Return the judge's verdicts from a body; ``None`` for a :class:`JudgeFailure`."""
        self.body, self.status = body, status
        return self._runner.run(self._verify())

    async def _verify(self) -> Verdicts | None:
        self._endpoint.breaker, self._endpoint.paused_until = Breaker(5.0), 0.0
        context = CallContext(Deadline(asyncio.get_running_loop().time() + PATIENCE_S))
        try:
            (decisions,) = await self._judge.verify(TASK, context)
        except JudgeFailure:
            return None
        return {name: decision.met for name, decision in decisions.items()}

    def close(self) -> None:
        self._runner.run(self._judge.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (retry, gateway):
            patch.setattr(module, "backoff_s", lambda attempt: 0.0, raising=False)
        made = Asker()
        yield made
        made.close()


def completion(content: Any, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | more
    return {
        "id": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 420, "completion_tokens": 31, "total_tokens": 451},
    }


def body_with(content: Any, **more: Any) -> bytes:
    return json.dumps(completion(content, **more)).encode()


def last_words(text: str) -> Iterator[str]:
    """All that could be a reply's last word: the whole of it, or what follows a closing mark."""
    yield text
    for mark in CLOSING:
        for match in re.finditer(re.escape(mark), text):
            yield text[match.end() :]


def unwrapped(text: str) -> str:
    """Without white space, harmony's end marks and one code fence around it."""
    text = text.strip(WHITE)
    for mark in HARMONY_ENDS:
        text = text.removesuffix(mark).strip(WHITE)
    fenced = re.fullmatch(r"```[\w+-]*(.*)```", text, re.DOTALL)
    return fenced[1].strip(WHITE) if fenced else text


def parsed(text: str) -> Any:
    """Parse ``text`` as one JSON value, allowing a trailing comma; else return ``None``."""
    for attempt in (text, re.sub(r",(\s*[}\]])", r"\1", text)):
        try:
            return json.loads(attempt)
        except (ValueError, RecursionError):
            continue
    return None


def stated_in(text: str) -> Verdicts | None:
    """Return the verdicts if the whole of ``text`` states them."""
    value = parsed(unwrapped(text))
    items = value.get("verdicts") if isinstance(value, dict) else value
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    found = {str(item.get("id")).strip().lower(): item.get("met") for item in items}
    return found if sorted(found) == sorted(IDS) and len(items) == len(IDS) else None


def check_is_a_last_word(decided: Verdicts | None, text: str) -> None:
    """Verdicts are what some last word of ``text`` states."""
    if decided is not None:
        assert all(type(met) is bool for met in decided.values())
        assert decided in [stated_in(word) for word in last_words(text)]


def text_of(content: Any) -> str:
    """Return a message's content as text: parts joined, without thinking parts."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and not re.search("think|reason", str(part.get("type"))):
            part = part.get("text")
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


# ------------------------------------------------------------------------------------ strategies

SPACE = st.sampled_from(["", " ", "\n", "\n\n", "\r\n", "\t"])
WORDS = st.sampled_from(
    [
        "The answer names a colour.",
        "So the reply is:",
        "Wait, no.",
        "c1 is met, c2 is not",
        "Done.",
        "{",
        "}",
        "[",
        '"',
        "verdicts",
        "\\frac{a}{b}",
        "```",
        "```json",
        "null",
        "\x00",
        "é",
        "😀",
        "'",
    ]
) | st.text(st.characters(codec="utf-8"), max_size=12)
PROSE = (
    st.lists(WORDS, min_size=1, max_size=4)
    .map(" ".join)
    .filter(lambda text: not any(mark in text for mark in CLOSING))
)


@st.composite
def verdict_sets(draw: st.DrawFn) -> Verdicts:
    return {name: draw(st.booleans()) for name in draw(st.permutations(IDS))}


@st.composite
def objects(draw: st.DrawFn, verdicts: Verdicts) -> str:
    """One verdict set as JSON, in one of the ways that are read."""
    upper, bare, comma = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    items: list[dict[str, Any]] = [
        {"id": name.upper() if upper else name, "met": met} for name, met in verdicts.items()
    ]
    indent = draw(st.sampled_from([None, 0, 2]))
    text = json.dumps(items if bare else {"verdicts": items}, indent=indent)
    if comma:
        text = text[:-1] + "," + text[-1:]
    if draw(st.booleans()):
        text = "```json" + draw(st.sampled_from([" ", "\n"])) + text + draw(SPACE) + "```"
    return draw(SPACE | st.just("\ufeff")) + text + draw(SPACE)


@st.composite
def thoughts(draw: st.DrawFn) -> str:
    """Draw a thought with any content, even its own verdicts."""
    opening, closing = draw(st.sampled_from(THOUGHTS))
    inner = draw(st.lists(PROSE | verdict_sets().flatmap(objects), max_size=3))
    if not opening:
        inner = ["Let me see. ", *inner]  # a reply that begins as JSON has no thought before it
    return opening + "\n".join(inner) + closing


MARKS = st.sampled_from(
    [*(mark for pair in THOUGHTS for mark in pair), *OTHER_CLOSING, *HARMONY_ENDS]
)
FRAGMENTS = st.lists(verdict_sets().flatmap(objects) | thoughts() | PROSE | MARKS, max_size=5).map(
    "".join
)
JSON_LIKE = st.lists(
    st.sampled_from(
        [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            '"',
            '"verdicts"',
            '"id"',
            '"c1"',
            '"c2"',
            '"C2"',
            '"met"',
            "true",
            "false",
            "null",
            "1",
            "NaN",
            " ",
            "\n",
            "\\",
            '{"verdicts": [',
            '{"id": "c1", "met": true}',
            '{"id": "c2", "met": false}',
            "]}",
            "```",
            "</think>",
            "<think>",
        ]
    ),
    max_size=24,
).map("".join)
FIELDS = st.sampled_from(
    [
        "choices",
        "message",
        "content",
        "refusal",
        "error",
        "code",
        "finish_reason",
        "usage",
        "type",
        "prompt_tokens",
        "text",
        "reasoning_content",
        "param",
        "metadata",
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def bent_completions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a completion in which one or two fields have any value."""
    made = completion(draw(FRAGMENTS | ANY_JSON | st.lists(ANY_JSON, max_size=3)))
    choice = made["choices"][0]
    places: list[tuple[dict[str, Any], list[str]]] = [
        (made, ["choices", "usage", "error", "object"]),
        (choice, ["message", "finish_reason", "error"]),
        (choice["message"], ["refusal", "reasoning_content", "reasoning", "tool_calls", "content"]),
    ]
    for _ in range(draw(st.integers(0, 2))):
        target, names = draw(st.sampled_from(places))
        target[draw(st.sampled_from(names))] = draw(ANY_JSON)
    return made


# ------------------------------------------------------------------------------------ properties


@EXAMPLES
@given(text=st.text(st.characters()) | JSON_LIKE | FRAGMENTS)
@example(text='{"verdicts": [{"id": "c1", "met": true}, {"id": "c2", "met": NaN}]}')
@example(text="{" * 5000)
@example(text="[" * 100_000)
@example(text='{"verdicts": ' + "9" * 5000 + "}")
def test_any_text_gives_its_last_word_or_a_failure(asker: Asker, text: str) -> None:
    check_is_a_last_word(asker.verdicts_from(body_with(text)), text)


@EXAMPLES
@given(body=st.binary(max_size=200))
@example(body=b"")
@example(body=b"[" * 100_000)
@example(body=b'{"choices": ' + b"9" * 5000 + b"}")
@example(body=b"\xef\xbb\xbf{}")
@example(body=b"\xff\xfe{\x00}\x00")
def test_bytes_that_are_no_completion_give_a_failure(asker: Asker, body: bytes) -> None:
    assert asker.verdicts_from(body) is None


@EXAMPLES
@given(value=ANY_JSON | bent_completions())
@example(value=completion([{"type": [], "text": "Blue."}]))
@example(value={"choices": [{"message": {"content": "Blue."}, "finish_reason": ["stop"]}]})
@example(value={"error": {"code": [], "type": {}, "param": [], "message": {}, "metadata": []}})
@example(value={"choices": [{"error": {"code": {}}}]})
def test_any_json_as_the_body_gives_its_last_word_or_a_failure(asker: Asker, value: Any) -> None:
    decided = asker.verdicts_from(json.dumps(value).encode())
    if decided is not None:
        check_is_a_last_word(decided, text_of(value["choices"][0]["message"]["content"]))


@EXAMPLES
@given(
    value=ANY_JSON | st.fixed_dictionaries({"error": ANY_JSON}) | bent_completions(),
    status=st.sampled_from([400, 401, 403, 404, 413, 422, 429, 500, 503, 529]),
)
@example(value={"error": {"code": [], "type": {}, "param": [], "message": {}}}, status=400)
def test_any_json_as_a_refusal_gives_a_failure(asker: Asker, value: Any, status: int) -> None:
    assert asker.verdicts_from(json.dumps(value).encode(), status) is None


@EXAMPLES
@given(data=st.data(), verdicts=verdict_sets())
def test_verdicts_after_a_thought_of_any_markup_are_read(
    asker: Asker, data: st.DataObject, verdicts: Verdicts
) -> None:
    text = data.draw(st.just("") | thoughts()) + data.draw(objects(verdicts))
    assert asker.verdicts_from(body_with(text)) == verdicts


@EXAMPLES
@given(data=st.data(), verdicts=verdict_sets())
def test_verdicts_in_parts_are_read_as_if_in_one(
    asker: Asker, data: st.DataObject, verdicts: Verdicts
) -> None:
    text = data.draw(objects(verdicts))
    cut = data.draw(st.integers(0, len(text)))
    other = data.draw(verdict_sets().flatmap(objects))
    parts = [
        {"type": "thinking", "thinking": other},
        {"type": "text", "text": text[:cut]},
        {"type": "text", "text": text[cut:]},
    ]
    assert asker.verdicts_from(body_with(parts)) == verdicts


@EXAMPLES
@given(
    data=st.data(),
    prose=st.sampled_from(
        ["So:", "It is a blue sky.", "No, wait.", "{not this}", "Instead of that:", "// c1"]
    ),
)
def test_verdicts_with_words_around_them_decide_nothing(
    asker: Asker, data: st.DataObject, prose: str
) -> None:
    made = data.draw(verdict_sets().flatmap(objects))
    text = data.draw(st.sampled_from([prose + "\n" + made, made + "\n" + prose]))
    assert asker.verdicts_from(body_with(data.draw(st.just("") | thoughts()) + text)) is None


@EXAMPLES
@given(first=verdict_sets().flatmap(objects), second=verdict_sets().flatmap(objects))
def test_two_sets_of_verdicts_decide_nothing(asker: Asker, first: str, second: str) -> None:
    assert asker.verdicts_from(body_with(first + second)) is None


@EXAMPLES
@given(made=verdict_sets().flatmap(objects), mark=st.sampled_from([o for o, _ in THOUGHTS if o]))
def test_verdicts_in_a_thought_that_does_not_end_decide_nothing(
    asker: Asker, made: str, mark: str
) -> None:
    assert asker.verdicts_from(body_with(mark + made)) is None


@EXAMPLES
@given(
    made=verdict_sets().flatmap(objects),
    content=st.sampled_from([None, "", " ", "\n", []]),
    field=st.sampled_from(["reasoning_content", "reasoning"]),
)
def test_verdicts_in_the_reasoning_alone_decide_nothing(
    asker: Asker, made: str, content: Any, field: str
) -> None:
    assert asker.verdicts_from(body_with(content, **{field: made})) is None


# ------------------------------------------------------------------------------------ time

BEGUN = "<think>It names a colour.</think>\n"
ITEM = '{"id": "c1", "met": true}, '
SHAPES: dict[str, tuple[str, str, str]] = {
    "opening braces": ("", "{", ""),
    "nested objects": ("", '{"a":', ""),
    "nested arrays": ("", "[", ""),
    "braces after a thought": (BEGUN, "{", ""),
    "objects after a thought": (BEGUN, '{"a":', ""),
    "arrays after a thought": (BEGUN, "[", ""),
    "opening thoughts": ("", "<think>", ""),
    "closing thoughts": ("", "</think>", ""),
    "thoughts": ("", "<think></think>", ""),
    "thoughts in turn": ("", "<think>[THINK]</think>", ""),
    "fences": ("", "```", ""),
    "fences after a thought": (BEGUN, "```", ""),
    "fractions": ("", "\\frac{a}{b}", ""),
    "begun verdicts": ("", '{"verdicts": [', ""),
    "repeated verdicts": ('{"verdicts": [', ITEM, "]}"),
    "verdicts without an end": ('{"verdicts": [', ITEM, ""),
    "spaces": ("", " ", ""),
    "spaces in an object": ("{", " ", "}"),
    "spaces after commas": ("[", ",        ", "]"),
    "one comma and spaces": ("[1,", " ", "x"),
    "channels": ("", "<|channel|>", ""),
    "final channels": ("", "<|channel|>final", ""),
    "messages": ("<|channel|>", "<|message|>", ""),
    "unicode escapes": ('{"verdicts": "', "\\u0041", '"}'),
    "half emojis": ('{"a": "', "\\ud83d", '"}'),
    "quotes": ("[", '"', "]"),
    "escaped quotes": ('{"a": "', '\\"', ""),
    "backslashes": ('{"a": "', "\\", ""),
    "digits": ('{"a": ', "9", "}"),
    "lines": ("", "x\n", ""),
    "closing thoughts in lines": ("", "\n</think> x", ""),
    "keys": ("{", '"a": 1, ', "}"),
    "byte order marks": ("", "\ufeff", ""),
    "angle brackets": ("", "<", ""),
}
"""What stands before, what is repeated, and what stands after."""


def shape_of(name: str, size: int) -> str:
    before, repeated, after = SHAPES[name]
    return before + repeated * ((size - len(before) - len(after)) // len(repeated)) + after


def make_reader() -> Callable[[str], None]:
    """Return a function that reads a text as the judge does, and fails as it does."""
    from markscheme_server.judge.replies import ReplyError, read_object, read_text

    def read(text: str) -> None:
        with contextlib.suppress(ReplyError, JudgeFailure):
            read_object(read_text(completion(text)))

    return read


@pytest.mark.parametrize("name", SHAPES)
def test_a_hostile_shape_takes_linear_time(name: str) -> None:
    assert_linear(make_reader(), lambda size: shape_of(name, size), size=250_000)


@pytest.mark.parametrize("name", SHAPES)
def test_a_megabyte_of_a_hostile_shape_costs_little(name: str) -> None:
    # The goal is 0.05 s; the rest is room for a slow machine.
    assert least_seconds(make_reader(), shape_of(name, 1_000_000), enough_s=0.3) <= 0.3
