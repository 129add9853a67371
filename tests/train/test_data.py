"""Data in, TRL's rows out; what is wrong is named by its row."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from markscheme.data import Columns
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


def test_a_tool_call_keeps_its_own_arguments_and_no_other(tmp_path: Path) -> None:
    """Other rows have other tools; a table of structs would give each the arguments of all."""

    def call(**arguments: Any) -> dict[str, Any]:
        function = {"name": "look_up", "arguments": arguments}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": function}],
        }

    file = tmp_path / "data.jsonl"
    prompts = [
        [{"role": "user", "content": "Oslo?"}, call(city="Oslo"), {"role": "tool", "content": "7"}],
        [{"role": "user", "content": "1+1?"}, call(number=1)],
    ]
    lines = [
        {"prompt": prompts[0], "teacher_responses": ["Seven.", [call(city="Bergen")]]},
        {"prompt": prompts[1]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = as_dataset(read_examples(file), chat=True)
    made = [row["prompt"][1]["tool_calls"][0]["function"]["arguments"] for row in rows]
    assert made == [{"city": "Oslo"}, {"number": 1}]
    assert rows[0]["teacher_responses"][0] == "Seven."
    bergen = rows[0]["teacher_responses"][1][0]["tool_calls"][0]["function"]
    assert bergen["arguments"] == {"city": "Bergen"}


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(DataError, match="no chat template"):
        as_dataset(read_examples(file), chat=False)


def test_a_parquet_column_of_any_name_is_read_and_rubric_ids_reach_the_rows(
    tmp_path: Path,
) -> None:
    file = tmp_path / "data.parquet"
    message = {"role": "user", "content": "a", "name": None, "tool_calls": None}
    rows = [
        {"question": [message], "reference_answer": "b", "rubric": "rub_1"},
        {"question": [message], "reference_answer": None, "rubric": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    columns = Columns(prompt="question", teacher="reference_answer", rubric="rubric")
    data = as_dataset(read_examples(file, columns), chat=True)
    assert data["teacher_responses"][:] == [["b"], None]
    assert data["rubric_id"][:] == ["rub_1", None]
    assert data["prompt"][0] == [{"role": "user", "content": "a"}]


def test_a_misspelt_column_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "teacher_response": ["b"]}\n')
    warnings: list[str] = []
    read_examples(file, warn=warnings.append)
    assert len(warnings) == 1
    assert "did you mean 'teacher_responses'?" in warnings[0]


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "org/name"])
def test_missing_data_are_a_sentence(name: str) -> None:
    with pytest.raises(DataError, match=f"no file or folder {name}"):
        read_examples(name)
