"""Test that blocks of steps give back what they were made from."""

import sys

import pytest

from fakes.run_groups import CRITERIA, make_run
from markscheme_server.domain.group_figures import GroupFigures
from markscheme_server.domain.run_blocks import BlockMark, PackedDetails, StepBlock
from markscheme_server.domain.run_columns import COUNTS, SUMS, Columns, RunGroup
from markscheme_server.domain.run_history import RunHistory

MARK = BlockMark(1, 0, 1.0)


def shown(columns: Columns) -> object:
    return (
        list(columns.steps),
        {name: list(columns.counts[name]) for name in COUNTS},
        {name: list(columns.sums[name]) for name in SUMS},
        list(columns.rewards),
        columns.reasons,
        {
            rubric: [each.of(number) for number in range(CRITERIA)]
            for rubric, each in columns.verdicts.items()
        },
        columns.teachers,
        list(columns.rubrics),
        list(columns.judges),
    )


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_block_gives_back_what_it_was_made_from(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "byteorder", order)
    made = StepBlock.of(make_run(1, steps=25))
    block = made.pack(0, MARK)
    read = StepBlock.unpack(block)
    assert shown(read.columns) == shown(made.columns)
    assert isinstance(read.details, PackedDetails)
    assert read.details.verdicts == made.details.verdicts
    assert read.details.groups == made.details.groups
    assert read.pack(0, MARK) == block


def test_columns_are_joined_in_their_order_and_stay_as_they_were() -> None:
    groups = make_run(2)
    parts = [
        StepBlock.of([each for each in groups if (each.step < 15) == early]).columns
        for early in (True, False)
    ]
    before = [shown(part) for part in parts]
    assert shown(Columns.joined(parts)) == shown(StepBlock.of(groups).columns)
    assert [shown(part) for part in parts] == before


def test_a_block_without_kept_groups_has_no_details() -> None:
    pruned = [each._replace(pruned=True) for each in make_run(1, steps=5)]
    read = StepBlock.unpack(StepBlock.of(pruned).pack(0, MARK))
    assert (list(read.details.groups), sum(read.columns.counts["pruned"])) == ([], len(pruned))


def test_a_block_holds_rewards_to_the_last_bit() -> None:
    rewards = [0.1 + 0.2, 1 / 3, None, 5e-324]
    figures = GroupFigures(1e9 + 1 / 3, rewards, [1, 2, 3, 4], 0, ["timeout"])
    before = RunHistory([RunGroup("g", 7, "r", None, False, figures)])
    (block,) = before.blocks({0: BlockMark(1, 0, 1.0)})
    after = RunHistory([], blocks=[block])
    assert list(after.total.rewards) == [0.1 + 0.2, 1 / 3, 5e-324]
    assert list(after.groups()) == list(before.groups())
