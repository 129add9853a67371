"""Blinding is undone exactly, and the order depends on the seed alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.domain.blinding import blind, shuffle_order, unblind


@given(st.text(), st.lists(st.integers(), max_size=40))
def test_unblinding_undoes_blinding(seed: str, items: list[int]) -> None:
    order = shuffle_order(seed, len(items))
    assert sorted(order) == list(range(len(items)))
    assert order == shuffle_order(seed, len(items))
    assert unblind(blind(items, order), order) == items


def test_shuffling_depends_on_the_seed() -> None:
    assert len({tuple(shuffle_order(str(seed), 8)) for seed in range(50)}) > 40


def test_unblinding_refuses_another_number_of_answers() -> None:
    with pytest.raises(ValueError, match="2 answers for 3 positions"):
        unblind([1, 2], [0, 1, 2])
