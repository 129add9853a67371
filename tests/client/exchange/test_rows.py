"""Test what of a row is kept for its way back, and what cannot be."""

from typing import Any

import pytest

from client.test_exchange import rubric, rubric_of
from markscheme.exchange import Malformed, NotRepresentable, detect_format, dump, load
from markscheme.exchange.rows import HOW
from markscheme.schema import Criterion, Message
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a text", "it is no object"),
        (3, "it is no object"),
        ({"rubrics": [{"criterion": "It says why."}]}, "its fields are 'rubrics'"),
    ],
)
def test_what_no_format_has_is_refused_with_its_fields(content: Any, told: str) -> None:
    with pytest.raises(Malformed, match=f"none of the known formats looks like this .{told}"):
        detect_format(content)


@pytest.mark.parametrize(
    ("format", "row"),
    [
        (
            "wildchecklists",
            {"prompt": "Why?", "requirements": [{"text": "It says why.", "importance": 40}]},
        ),
        ("openrubrics", {"instruction": "Why?", "rubric": [{"text": "It says why."}]}),
    ],
)
def test_a_list_of_objects_is_read_where_numbered_lines_are_usual(
    format: Any, row: dict[str, Any]
) -> None:
    found = load(row, format)
    assert [criterion.text for criterion in found.criteria] == ["It says why."]


def test_columns_of_different_lengths_are_no_list_of_criteria() -> None:
    columns = {"criterion": ["It says why.", "It says how."], "points": [2], "tags": [[], []]}
    with pytest.raises(Malformed, match=r"^rubrics: must be a list"):
        load(HEALTHBENCH | {"rubrics": columns}, "healthbench")


def test_a_prompt_that_is_given_and_cannot_be_stored_is_refused() -> None:
    content = {"criteria": [{"name": "a", "text": "Does it say why?"}]}
    part = {"type": "image", "width": float("inf")}
    with pytest.raises(Malformed, match="^the prompt: .*every number must be finite") as refused:
        load(content, "verifiers", prompt=[Message(role="user", content=[part])])
    assert refused.value.param == "prompt"


MAPPING: Any = {"prompt": "asked", "criteria": "items", "text": "words|says", "points": "worth"}
MAPPED: dict[str, Any] = {
    "asked": "Why?",
    "items": [{"words": "It says why.", "worth": 2}, {"says": "It is short.", "worth": 1}],
}


def test_a_text_that_stands_under_another_name_goes_back_there() -> None:
    found = load(MAPPED, "mapped", mapping=MAPPING)
    assert dump(rubric_of(found), "mapped").content == MAPPED


def test_a_mapping_in_the_metadata_that_anyone_edited_is_refused() -> None:
    found = load(MAPPED, "mapped", mapping=MAPPING)
    own = found.metadata["mapped"]
    broken = {"mapped": own | {HOW: own[HOW] | {"map": MAPPING | {"criteria": "a..b"}}}}
    made = rubric_of(found).model_copy(update={"metadata": broken})
    with pytest.raises(NotRepresentable, match="the mapping of criteria"):
        dump(made, "mapped")


def test_a_prompt_that_was_given_beside_a_row_is_not_written_into_it() -> None:
    row = {"items": MAPPED["items"]}
    found = load(row, "mapped", mapping=MAPPING, prompt="Why?")
    assert dump(rubric_of(found), "mapped").content == row


def test_a_prompt_of_one_message_without_a_list_comes_back_as_it_was() -> None:
    row = HEALTHBENCH | {"prompt": {"role": "user", "content": "Why?"}}
    assert dump(rubric_of(load(row, "healthbench")), "healthbench").content == row
