"""Columns by name: what is read, what is decoded, and which row and column are at fault."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from markscheme.data import Columns, RowError, RowReader, SourceError, open_source
from markscheme.teaching import PromptEntry

FIELDS = list(PromptEntry.model_fields)


def read(
    file: Path, columns: Columns | None = None, warnings: list[str] | None = None
) -> list[PromptEntry]:
    heard = warnings if warnings is not None else []
    reader = RowReader(PromptEntry.model_validate, FIELDS, columns, heard.append)
    source = open_source(file)
    entries = [reader.read(row) for row in source.rows()]
    reader.check_named(source.name)
    return entries


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_named_columns_are_read_in_place_of_the_usual(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "a.jsonl",
        {"question": "a", "reference_answer": "b", "prompt": "not this"},
        {"question": "c", "reference_answer": ["d", "e"]},
    )
    entries = read(file, Columns(prompt="question", teacher="reference_answer"))
    assert [(entry.prompt, entry.teacher_responses) for entry in entries] == [
        ("a", ["b"]),
        ("c", ["d", "e"]),
    ]


def test_a_csv_holds_lists_and_messages_as_json(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    messages = json.dumps([{"role": "user", "content": "m"}]).replace('"', '""')
    file.write_text(
        f'prompt,teacher_responses\na,"[""b"", ""c""]"\n"{messages}",d\n"[1] is it?",\n'
    )
    first, second, third = read(file)
    assert (first.prompt, first.teacher_responses) == ("a", ["b", "c"])
    assert isinstance(second.prompt, list)
    assert (second.prompt[0].content, second.teacher_responses) == ("m", ["d"])
    assert (third.prompt, third.teacher_responses) == ("[1] is it?", [])


@pytest.mark.parametrize("times", [1, 2])
def test_a_prompt_may_be_messages_in_a_json_text(times: int, tmp_path: Path) -> None:
    prompt: Any = [{"role": "user", "content": "m", "name": None}]
    for _ in range(times):
        prompt = json.dumps(prompt)
    (entry,) = read(jsonl(tmp_path / "a.jsonl", {"prompt": prompt}))
    assert isinstance(entry.prompt, list)
    assert entry.prompt[0].content == "m"


@pytest.mark.parametrize("prompt", ["[1, 2]", '[{"a": 1}]', '"quoted"', "[oops", "[]", "[" * 5000])
def test_a_prompt_that_only_looks_like_json_stays_text(prompt: str, tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.jsonl", {"prompt": prompt}))[0].prompt == prompt


def test_a_response_that_is_a_json_list_stays_one_response_in_a_named_column(
    tmp_path: Path,
) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "List two.", "answer": '["a", "b"]'})
    assert read(file, Columns(teacher="answer"))[0].teacher_responses == ['["a", "b"]']


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"prompt": 5}, None, "line 1: prompt: must be a text or a list of messages"),
        ({"question": 5}, Columns(prompt="question"), "line 1: question: must be a text"),
        (
            {"q": [{"role": "user"}]},
            Columns(prompt="q"),
            r"line 1: q\[0\].content: is missing",
        ),
        (
            {"prompt": "a", "ref": ["b", 3]},
            Columns(teacher="ref"),
            r"line 1: ref\[1\]: must be a text",
        ),
        (
            {"question": "a", "answer": "b"},
            None,
            "line 1: prompt: is missing; the row has 'answer', 'question': "
            "name its column with --prompt-column",
        ),
        (
            {"question": "a"},
            Columns(prompt="q", option="{}_column"),
            "line 1: q: is missing; the row has 'question': name its column with prompt_column",
        ),
        ({"prompt": "a\ud83d"}, None, "line 1: prompt: half a character"),
        ({"prompt": "a", "teacher_responses": "b"}, None, "teacher_responses: must be a list"),
    ],
)
def test_the_column_at_fault_is_named_as_the_file_names_it(
    row: dict[str, Any], columns: Columns | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RowError, match=message):
        read(jsonl(tmp_path / "a.jsonl", row), columns)


def test_a_named_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b"})
    with pytest.raises(
        SourceError,
        match="has no column 'answers', which --teacher-column names; "
        "its first row has 'answer', 'prompt'",
    ):
        read(file, Columns(teacher="answers"))


def test_a_nearly_known_column_is_warned_of_once_with_its_row(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "a", "teacher_responses": ["b"], "prompt_id": "x", "answer": "y"},
        {"prompt": "a", "teacherResponse": ["b"]},
        {"prompt": "a", "teacherResponse": ["b"], "extra": 1},
    )
    warnings: list[str] = []
    read(file, warnings=warnings)
    assert warnings == [
        f"{file}, line 2: the column 'teacherResponse' is not read; "
        "did you mean 'teacher_responses'?"
    ]


def test_columns_of_other_commands_are_no_misspellings(tmp_path: Path) -> None:
    row = {"prompt": "a", "student_responses": ["b"], "rollouts": ["c"], "rubric_id": "r", "id": 1}
    warnings: list[str] = []
    read(jsonl(tmp_path / "a.jsonl", row), warnings=warnings)
    assert warnings == []


def test_rows_with_ever_new_columns_do_not_fill_the_memory(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"prompt": "a", f"c{i}": 1} for i in range(3000)))
    reader = RowReader(PromptEntry.model_validate, FIELDS)
    for row in open_source(file).rows():
        reader.read(row)
    assert len(reader._layouts) == 1000


def test_a_named_column_of_a_table_may_be_null_in_every_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = {"q": ["a", None], "answer": pyarrow.array([None, None], pyarrow.string())}
    parquet.write_table(pyarrow.table(table), file)
    reader = RowReader(PromptEntry.model_validate, FIELDS, Columns(prompt="q", teacher="answer"))
    source = open_source(file)
    first, second = source.rows()
    assert reader.read(first).teacher_responses == []
    reader.check_named(source.name)
    with pytest.raises(RowError, match="row 2: q: is missing; the row has 'answer', 'q': name its"):
        reader.read(second)


def test_a_named_column_may_hold_one_response_as_messages_or_none(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "b"}
    rows = [{"prompt": "a", "chosen": [message]}, {"prompt": "a", "chosen": ""}]
    first, second = read(jsonl(tmp_path / "a.jsonl", *rows), Columns(teacher="chosen"))
    assert [[m.content for m in response] for response in first.teacher_responses] == [["b"]]  # type: ignore[union-attr]
    assert second.teacher_responses == []
