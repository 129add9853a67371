"""Blinding for group mode: hide which answer is whose by shuffling, and undo it exactly."""

from collections.abc import Sequence
from typing import TypeVar

from markscheme_server.domain.hashing import digest

T = TypeVar("T")


def shuffle_order(seed: str, size: int) -> list[int]:
    """Return a permutation of `range(size)` that depends on `seed` alone.

    Position `i` shows answer `order[i]`. Sorting by a keyed hash needs no state of a generator,
    and no position tells anything about its source.
    """
    return sorted(range(size), key=lambda i: digest([seed, i]))


def blind(items: Sequence[T], order: Sequence[int]) -> list[T]:
    """Return the items in the order in which they are shown."""
    return [items[i] for i in order]


def unblind(shown: Sequence[T], order: Sequence[int]) -> list[T]:
    """Undo `blind`. Raises `ValueError` when the lengths differ."""
    if len(shown) != len(order):
        raise ValueError(f"{len(shown)} answers for {len(order)} positions")
    by_index = dict(zip(order, shown, strict=True))
    return [by_index[i] for i in range(len(order))]
