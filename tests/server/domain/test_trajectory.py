"""Responses that are messages: their normal form, their views, and what a judge is shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme.integrations.conversation import normal_conversation, wire_response
from markscheme.schema import Message, Rollout
from markscheme_server.domain.hashing import (
    content_hash,
    induction_key,
    messages_of,
    prompt_key,
    prompt_text,
    text_key,
)
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import (
    LINE_CHARACTERS,
    MIN_SHARE,
    Answer,
    Part,
    Trajectory,
    Transcript,
    judged,
    judged_key,
    measure,
    reply_of,
    response_key,
    response_of,
    show,
)

CALL = {"type": "function", "function": {"name": "mul", "arguments": {"a": 2, "b": 3}}}
TWO_TURNS: list[dict[str, Any]] = [
    {"role": "assistant", "content": "I will multiply.", "tool_calls": [CALL | {"id": "x"}]},
    {"role": "tool", "tool_call_id": "x", "content": "6"},
    {"role": "user", "content": "And twice that?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12"},
    {"role": "assistant", "content": "It is 12."},
]


def respond(messages: list[dict[str, Any]]) -> Any:
    """Read messages as a request's body holds them."""
    return response_of([Message.model_validate(m).model_dump() for m in messages])


def transcript(*parts: Part) -> Transcript:
    return Transcript("k", "full", parts, "")


def shown(response: Any, max_tokens: int = 8192) -> str:
    return "\n".join(
        ("# " if piece.is_ours else "") + piece.text for piece in show(response, max_tokens).pieces
    )


def test_each_view_of_a_trajectory() -> None:
    response = respond(TWO_TURNS)
    assert judged(response, "reply") == "It is 12."
    assert shown(judged(response, "assistant")) == (
        "# 1: the assistant says\nI will multiply.\n# 2: the assistant says\nIt is 12."
    )
    assert shown(judged(response, "full")) == (
        "# 1: the assistant says\nI will multiply.\n"
        '# 2: the assistant makes tool call 1\nmul({"a":2,"b":3})\n'
        "# 3: result of tool call 1\n6\n"
        "# 4: the user says\nAnd twice that?\n"
        '# 5: the assistant makes tool call 2\nmul({"a":2,"b":3})\n'
        "# 6: result of tool call 2\n12\n"
        "# 7: the assistant says\nIt is 12."
    )


@pytest.mark.parametrize("view", ["reply", "assistant", "full"])
@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": " Red. "},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}], "name": None},
        {"role": "assistant", "content": "<think>Blue?</think>Red.", "tool_calls": []},
        {"role": "assistant", "content": "Red.", "reasoning_content": "Blue?"},
        {"role": "assistant", "content": ["Re", {"type": "output_text", "text": "d."}]},
    ],
)
def test_one_message_that_says_something_has_the_key_of_its_text(message: Any, view: Any) -> None:
    key = judged_key(judged(respond([message]), view))
    assert key == judged_key(judged("Red.", view)) == text_key("Red.")


def test_a_lone_text_message_is_stored_as_its_text() -> None:
    assert respond([{"role": "assistant", "content": " Red. ", "name": None}]) == " Red. "
    assert response_key("Red.") == text_key("Red.")
    assert respond([]) == ""


def test_keys_differ_by_view_and_by_what_was_done() -> None:
    other = json.loads(json.dumps(TWO_TURNS))
    other[4]["content"] = "13"
    keys = {
        judged_key(judged(respond(messages), view))
        for messages in (TWO_TURNS, other)
        for view in ("reply", "assistant", "full")
    }
    # What differs is not in two of the three views.
    assert len(keys) == 4


def test_ids_that_differ_from_sample_to_sample_change_no_verdict_key() -> None:
    other = json.loads(json.dumps(TWO_TURNS).replace('"x"', '"call_81"'))
    assert judged_key(judged(respond(TWO_TURNS), "full")) == judged_key(
        judged(respond(other), "full")
    )
    assert response_key(respond(TWO_TURNS)) != response_key(respond(other))


