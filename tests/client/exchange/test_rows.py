"""Test what of a row is kept for its way back, and what cannot be."""

from typing import Any

import pytest

from client.test_exchange import rubric, rubric_of
from markscheme.exchange import Malformed, NotRepresentable, detect_format, dump, load
from markscheme.exchange.rows import HOW
from markscheme.schema import Criterion
from markscheme.schema.metadata import MAX_METADATA_BYTES

HEALTHBENCH: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Why?"}],
    "example_tags": ["theme:a", "x" * 200],
    "rubrics": [{"criterion": "It says why.", "points": 2, "tags": ["axis:one"]}],
}


def test_other_fields_of_the_criteria_that_are_too_many_are_a_loss() -> None:
    criteria = [
        {"criterion": f"It says {n}.", "points": 1, "note": "x" * (MAX_METADATA_BYTES // 3)}
        for n in range(4)
    ]
    content = HEALTHBENCH | {"rubrics": criteria}
    with pytest.raises(NotRepresentable, match="more than metadata can hold") as refused:
        load(content, "healthbench")
    assert refused.value.allowable
    found = load(content, "healthbench", allow_loss=True)
    assert [c.metadata for c in found.criteria] == [{}] * 4


def test_a_criterion_without_its_number_is_refused_by_place() -> None:
    content = HEALTHBENCH | {"rubrics": [{"criterion": "It says why.", "tags": []}]}
    with pytest.raises(Malformed, match=r"^rubrics\[0\].points: is missing"):
        load(content, "healthbench")


def test_a_tag_that_is_none_of_ours_stays_when_the_others_are_edited() -> None:
    found = load(HEALTHBENCH, "healthbench")
    edited = rubric_of(found).model_copy(update={"tags": ["theme:b"]})
    assert dump(edited, "healthbench").content["example_tags"] == ["theme:b", "x" * 200]


def test_a_path_in_the_metadata_that_anyone_edited_is_passed_over() -> None:
    found = load(HEALTHBENCH | {"prompt": "Why?"}, "healthbench")
    own = found.metadata["healthbench"]
    broken = {"healthbench": own | {HOW: own.get(HOW, {}) | {"prompt_at": "a."}}}
    made = rubric_of(found).model_copy(update={"metadata": broken})
    assert dump(made, "healthbench").content["prompt"] == "Why?"


def test_a_blank_text_is_written_in_no_format() -> None:
    blank = Criterion.model_construct(**Criterion(text="x", points=1).model_dump() | {"text": " "})
    for format, name in (("ropd", "ROPD"), ("healthbench", "HealthBench")):
        with pytest.raises(NotRepresentable, match=f"{name} takes no blank text"):
            dump(rubric(*[blank] * 4), format)  # type: ignore[arg-type]


def test_an_empty_list_is_of_no_format() -> None:
    with pytest.raises(Malformed, match="it is no object"):
        detect_format([])


def test_our_own_format_is_told_by_its_version() -> None:
    content = dump(rubric(Criterion(text="x", points=1)), "native").content
    assert detect_format(content) == "native"
