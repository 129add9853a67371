"""Test rows of HealthBench's meta-evaluation that lack something, and rubrics without labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.test_exchange import rubric, rubric_of
from markscheme.exchange import Malformed, NotRepresentable, dump, load
from markscheme.exchange.meta_eval import together
from markscheme.schema import Criterion
from markscheme.schema.base import MAX_CRITERIA

FORMAT = "healthbench-meta-eval"
ROWS = Path(__file__).parents[1] / "rubric_rows" / f"{FORMAT}.jsonl"
ROW: dict[str, Any] = json.loads(ROWS.read_text("utf-8").splitlines()[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the content holds no row"),
        (3, "the content: must be an object"),
        ([ROW, 3], r"\[1\]: must be an object"),
        (ROW | {"binary_labels": [1]}, "binary_labels: must be a list of true and false"),
        (ROW | {"rubric": 3}, "rubric: must be"),
    ],
)
def test_what_is_no_row_is_refused_by_place(content: Any, message: str) -> None:
    with pytest.raises(Malformed, match=f"^{message}"):
        load(content, FORMAT)


def test_rows_with_more_criteria_than_a_rubric_has_are_refused() -> None:
    rows = [ROW | {"rubric": f"Says {number}."} for number in range(MAX_CRITERIA + 1)]
    with pytest.raises(NotRepresentable, match=f"there are {MAX_CRITERIA + 1} criteria"):
        load(rows, FORMAT)


def test_a_prompt_that_is_written_in_two_ways_comes_back_in_both() -> None:
    rows = [ROW, ROW | {"prompt": json.dumps(ROW["prompt"]), "rubric": "Says two."}]
    assert dump(rubric_of(load(rows, FORMAT)), FORMAT).content == rows


def test_a_completion_with_two_texts_is_kept_with_each_row() -> None:
    rows = [ROW, ROW | {"completion": "Another text.", "rubric": "Says two."}]
    assert dump(rubric_of(load(rows, FORMAT)), FORMAT).content == rows


@pytest.mark.parametrize(
    "labels", [{}, {FORMAT: "x"}, {FORMAT: {"labels": "x"}}, {FORMAT: {"labels": [3]}}]
)
def test_a_rubric_of_whose_criteria_none_has_labels_is_not_written(labels: Any) -> None:
    made = rubric(Criterion(text="Says one.", points=1, metadata=labels)).model_copy(
        update={"metadata": {FORMAT: {"completions": {}}}}
    )
    with pytest.raises(NotRepresentable, match="none of its criteria has labels"):
        dump(made, FORMAT)


def test_rows_of_a_prompt_are_together_and_others_by_themselves() -> None:
    rows = [{"prompt": "a"}, 3, {"prompt": "b"}, {"prompt": "a", "x": 1}, {"x": 2}]
    assert list(together(enumerate(rows, 1))) == [
        (1, [{"prompt": "a"}, {"prompt": "a", "x": 1}]),
        (2, [3]),
        (3, [{"prompt": "b"}]),
        (5, [{"x": 2}]),
    ]


@pytest.mark.parametrize("change", [{"completion_id": 3}, {"completion_id": "none of these"}])
def test_a_label_without_its_completion_is_written_without_it(change: dict[str, Any]) -> None:
    made = rubric_of(load([ROW], FORMAT))
    (criterion,) = made.criteria
    (label,) = criterion.metadata[FORMAT]["labels"]
    metadata = {FORMAT: criterion.metadata[FORMAT] | {"labels": [label | change]}}
    edited = made.model_copy(
        update={"criteria": [criterion.model_copy(update={"metadata": metadata})]}
    )
    (row,) = dump(edited, FORMAT).content
    assert "completion" not in row
    assert row == {name: value for name, value in ROW.items() if name != "completion"} | change