def test_no_text_has_the_key_of_a_trajectory() -> None:
    response = respond(TWO_TURNS)
    assert isinstance(response, Trajectory)
    assert response_key(response) != text_key(response.json)
    whole = judged(response, "full")
    assert isinstance(whole, Transcript)
    assert judged_key(whole) not in (text_key(whole.text), text_key(whole.readable))


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"function": {"name": "mul", "arguments": '{"b": 3, "a": 2}'}, "index": 0},
        {"name": "mul", "arguments": {"a": 2, "b": 3}},
        {"name": "mul", "args": {"a": 2, "b": 3}, "id": "1", "type": "tool_call"},
        {"type": "custom", "custom": {"name": "mul", "input": '{"a":2,"b":3}'}},
        json.dumps(CALL | {"id": "call_1"}),
    ],
)
def test_a_tool_call_is_read_as_every_program_writes_it(call: Any) -> None:
    response = respond([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert shown(judged(response, "full")) == (
        '# 1: the assistant makes tool call 1\nmul({"a":2,"b":3})'
    )
    old = respond(
        [{"role": "assistant", "function_call": json.loads(json.dumps(CALL["function"]))}]
    )
    assert judged(old, "full") == judged(response, "full")


@pytest.mark.parametrize(
    ("content", "shown_as"),
    [
        ({"temperature": 20}, '{"temperature": 20}'),
        ([{"title": "a"}, {"title": "b"}], '[{"title": "a"}, {"title": "b"}]'),
        (6, "6"),
        (False, "false"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": None}, None, "b"], "ab"),
        ({"type": "text", "text": "a"}, "a"),
    ],
)
def test_what_a_tool_returned_is_shown_though_it_is_no_text(content: Any, shown_as: str) -> None:
    response = respond([{"role": "tool", "tool_call_id": 7, "content": content}])
    assert shown(judged(response, "full")) == f"# 1: result of a tool call\n{shown_as}"


@pytest.mark.parametrize(
    "arguments",
    ['{"a": 1, "a": 2}', '{"a": NaN}', "{broken", "[1]", "[" * 100_000, '{"a": 1e999}', "x = 1"],
)
def test_arguments_that_are_no_object_are_shown_as_the_model_wrote_them(arguments: str) -> None:
    call = {"function": {"name": "run", "arguments": arguments}}
    response = respond([{"role": "assistant", "content": "", "tool_calls": [call]}])
    whole = judged(response, "full")
    assert isinstance(whole, Transcript)
    assert whole.text == f"run({arguments})"


def test_nul_and_half_characters_are_visible_wherever_they_are() -> None:
    """As the SDK replaces them; also where a tool's arguments escape them."""
    messages = [
        {"role": "assistant", "content": "a\0", "tool_calls": [
            {"id": "i\0", "function": {"name": "f\ud800", "arguments": r'{"x\u0000": "\ud83d"}'}}]},
        {"role": "tool", "name": "f\ud800", "content": [{"type": "text", "text": "b\udfff"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "\0"},
    ]  # fmt: skip
    rollout = Rollout.model_validate({"id": "r", "messages": messages})
    response = response_of([m.model_dump() for m in rollout.messages or []])
    assert isinstance(response, Trajectory)
    assert shown(judged(response, "full")) == (
        "# 1: the assistant says\na\ufffd\n"
        '# 2: the assistant makes tool call 1\nf\ufffd({"x\ufffd":"\ufffd"})\n'
        "# 3: result of tool call 1\nb\ufffd\n"
        "# 4: the assistant says\nc"
    )
    assert "\\u0000" not in response.json
    response.json.encode()


def test_results_are_told_apart_by_id_by_name_and_by_order() -> None:
    calls = [{"id": i, "function": {"name": n, "arguments": {}}} for i, n in ("ax", "by", "cx")]
    response = respond([
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "of c"},
        {"role": "function", "name": "y", "content": "of b"},
        {"role": "tool", "content": "of a"},
        {"role": "tool", "tool_call_id": "zz", "content": "of nobody"},
    ])  # fmt: skip
    said = shown(judged(response, "full"))
    assert "# 4: result of tool call 3\nof c\n" in said
    assert "# 5: result of tool call 2\nof b\n" in said
    assert "# 6: result of tool call 1\nof a\n" in said
    assert said.endswith("# 7: result of a tool call\nof nobody")


@pytest.mark.parametrize(
    ("messages", "reply"),
    [
        ([{"role": "assistant", "content": "Plan.", "tool_calls": [CALL]},
          {"role": "tool", "content": "6"}], "Plan."),
        ([{"role": "assistant", "content": "Early."},
          {"role": "assistant", "content": "<think>Hm, 5 or"}], ""),
        ([{"role": "assistant", "content": "Early."},
          {"role": "assistant", "content": "\n\n", "tool_calls": [CALL]}], "Early."),
        ([{"role": "user", "content": "Hello?"}], ""),
    ],
)  # fmt: skip
def test_the_reply_is_the_last_text_of_the_assistant(messages: Any, reply: str) -> None:
    assert reply_of(respond(messages)) == judged(respond(messages), "reply") == reply


def test_thoughts_leave_every_message_and_stay_where_they_are_kept() -> None:
    response = respond([
        {"role": "assistant", "content": "<think>1</think>One.", "reasoning_content": None},
        {"role": "assistant", "content": "Two.", "reasoning_content": "2"},
    ])  # fmt: skip
    for thinking in ("auto", "strip"):
        whole = judged(response, "assistant", thinking)  # type: ignore[arg-type]
        assert isinstance(whole, Transcript)
        assert whole.text == "One.\n\nTwo."
    whole = judged(response, "assistant", "keep")
    assert isinstance(whole, Transcript)
    assert whole.text == "<think>1</think>One.\n\n<think>\n2\n</think>\n\nTwo."


def test_a_thought_that_the_template_opened_ends_in_each_message() -> None:
    response = respond([
        {"role": "assistant", "content": "hm</think>One.", "tool_calls": [CALL]},
        {"role": "tool", "content": "</think>6"},
        {"role": "assistant", "content": "still thinking"},
    ])  # fmt: skip
    whole = judged(response, "full", "strip")
    assert isinstance(whole, Transcript)
    assert [part.text for part in whole.parts] == ["One.", 'mul({"a":2,"b":3})', "</think>6"]
    assert whole.reply == ""


def test_long_results_are_shortened_alike_at_both_ends() -> None:
    parts = (
        Part("said", "s" * 400),
        Part("result", "A" + "a" * 9998 + "Z", 1),
        Part("result", "short", 2),
        Part("result", "B" + "b" * 4998 + "Y", 3),
        Part("said", "done"),
    )
    whole = show(transcript(*parts), 1000)
    texts = [piece.text for piece in whole.pieces if not piece.is_ours]
    room = 4000 - 5 * LINE_CHARACTERS - 400 - 4 - 5
    share = room // 2
    assert [len(text) for text in texts] == [
        400, share // 2, share - share // 2, 5, share // 2, share - share // 2, 4
    ]  # fmt: skip
    assert (texts[1][0], texts[2][-1], texts[4][0], texts[5][-1]) == ("A", "Z", "B", "Y")
    ours = [piece.text for piece in whole.pieces if piece.is_ours]
    assert ours[2] == f"about {-(-(10_000 - share) // 4)} tokens are left out here"
    total = sum(len(part.text) for part in parts)
    kept = sum(map(len, texts))
    assert (whole.shown_tokens, whole.left_out_tokens) == (-(-kept // 4), -(-(total - kept) // 4))


def test_messages_between_the_first_and_the_last_are_left_out_when_nothing_else_helps() -> None:
    parts = tuple(Part("said", f"{i:03}" + "x" * 297) for i in range(100))
    said = shown(transcript(*parts), 1000)
    assert said.startswith("# 1: the assistant says\n000")
    # Room for eight of the newest in three quarters, and for three of the oldest in the rest.
    assert "\n# messages left out here: 89, of about 6675 tokens\n# 93: the" in said
    assert said.endswith("x" * 297)
    assert "\n099x" in said


def test_of_a_last_message_that_is_too_long_the_end_is_shown() -> None:
    said = shown(transcript(Part("result", "r", 1), Part("said", "a" * 9999 + "Z")), 100)
    assert said.startswith(
        "# messages left out here: 1, of about 1 tokens\n# 2: the assistant says\n# about"
    )
    assert said.endswith("aZ")


@given(
    st.lists(
        st.tuples(st.sampled_from(["said", "call", "result", "other"]), st.integers(0, 5000)),
        min_size=1,
        max_size=40,
    ),
    st.integers(16, 4000),
)
def test_what_is_shown_fits_and_what_is_left_out_is_counted(
    sizes: list[tuple[Any, int]], max_tokens: int
) -> None:
    parts = tuple(Part(kind, "x" * size, 1, "user") for kind, size in sizes)
    whole = show(transcript(*parts), max_tokens)
    kept = sum(len(piece.text) for piece in whole.pieces if not piece.is_ours)
    total = sum(size for _, size in sizes)
    assert kept <= max_tokens * 4
    assert whole.shown_tokens <= max_tokens
    assert whole.left_out_tokens == -(-(total - kept) // 4)
    notes = [piece.text for piece in whole.pieces if piece.is_ours and "left out" in piece.text]
    assert bool(notes) == (kept < total) or all(p.text == "" for p in parts if p.kind == "said")
    assert measure(transcript(*parts), max_tokens) == (whole.shown_tokens, whole.left_out_tokens)
    if total + len(parts) * LINE_CHARACTERS <= max_tokens * 4:
        assert kept == total
    # The last message is always among what is shown.
    assert kept > 0 or sizes[-1][1] == 0


def test_of_a_long_text_the_end_counts() -> None:
    assert measure("x" * 401, 100) == (100, 1)
    assert measure("x" * 401, None) == (101, 0)
    assert MIN_SHARE < 401


def test_a_prompt_with_tool_calls_says_what_was_called() -> None:
    prompt = messages_of([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "2x3?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "function", "name": "mul", "content": "6"},
    ])  # fmt: skip
    assert prompt_text(prompt) == (
        'SYSTEM: Be brief.\n\nUSER: 2x3?\n\nASSISTANT: [tool call: mul({"a":2,"b":3})]\n\nTOOL: 6'
    )


def test_prompts_and_rubrics_without_news_keep_their_keys() -> None:
    """Stored rows bear them: these values were computed by commit 271fc8f."""
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    padded = [m | {"name": None, "tool_calls": []} for m in plain]
    assert prompt_key(messages_of(padded)) == prompt_key(messages_of(plain)) == PROMPT_KEY
    criteria = [Criterion("c1", "text", 5)]
    assert content_hash(criteria) != content_hash(criteria, "full")
    one = {"team": "t", "prompt": "p", "teachers": [], "students": [], "rubricator": "r"}
    assert induction_key(**one) == INDUCTION_KEY  # type: ignore[arg-type]
    assert induction_key(**one, view="full") != INDUCTION_KEY  # type: ignore[arg-type]


PROMPT_KEY = "158ab9a5f9ffbe1efbdc525dc9e734555520397d1507d42ac3a99b025a6507d4"
INDUCTION_KEY = "d49f241f97aa00b732bcb85f3a960ef6a2ea29c450b660ec06fb7ac297c23fdf"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": {"value": "a"}},
        {"type": "output_text", "text": 5},
        {"type": "refusal"},
        {"type": "", "image": "picture"},
        {"type": "image", "text": ""},
        {"type": 5, "text": "x"},
        {"text": "a", "image": "picture"},
    ],
)
def test_a_part_that_is_no_text_is_none_in_any_form_of_its_message(part: dict[str, Any]) -> None:
    """Stored, sent by the SDK, and sent by a trainer without what it holds."""
    message = {"role": "assistant", "content": [{"type": "text", "text": "a"}, part]}
    sent = Message.model_validate(message)
    assert len(sent.unsupported) == 1
    assert len(Answer(response_of([sent.model_dump()])).unsupported) == 1
    trained = wire_response(normal_conversation([message], "completion"), "completion")
    assert isinstance(trained, list)
    assert len(trained[0].unsupported) == 1
    assert "picture" not in str(trained[0].content)
