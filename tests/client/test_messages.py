"""The one form of chat messages, on the wire and in files."""

from typing import Any

import pytest

from client.test_exchange import four, rubric
from markscheme.exchange import NotRepresentable, dump, load
from markscheme.messages import MessageError, normal_message, plain_prompt, unsupported_parts
from markscheme.schema import Message, Rollout

CALL = {"type": "function", "function": {"name": "mul", "arguments": {"a": 2}}, "id": "x"}


def test_a_prompt_of_a_file_keeps_its_tool_calls() -> None:
    prompt = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "function", "name": "mul", "tool_call_id": "x", "content": "6"},
    ]
    assert plain_prompt(prompt) == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "mul", "tool_call_id": "x", "content": "6"},
    ]


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, ["image_url"]),
        ({"content": "a", "images": ["b"]}, ["images"]),
        ({"content": None, "audio": {"id": "x"}}, ["audio"]),
        ({"content": "a", "images": [], "audio": None}, []),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}, []),
        ({"content": [{"type": "server_tool_use", "name": "f"}]}, ["server_tool_use"]),
        ({"content": [{"kind": "text"}]}, ["without a type"]),
    ],
)
def test_what_is_not_text_is_named(message: dict[str, Any], kinds: list[str]) -> None:
    assert unsupported_parts(normal_message({"role": "assistant"} | message)) == kinds


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a", "reasoning_content": "hm"},
        {"content": "a", "reasoning": "hm"},
        {"content": "a", "thinking": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "a"]},
    ],
)
def test_thinking_of_every_spelling_is_reasoning_content(message: dict[str, Any]) -> None:
    normal = normal_message({"role": "assistant"} | message)
    assert (normal["content"], normal["reasoning_content"]) == ("a", "hm")


def test_a_refusal_is_what_the_assistant_said() -> None:
    message = Message.model_validate(
        {"role": "assistant", "content": None, "refusal": "I cannot.", "annotations": []}
    )
    assert message.model_dump() == {"role": "assistant", "content": "I cannot."}


def test_calls_that_cannot_be_read_are_refused_with_their_place() -> None:
    for calls in (5, [5], ["x"], {"a": 1}):
        with pytest.raises(MessageError, match=r"^prompt\[1\]\.tool_calls"):
            normal_message({"role": "assistant", "tool_calls": calls}, "prompt[1]")


def test_a_rollout_is_sent_as_it_is_read() -> None:
    sent = {"id": "r", "messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    rollout = Rollout.model_validate(sent)
    assert rollout.model_dump(exclude_none=True)["messages"][0]["tool_calls"] == [CALL]
    assert Rollout.model_validate_json(rollout.model_dump_json()) == rollout


def test_the_native_format_holds_view_and_tool_calls_and_others_say_what_they_lose() -> None:
    prompt = (
        Message(role="user", content="2 times 3?"),
        Message.model_validate({"role": "assistant", "tool_calls": [CALL]}),
    )
    made = rubric(*four(), prompt=prompt).model_copy(update={"view": "full"})
    back = load(dump(made, "native").content, "native")
    assert (back.view, back.prompt) == ("full", prompt)
    with pytest.raises(NotRepresentable, match="no place for the view full"):
        dump(made, "healthbench")
    assert "view" not in dump(rubric(*four()), "native").content


@pytest.mark.parametrize("calls", ["", "null", "[]", None])
def test_a_text_of_no_tool_calls_is_none(calls: str | None) -> None:
    message = {"role": "assistant", "content": "a", "tool_calls": calls}
    assert normal_message(message)["tool_calls"] is None


@pytest.mark.parametrize("calls", ["look it up", "{", '"f"', "7"])
def test_a_text_that_holds_no_tool_calls_is_refused(calls: str) -> None:
    with pytest.raises(MessageError, match="must be a list of tool calls"):
        normal_message({"role": "assistant", "content": "a", "tool_calls": calls})


ANTHROPIC = [
    {"role": "user", "content": "What is 2 times 3?"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I multiply."},
            {"type": "tool_use", "id": "x", "name": "mul", "input": {"a": 2}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "6"}]},
            {"type": "tool_result", "tool_use_id": "y"},
            {"type": "text", "text": "Go on."},
        ],
    },
]


def test_tool_parts_of_anthropics_messages_are_tool_calls_and_results() -> None:
    expected = [
        {"role": "user", "content": "What is 2 times 3?"},
        {"role": "assistant", "content": "I multiply.", "tool_calls": [CALL]},
        {"role": "tool", "content": "6", "tool_call_id": "x"},
        {"role": "tool", "content": "", "tool_call_id": "y"},
        {"role": "user", "content": "Go on."},
    ]
    assert plain_prompt(ANTHROPIC) == expected
    rollout = Rollout.model_validate({"id": "r", "messages": ANTHROPIC})
    assert rollout.messages is not None
    assert [message.role for message in rollout.messages] == [each["role"] for each in expected]
    assert rollout.messages[1].tool_calls is not None
    assert rollout.messages[2].text == "6"
    alone = {"role": "assistant", "content": ANTHROPIC[1]["content"][1:]}  # type: ignore[index]
    assert Message.model_validate(alone).content is None


def test_an_image_in_a_tools_result_is_still_named() -> None:
    part = {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}
    rollout = Rollout.model_validate({"id": "r", "messages": [{"role": "user", "content": [part]}]})
    assert rollout.messages is not None
    assert rollout.messages[0].unsupported == ["image"]


@pytest.mark.parametrize("role", ["ipython", "observation", "environment", "tool_response"])
def test_a_templates_name_for_a_tools_result_is_the_role_tool(role: str) -> None:
    message = {"role": role, "content": {"sum": 3}}
    assert normal_message(message)["role"] == "tool"
    assert normal_message(message)["content"] == '{"sum": 3}'
    assert Message.model_validate(message).role == "tool"
    assert plain_prompt([message | {"content": "3"}]) == [{"role": "tool", "content": "3"}]


@pytest.mark.parametrize("role", ["nobody", 1, ["tool"], None])
def test_a_role_that_nobody_has_is_left_to_the_validation(role: object) -> None:
    assert normal_message({"role": role, "content": "x"})["role"] == role
    with pytest.raises(ValueError, match="role"):
        Message.model_validate({"role": role, "content": "x"})


def test_a_deep_part_is_a_part_that_is_no_text() -> None:
    part: Any = {}
    for _ in range(5000):
        part = {"a": part}
    for field in ("image", "audio"):
        message = normal_message({"role": "user", "content": [{"type": field, field: part}]})
        assert unsupported_parts(message) == [field]
        assert unsupported_parts(normal_message({"role": "user", field: part})) == [field]


def test_what_is_wrong_is_said_shortly() -> None:
    long = "x" * 70_000
    for message in (
        {"role": long, "content": "a"},
        {"role": "user", "content": [{"type": long}]},
        {"role": "user", "content": [{long: 1}]},
    ):
        with pytest.raises(MessageError) as error:
            plain_prompt([message], "prompt")
        assert len(str(error.value)) < 400
