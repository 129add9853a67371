"""What a process remembers of the faults of induced rubrics."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from markscheme_server.domain.findings.series import MIN_STEPS
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.scoring import rubric_health
from markscheme_server.scoring.rubric_health import RubricFaults


def rubric(name: str) -> Rubric:
    criteria = (Criterion("c1", "It is text.", 1), Criterion("c2", "It is good.", 1))
    return Rubric(
        name, "red", "p", (), 1, None, "h", criteria, "induced", (), {}, datetime.now(UTC)
    )


class Lives:
    """A store of rubrics whose first criterion is always met. `read`: those that were examined."""

    def __init__(self) -> None:
        self.read: list[str] = []

    async def life_of_rubric(self, _team: str, rubric_id: str) -> Any:
        self.read.append(rubric_id)
        group = SimpleNamespace(verdicts="1011" * 8, teacher_verdicts="")
        return SimpleNamespace(groups=lambda: [group] * MIN_STEPS, runs=["run"])


@pytest.fixture
def lives() -> Lives:
    return Lives()


@pytest.fixture
def faults(lives: Lives) -> RubricFaults:
    return RubricFaults(lives)  # type: ignore[arg-type]


async def test_a_full_cache_forgets_the_rubric_that_was_examined_the_longest_ago(
    lives: Lives, faults: RubricFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rubric_health, "MAX_CACHED", 2)
    names = ("one", "two", "three", "three", "two", "one")
    found = [await faults.find("red", rubric(name), MIN_STEPS) for name in names]
    assert [each.reason if each is not None else None for each in found] == [
        f"c1 saturated: students 100 % of {16 * MIN_STEPS}"
    ] * 6
    assert lives.read == ["one", "two", "three", "one"]


async def test_a_replaced_rubric_is_no_fault_until_it_is_examined_again(
    lives: Lives, faults: RubricFaults
) -> None:
    """Whether or not the process still remembers the fault: another one may have found it."""
    faults.forget("red", rubric("one"))
    assert await faults.find("red", rubric("one"), MIN_STEPS) is not None
    faults.forget("red", rubric("one"))
    assert await faults.find("red", rubric("one"), MIN_STEPS) is None
    assert await faults.find("red", rubric("one"), 2 * MIN_STEPS) is not None
    assert lives.read == ["one", "one"]
