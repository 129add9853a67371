"""What a rubric may be on the wire."""

import pytest
from pydantic import ValidationError

from markscheme.schema import Criterion, RubricCreate


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
