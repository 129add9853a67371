"""What a rubric may be on the wire, and how it is shown in Python."""

import pytest
from pydantic import ValidationError

from client.scripted import RUBRIC
from markscheme.schema import Criterion, Message, RubricCreate, RubricList, StudentResponse


@pytest.mark.parametrize("points", [[], [0], [-1], [-1, -5], [1, 0]])
def test_criteria_that_cannot_yield_a_reward_are_rejected(points: list[int]) -> None:
    criteria = [Criterion(text="words", points=each) for each in points]
    with pytest.raises(ValidationError, match="criteria"):
        RubricCreate(prompt="p", criteria=criteria)


@pytest.mark.parametrize("ids", [["c1", "c1"], ["c1", None]])
def test_criteria_have_distinct_ids_or_none(ids: list[str | None]) -> None:
    criteria = [Criterion(id=id_, text="words", points=1) for id_ in ids]
    with pytest.raises(ValidationError, match="id"):
        RubricCreate(prompt="p", criteria=criteria)


def test_the_metadata_of_all_criteria_together_is_limited() -> None:
    criteria = [
        Criterion(text="words", points=1, metadata={"note": "x" * 30_000}) for _ in range(9)
    ]
    with pytest.raises(ValidationError, match=r"metadata of the criteria takes \d+ bytes; it may"):
        RubricCreate(prompt="p", criteria=criteria)


@pytest.mark.parametrize(
    "both", [{}, {"text": "a", "messages": [{"role": "user", "content": "a"}]}]
)
def test_a_student_response_is_a_text_or_messages(both: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="give exactly one of text and messages"):
        StudentResponse.model_validate(both)


def test_the_text_of_a_message_is_that_of_its_parts() -> None:
    parts = [
        {"type": "text", "text": "A "},
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
        {"type": "text", "text": "cat"},
    ]
    message = Message.model_validate({"role": "user", "content": parts})
    assert message.text == "A cat"
    assert message.unsupported == ["image_url"]


def test_a_representation_names_a_rubric_and_not_all_of_it() -> None:
    prompt = [{"role": "user", "content": "Name a lake."}]
    page = {"object": "list", "data": [RUBRIC | {"prompt": prompt}], "has_more": True}
    found = RubricList.model_validate(page, strict=False)
    assert repr(found.data[0]) == (
        "Rubric(id='rub_1', version=1, prompt='Name a lake.', criteria=0, maximum_score=1)"
    )
    assert repr(found) == "RubricList(data=['rub_1'], has_more=True)"
