"""A run by step: sums over its steps, its groups, and the verdicts of its rubrics."""

import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from markscheme_server.domain.run_blocks import (
    Block,
    BlockMark,
    GroupSummary,
    StepBlock,
    block_of,
)
from markscheme_server.domain.run_columns import Columns, RunGroup
from markscheme_server.domain.step_totals import StepTotals, ratio

MAX_WINDOW = 100
"""Steps of the first and the last window of a run, at most; they are a tenth of its steps."""


class SecondVerdicts(NamedTuple):
    """What a second judge said of a rollout, beside what the first one had said."""

    group: str
    rollout: str
    judge: str
    step: int | None
    first_reward: float | None
    first_verdicts: str
    reward: float | None
    verdicts: str


class RunHistory:
    """A run: its steps, its groups, and the verdicts of its rubrics.

    Attributes:
        columns: The figures of its steps.
        second: By step: rollouts with rewards by two judges, the sum of the training judge's
            rewards, and of the second one's.
        metrics: The trainer's metrics by step.
        judges: The judges whose verdicts count.
        rubrics: The ids of its rubrics.
        pruned: How many groups were pruned.
        pruned_until: The step after the last one with pruned groups.
    """

    def __init__(
        self,
        groups: Iterable[RunGroup],
        second: Mapping[int, tuple[int, float, float]] | None = None,
        metrics: Mapping[int, Mapping[str, float | None]] | None = None,
        before: "RunHistory | None" = None,
        blocks: Iterable[Block] = (),
    ) -> None:
        """Make the history of a run.

        Args:
            groups: All groups of the blocks of steps that are neither in `before` nor in `blocks`,
                or have changed since.
            second: See the attribute.
            metrics: See the attribute.
            before: An earlier history of the run, whose other blocks are taken over.
            blocks: Blocks of steps as they are stored.
        """
        by_block: dict[int, list[RunGroup]] = defaultdict(list)
        for group in groups:
            by_block[block_of(group.step)].append(group)
        parts: dict[int, StepBlock] = dict(before._blocks) if before is not None else {}
        parts |= {block.first: StepBlock.unpack(block) for block in blocks}
        parts |= {first: StepBlock.of(of_block) for first, of_block in by_block.items()}
        self._blocks: dict[int, StepBlock] = dict(sorted(parts.items()))
        self.columns = Columns.joined(block.columns for block in self._blocks.values())
        self.second, self.metrics = second or {}, metrics or {}
        self.judges, self.rubrics = list(self.columns.judges), list(self.columns.rubrics)
        pruned = self.columns.counts["pruned"]
        self.pruned = sum(pruned)
        last = max((n for n, count in enumerate(pruned) if count), default=None)
        self.pruned_until = None if last is None else self.steps[last] + 1

    @property
    def steps(self) -> Sequence[int]:
        """The steps that have groups, in order."""
        return self.columns.steps

    def groups(self, *, newest_first: bool = False) -> Iterator[GroupSummary]:
        """Yield the groups that were not pruned, in the order of steps."""
        for block in reversed(self._blocks.values()) if newest_first else self._blocks.values():
            groups = block.details.groups
            yield from (
                sorted(groups, key=lambda g: (g.step, g.at, g.id), reverse=True)
                if newest_first
                else groups
            )

    def verdicts(self, since: int | None = None) -> dict[str, str]:
        """Return the joined verdict strings of the steps from `since` on, by rubric id."""
        parts: dict[str, list[str]] = defaultdict(list)
        for first, block in self._blocks.items():
            if since is not None and first < block_of(since):
                continue
            for step, verdicts in block.details.verdicts.items():
                if since is None or step >= since:
                    for rubric, joined in verdicts.items():
                        parts[rubric].append(joined)
        return {rubric: "".join(each) for rubric, each in parts.items()}

    def blocks(self, marks: Mapping[int, BlockMark]) -> list[Block]:
        """Return the blocks that begin with these steps and have these marks, to be stored."""
        return [
            self._blocks[first].pack(first, mark)
            for first, mark in marks.items()
            if first in self._blocks
        ]

    @property
    def first_step(self) -> int | None:
        """The first step that has groups."""
        return self.steps[0] if self.steps else None

    @property
    def last_step(self) -> int | None:
        """The last step that has groups."""
        return self.steps[-1] if self.steps else None

    @cached_property
    def seconds_per_step(self) -> float | None:
        """The median time between the ends of steps; `None` before the second step."""
        ends = self.columns.sums["end"]
        waits = [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]
        return statistics.median(waits) if waits else None

    @cached_property
    def total(self) -> StepTotals:
        """The totals of all steps."""
        return self._totals(0, len(self.steps))

    @cached_property
    def first(self) -> StepTotals:
        """The totals of the first tenth of the steps."""
        return self._totals(0, min(self._window, len(self.steps)))

    @cached_property
    def now(self) -> StepTotals:
        """The totals of the last tenth of the steps."""
        return self._totals(max(0, len(self.steps) - self._window), len(self.steps))

    @property
    def _window(self) -> int:
        return max(1, min(MAX_WINDOW, len(self.steps) // 10))

    def spans(
        self, bins: int, first: int | None = None, last: int | None = None
    ) -> list[StepTotals]:
        """Return the totals of at most so many spans of steps; spans without a group are left out.

        All spans have the same number of steps, but for the last.
        """
        return [self._totals(start, stop) for _, start, stop in self._places(bins, first, last)]

    def curve(self, bins: int) -> list[float | None]:
        """Return the mean rewards of at most so many spans; `None` where none is known."""
        rewards, known = self.columns.sums["reward"], self.columns.counts["known"]
        means = {
            number: ratio(sum(rewards[start:stop]), sum(known[start:stop]))
            for number, start, stop in self._places(bins, None, None)
        }
        return [means.get(number) for number in range(max(means, default=-1) + 1)]

    def span_of(self, bins: int, first: int | None, last: int | None) -> tuple[int, int]:
        """Return the first step of the first span, and how many steps each has."""
        start = self.first_step if first is None else first
        end = self.last_step if last is None else last
        start, end = start or 0, end or 0
        return start, max(1, -(-(end - start + 1) // bins))

    def _places(
        self, bins: int, first: int | None, last: int | None
    ) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each span that has groups, and the indices of its steps."""
        begin, width = self.span_of(bins, first, last)
        start = 0 if first is None else bisect_left(self.steps, first)
        end = len(self.steps) if last is None else bisect_left(self.steps, last + 1)
        while start < end:
            number = (self.steps[start] - begin) // width
            stop = bisect_left(self.steps, begin + (number + 1) * width, start, end)
            yield number, start, stop
            start = stop

    def _totals(self, start: int, stop: int) -> StepTotals:
        of_steps = self.steps[start:stop]
        return self.columns.totals(
            start,
            stop,
            [self.second[step] for step in of_steps if step in self.second],
            [self.metrics[step] for step in of_steps if step in self.metrics],
        )
