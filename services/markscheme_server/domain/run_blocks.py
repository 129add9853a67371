"""Blocks of steps of a run, as they are stored: packed columns and what few answers need."""

import json
import struct
import sys
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from markscheme_server.domain.run_columns import (
    COUNTS,
    SUMS,
    Columns,
    Counts,
    RunGroup,
    VerdictColumns,
)
from markscheme_server.domain.step_totals import ratio

BLOCK_STEPS = 25
"""Steps of a run whose figures are stored and read together."""
BLOCK_VERSION = 3
"""The format of stored blocks: change it with `BLOCK_STEPS`, `BlockMark`, `pack` and what it packs.
"""

_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<III")
"""Bytes of JSON; steps; whole numbers."""


class GroupSummary(NamedTuple):
    """What groups are listed and sorted by. `words`: the mean of its rollouts."""

    id: str
    step: int
    at: float
    rubric_id: str
    mean: float | None
    spread: float | None
    teacher: float | None
    words: float | None
    unscored: int


class BlockMark(NamedTuple):
    """What tells whether the groups of a block are still the same.

    `groups`: how many there are without the `pruned` ones; `scored_at`: the sum of the times at
    which they were scored last, each in microseconds since 1970 modulo 2^32. It is a sum because
    scores are not stored in the order of their times: the last of them would not tell.
    """

    groups: int = 0
    pruned: int = 0
    scored_at: float | None = None


class Block(NamedTuple):
    """The figures of up to `BLOCK_STEPS` steps as they are stored; see `pack`.

    `first`: the first of the steps, whether or not it is in the run.
    """

    first: int
    mark: BlockMark
    figures: bytes
    details: bytes


def block_of(step: int) -> int:
    """Return the first step of the block that a step is in."""
    return step // BLOCK_STEPS * BLOCK_STEPS


class Details:
    """What few answers need: verdict strings by step and rubric id, and groups."""

    def __init__(
        self, verdicts: Mapping[int, Mapping[str, str]], groups: Sequence[GroupSummary]
    ) -> None:
        self.verdicts, self.groups = verdicts, groups

    def pack(self) -> bytes:
        """Return what `PackedDetails` reads."""
        verdicts = _dump(list(self.verdicts.items()))
        groups = _dump(list(zip(*self.groups, strict=True)))
        return zlib.compress(_LENGTH.pack(len(verdicts)) + verdicts + groups, 1)


class PackedDetails:
    """Details that are read when they are asked for."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def pack(self) -> bytes:
        """Return them as they are."""
        return self._packed

    @property
    def _parts(self) -> tuple[bytes, bytes]:
        plain = zlib.decompress(self._packed)
        end = _LENGTH.size + _LENGTH.unpack_from(plain)[0]
        return plain[_LENGTH.size : end], plain[end:]

    @cached_property
    def verdicts(self) -> Mapping[int, Mapping[str, str]]:
        """Joined verdict strings by step and rubric id."""
        return dict(json.loads(self._parts[0]))

    @cached_property
    def groups(self) -> Sequence[GroupSummary]:
        """The groups that were not pruned."""
        return [GroupSummary(*each) for each in zip(*json.loads(self._parts[1]), strict=True)]


class StepBlock(NamedTuple):
    """The figures of the steps of a block, and what few answers need of them."""

    columns: Columns
    details: Details | PackedDetails

    @classmethod
    def of(cls, groups: Iterable[RunGroup]) -> "StepBlock":
        """Add up all groups of some steps."""
        by_step: dict[int, list[RunGroup]] = defaultdict(list)
        for group in groups:
            by_step[group.step].append(group)
        columns = Columns()
        ordered = sorted(by_step.items())
        verdicts = {step: columns.add_step(step, of_step) for step, of_step in ordered}
        kept = [_summary(each) for _, of_step in ordered for each in of_step if not each.pruned]
        return cls(columns, Details(verdicts, kept))

    def pack(self, first: int, mark: BlockMark) -> Block:
        """Return the block that begins with a step as it is stored.

        `Block.figures` is zlib's of: the lengths of what follows; the rest as JSON; the whole
        numbers of all columns; the other numbers. Numbers take 8 bytes, the lowest first.
        """
        c = self.columns
        head = _dump(
            [
                list(c.reasons.items()),
                [[rubric, each.criteria, len(each.steps)] for rubric, each in c.verdicts.items()],
                c.teachers,
                list(c.rubrics),
                list(c.judges),
            ]
        )
        numbers = array("q", c.steps)
        for column in c.counts.values():
            numbers += column
        for verdicts in c.verdicts.values():
            numbers += verdicts.steps + verdicts.cells
        others = array("d")
        for sums in c.sums.values():
            others += sums
        others += c.rewards
        lengths = _HEAD.pack(len(head), len(c.steps), len(numbers))
        figures = lengths + head + _bytes(numbers) + _bytes(others)
        return Block(first, mark, zlib.compress(figures, 1), self.details.pack())

    @classmethod
    def unpack(cls, block: Block) -> "StepBlock":
        """Read what `pack` returned."""
        plain = memoryview(zlib.decompress(block.figures))
        head, steps, numbers = _HEAD.unpack_from(plain)
        start = _HEAD.size + head
        end = start + 8 * numbers
        reasons, verdicts, teachers, rubrics, judges = json.loads(bytes(plain[_HEAD.size : start]))
        ints, floats = _array("q", plain[start:end]), _array("d", plain[end:])
        c = Columns()
        c.steps = ints[:steps]
        place = steps
        for name in COUNTS:
            c.counts[name] = ints[place : place + steps]
            place += steps
        for rubric, criteria, asked in verdicts:
            cells = place + asked
            after = cells + 3 * criteria * asked
            c.verdicts[rubric] = VerdictColumns(criteria, ints[place:cells], ints[cells:after])
            place = after
        for number, name in enumerate(SUMS):
            c.sums[name] = floats[number * steps : (number + 1) * steps]
        c.rewards = floats[len(SUMS) * steps :]
        c.reasons = dict(reasons)
        c.teachers = {rubric: [Counts(*each) for each in of] for rubric, of in teachers.items()}
        c.rubrics, c.judges = dict.fromkeys(rubrics), dict.fromkeys(judges)
        return cls(c, PackedDetails(block.details))


def _summary(group: RunGroup) -> GroupSummary:
    figures = group.figures
    known, teacher = figures.known, figures.teacher_known
    words = [count for count in figures.words if count is not None]
    return GroupSummary(
        group.id,
        group.step,
        figures.at,
        group.rubric_id,
        ratio(sum(known), len(known)),
        figures.spread,
        ratio(sum(teacher), len(teacher)),
        ratio(sum(words), len(words)),
        len(figures.rewards) - len(known),
    )


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _bytes(numbers: "array[Any]") -> bytes:
    return _little_endian(numbers).tobytes()


def _array(kind: str, packed: memoryview) -> "array[Any]":
    numbers: array[Any] = array(kind)
    numbers.frombytes(packed)
    return _little_endian(numbers)


def _little_endian(numbers: "array[Any]") -> "array[Any]":
    """Change the order of bytes to or from the lowest first, which most machines have."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers
