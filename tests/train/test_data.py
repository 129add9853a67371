"""JSONL in, rows out; what is wrong is named by its line."""

from pathlib import Path

import pytest

from markscheme_train.data import as_dataset, read_examples
from markscheme_train.errors import DataError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ('{"prompt": "a"}\n\n{"teacher_responses": ["b"]}\n', "line 3: prompt"),
        ('{"prompt": "a", "teacher_responses": []}\n', "line 1: teacher_responses"),
        ('{"prompt": "a", "teacher_responses": "b"}\n', "line 1: teacher_responses"),
        ('["a"]\n', "line 1: must be a JSON object"),
        ('{"prompt": 5}\n', "line 1: prompt: must be a text or a list of messages"),
        ('{"prompt": "a\\ud83d"}\n', "line 1: prompt: half a character"),
        (
            '{"prompt": "a", "teacher_responses": ["b", 3]}\n',
            r"line 1: teacher_responses\[1\]: must be a text",
        ),
        ("\n", "has no prompts"),
    ],
)
def test_the_line_at_fault_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_examples(file)


def test_rows_keep_order_and_absent_teachers_are_none(data_file: Path) -> None:
    rows = as_dataset(read_examples(data_file), chat=False)
    assert rows["prompt"][:2] == ["w1 w2 w3", "w4"]
    assert rows["teacher_responses"][:2] == [None, ["w5 w6"]]


def test_with_a_chat_template_a_text_is_one_user_message(data_file: Path) -> None:
    assert as_dataset(read_examples(data_file), chat=True)[0]["prompt"] == [
        {"content": "w1 w2 w3", "role": "user"}
    ]


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(DataError, match="no chat template"):
        as_dataset(read_examples(file), chat=False)
