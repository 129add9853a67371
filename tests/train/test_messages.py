"""Chat messages as TRL, chat templates and tables have them; what is no text is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from markscheme_train.data import as_dataset, read_examples
from markscheme_train.errors import DataError
from markscheme_train.reward import completion_text, wire_prompt

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant"}
CALL = ASSISTANT | {
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "mul", "arguments": {}}}],
}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (
            [
                CALL,
                {"role": "tool", "name": "mul", "content": "6"},
                ASSISTANT | {"content": "It is 6."},
            ],
            "It is 6.",
        ),
        ([ASSISTANT], ""),
        ([CALL], ""),
        ([], ""),
        ([ASSISTANT | {"content": []}], ""),
        ([ASSISTANT | {"content": ""}], ""),
        (
            [
                ASSISTANT
                | {
                    "content": [
                        {"type": "text", "text": "a"},
                        "b",
                        {"type": "text", "text": "c", "image": None},
                    ]
                }
            ],
            "abc",
        ),
        (
            [
                {"role": "tool", "content": [{"type": "image", "image": "x"}]},
                ASSISTANT | {"content": "a"},
            ],
            "a",
        ),
        ([ASSISTANT | {"content": {"type": "text", "text": "a"}}], "a"),
    ],
)
def test_the_text_of_a_completion_as_chat_templates_have_it(
    completion: list[dict[str, Any]], text: str
) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize("read", [completion_text, wire_prompt])
@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            ASSISTANT
            | {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
            r"\[0\]\.content\[1\]: a part of type 'image_url'; only text can be used",
        ),
        (
            ASSISTANT | {"content": [{"image": b"x", "text": "a"}]},
            r"content\[0\]: a part without a type \(image\)",
        ),
        (
            ASSISTANT | {"content": [{"type": "text", "text": None}]},
            r"content\[0\]\.text: is missing",
        ),
        (
            ASSISTANT | {"content": [None]},
            r"content\[0\]: must be a part with type and text, not null",
        ),
        (
            ASSISTANT | {"content": 3.5},
            "content: must be a text or a list of text parts, not a number",
        ),
        ({"content": "a"}, r"\[0\]\.role: is missing"),
        ("a", r"\[0\]: must be a message with role and content"),
    ],
)
def test_what_is_no_text_is_named_and_never_left_out(read: Any, message: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read([message])


def test_a_prompt_as_chat_templates_have_it() -> None:
    prompt: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2x3?"}]},
        CALL,
        {"role": "function", "name": "mul", "content": "6"},
        {"role": "user", "content": "So\0?", "name": None},
    ]
    sent = wire_prompt(prompt)
    assert not isinstance(sent, str)
    assert [(message.role, message.content) for message in sent] == [
        ("system", "Be brief."),
        ("user", "2x3?"),
        ("assistant", ""),
        ("tool", "6"),
        ("user", "So\ufffd?"),
    ]
    with pytest.raises(DataError, match=r"prompt\[0\]\.role: 'human' is none of system"):
        wire_prompt([{"role": "human", "content": "a"}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], r"prompt\[0\]\.content: is missing"),
        ([{"content": "a"}], r"prompt\[0\]\.role: is missing"),
        (
            [{"role": "human", "content": "a"}],
            r"prompt\[0\]\.role: 'human' is none of system, developer, user",
        ),
        (
            [USER, {"role": "user", "content": 3}],
            r"prompt\[1\]\.content: must be a text or a list of text parts, not a num",
        ),
        ([USER, "a"], r"prompt\[1\]: must be a message"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "image", "image": "b"}],
                }
            ],
            r"prompt\[0\]\.content\[1\]: a part of type 'image'; only text",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "content": "a"}]}],
            r"prompt\[0\]\.content\[0\]\.text: is missing",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": 5}],
            r"prompt\[1\]\.tool_calls: must be a list of tool calls",
        ),
        ([USER, {"role": "assistant", "tool_calls": []}], r"prompt\[1\]\.content: is missing"),
        ([{"role": "user", "content": "a\0"}], r"prompt\[0\]\.content: must not contain the NUL"),
        ([], "prompt: must not be"),
    ],
)
def test_the_field_at_fault_is_named(tmp_path: Path, messages: list[Any], message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": messages}))
    with pytest.raises(DataError, match=f"line 1: {message}"):
        read_examples(file)


def test_messages_may_be_as_tables_have_them(tmp_path: Path) -> None:
    """A column for whatever some message of some row has, null in all the others."""
    file = tmp_path / "data.jsonl"
    empty = {
        "name": None,
        "tool_calls": None,
        "reasoning": "",
        "call": {"name": None, "arguments": [None]},
    }
    file.write_text(
        json.dumps(
            {
                "prompt": [
                    {
                        "role": "developer",
                        "content": [
                            {"type": "text", "text": "Be "},
                            {"type": "text", "text": "brief.", "image": None},
                        ],
                        **empty,
                    },
                    USER | empty,
                ],
                "teacher_responses": None,
                "source": "x",
            }
        )
        + "\n"
    )
    assert as_dataset(read_examples(file), chat=True)["prompt"][0] == [
        {"role": "system", "content": "Be brief."},
        USER,
    ]


def test_lines_end_at_the_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    prompt = "Name\x0b a\x0c colour.\x1c\x1d\x1e\x85\u2028\u2029\rOne word."
    row = json.dumps({"prompt": prompt, "teacher_responses": [prompt]}, ensure_ascii=False)
    file.write_bytes(f"\ufeff{row}\r\n\r\n{row}\n".encode())
    assert [(example.prompt, example.teacher_responses) for example in read_examples(file)] == [
        (prompt, [prompt])
    ] * 2
    file.write_bytes(row.encode("utf-16"))
    with pytest.raises(
        DataError, match=r"data\.jsonl, line 1: this is UTF-16 text; save it as UTF-8"
    ):
        read_examples(file)
