"""Blinding for group mode: which answer is whose must not show in its place, and must be undone exactly."""

from collections.abc import Sequence
from typing import TypeVar

from markscheme_server.domain.hashing import digest

T = TypeVar("T")


def shuffle_order(seed: str, size: int) -> list[int]:
    """A permutation of ``range(size)`` that depends on ``seed`` alone: place i shows answer ``order[i]``.

    Sorting by a keyed hash leaves no trace of the source in the place, and needs no generator state.
    """
    return sorted(range(size), key=lambda i: digest([seed, i]))


def blind(items: Sequence[T], order: Sequence[int]) -> list[T]:
    """The items in shown order."""
    return [items[i] for i in order]


def unblind(shown: Sequence[T], order: Sequence[int]) -> list[T]:
    """The inverse of :func:`blind`."""
    if len(shown) != len(order):
        raise ValueError(f"{len(shown)} answers for {len(order)} places")
    result: list[T | None] = [None] * len(order)
    for place, i in enumerate(order):
        result[i] = shown[place]
    return result  # type: ignore[return-value]
