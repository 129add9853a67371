"""Rubrics made ahead with ``markscheme induce``: a training then induces nothing in its steps."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from fakes.shell import command
from markscheme import Client
from markscheme_train.config import build_config
from markscheme_train.step_log import StepRecord
from markscheme_train.training import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def run(settings: dict[str, Any], client: Client) -> list[StepRecord]:
    records: list[StepRecord] = []
    train(build_config(settings), client, resume=False, on_record=records.append)
    return records


def test_a_training_with_frozen_rubrics_induces_nothing(
    settings: dict[str, Any], service: str, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "ahead.parquet"
    rows = [
        {
            "question": f"Name {word}. Use at most 3 words. Do not use any commas.",
            "answer": "w1 w2",
            "student_responses": ["w1, w2, w3, w4"],
        }
        for word in ("one", "two", "three", "four")
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    columns = ("--prompt-column", "question", "--teacher-column", "answer")
    words = ("induce", str(file), "--url", service, *columns)
    made = command(*words, directory=tmp_path, settings={})
    assert made.returncode == 0, made.stderr
    before = [rubric.id for rubric in client.rubrics(limit=100).data]
    assert len(before) == 4
    keys = {"prompt_column": "question", "teacher_column": "answer", "reuse": "frozen"}
    records = run(settings | keys | {"data": str(file)}, client)
    assert [record.origins for record in records] == [{"reused": 2}, {"reused": 2}]
    assert [record.unscored for record in records] == [0, 0]
    assert [rubric.id for rubric in client.rubrics(limit=100).data] == before


def test_a_rubric_id_in_the_data_scores_the_rollouts(
    settings: dict[str, Any], client: Client, tmp_path: Path
) -> None:
    criteria = [{"text": "Any.", "points": 1, "check": {"kind": "max_words", "value": 99}}]
    mine = client.create_rubric("another prompt", criteria)
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": f"w{i}", "mark": mine.id} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"data": str(file), "rubric_column": "mark", "max_steps": 1}
    (record,) = run(settings | keys, client)
    assert record.origins == {"given": 2}
    assert (record.reward, {rate.rubric for rate in record.criteria}) == (1.0, {mine.id})
