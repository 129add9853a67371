"""Repetition, diversity, and the self-teacher's gain."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from markscheme_train.diagnostics import NGRAM, TeacherGains, distinct_sums, repetition_sums

TOKENS = st.lists(st.integers(0, 3), max_size=20)


def ids(*rollouts: list[int]) -> list[Tensor]:
    return [torch.tensor(rollout, dtype=torch.long) for rollout in rollouts]


def ngrams(rollout: list[int]) -> list[tuple[int, ...]]:
    return [tuple(rollout[start : start + NGRAM]) for start in range(len(rollout) - NGRAM + 1)]


def test_a_rollout_that_repeats_one_token_is_all_repetition_but_its_first_ngram() -> None:
    assert repetition_sums(ids([7] * 13, [1, 2, 3, 4, 5])).tolist() == pytest.approx([0.9, 2.0])


@given(st.lists(TOKENS, max_size=6))
def test_repetition_is_the_share_of_ngrams_that_occurred_before(rollouts: list[list[int]]) -> None:
    shares = [
        1 - len(set(grams)) / len(grams) for rollout in rollouts if (grams := ngrams(rollout))
    ]
    assert repetition_sums(ids(*rollouts)).tolist() == pytest.approx([sum(shares), len(shares)])


@given(st.lists(TOKENS, max_size=6))
def test_distinct_ngrams_are_counted_over_rollouts_of_different_prompts(
    rollouts: list[list[int]],
) -> None:
    sets = [set(grams) for rollout in rollouts if (grams := ngrams(rollout))]
    expected = [len(set.union(*sets)), sum(map(len, sets))] if len(sets) > 1 else [0, 0]
    assert distinct_sums(ids(*rollouts)).tolist() == expected


def test_the_same_response_to_every_prompt_is_distinct_once() -> None:
    assert distinct_sums(ids([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])).tolist() == [2.0, 4.0]
    assert distinct_sums(ids([1, 2, 3, 4, 5])).tolist() == [0.0, 0.0]


def test_a_gain_is_the_teachers_log_probability_less_the_students() -> None:
    gains = TeacherGains()
    teacher = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0], [-0.5, -0.5, -0.5]])
    student = torch.tensor([[-2.0, -2.5, 0.0], [-3.0, -3.0, -3.0], [-0.25, -0.25, -0.25]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool()
    failures, controls = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    batch = {"teacher_log_probs": teacher, "failures": failures, "controls": controls}
    gains.add(batch, student, mask)
    gains.add(batch, student, mask)
    assert gains.take(torch.device("cpu")).tolist() == [[3.0, 4.0], [-1.5, 6.0]]
    assert gains.take(torch.device("cpu")).tolist() == [[0.0, 0.0], [0.0, 0.0]]
