"""What travels to a machine without a package index is all that is needed there."""

from importlib import metadata

import pytest
from packaging.requirements import Requirement

from gpu.collect_wheels import names, not_covered, pins
from gpu.environment import requirements


def test_every_requirement_is_carried_or_there() -> None:
    carried = {
        name: (pins()[name], [Requirement(line) for line in metadata.requires(name) or []])
        for name in names("wheels.txt")
    }
    assert not_covered(carried, names("present.txt"), requirements()) == []


def test_nothing_of_torch_is_carried() -> None:
    assert not [
        name for name in names("wheels.txt") if name.startswith(("torch", "nvidia", "triton"))
    ]
    assert "torch" in names("present.txt")


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("one", None),
        ("one[more]", 'one needs two; extra == "more", which is not carried'),
        ("one>=2", "markscheme needs one>=2, and 1.0 is carried"),
        ("three", "markscheme needs three, which is not carried"),
        ("there>=9", None),
        ('three; python_version < "3.12"', None),
    ],
)
def test_a_gap_is_named(asked: str, complaint: str | None) -> None:
    carried = {"one": ("1.0", [Requirement("two; extra == 'more'"), Requirement("there")])}
    assert not_covered(carried, ["there"], [Requirement(asked)]) == (
        [complaint] if complaint else []
    )
