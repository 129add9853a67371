"""Prompts that runs share: which are paired, in which order, and with which interval."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.domain.replay import Interval, clustered_mean
from markscheme_server.domain.run_comparison import (
    MIN_PROMPTS,
    LastGroup,
    SharedPrompt,
    reward_difference,
    shared_prompts,
)

REWARDS = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]))


def group(run: str, prompt: str, mean: float | None, rubric: str = "rub") -> LastGroup:
    return LastGroup(f"{run}-{prompt}", run, prompt, 3, rubric, "judge", mean)


def pairs(*means: tuple[float | None, float | None]) -> list[SharedPrompt]:
    """Return prompts that runs `a` and `b` share, with these mean rewards."""
    groups = [
        group(run, f"p{i}", mean)
        for i, both in enumerate(means)
        for run, mean in zip("ab", both, strict=True)
    ]
    return shared_prompts(["a", "b"], groups)


def test_prompts_stand_by_loss_and_those_that_are_not_known_last() -> None:
    prompts = pairs((0.5, None), (0.5, 0.9), (0.5, 0.1), (None, 0.2), (0.5, 0.5))
    assert [prompt.key for prompt in prompts] == ["p2", "p4", "p1", "p0", "p3"]


def test_of_several_runs_the_greatest_loss_decides() -> None:
    groups = [group(run, prompt, 0.5) for run in "abc" for prompt in ("p", "q")]
    groups[-1] = groups[-1]._replace(mean=0.2)
    assert [each.key for each in shared_prompts(["a", "b", "c"], groups)] == ["q", "p"]


def test_a_prompt_that_the_first_run_lacks_is_not_shared() -> None:
    groups = [group("b", "p", 0.5), group("c", "p", 0.5), group("a", "q", 0.5)]
    assert shared_prompts(["a", "b", "c"], groups) == []


@given(st.lists(st.tuples(REWARDS, REWARDS), max_size=30))
def test_only_pairs_that_are_known_on_both_sides_count(
    means: Sequence[tuple[float | None, float | None]],
) -> None:
    found = reward_difference(pairs(*means), 1)
    known = [(a, b) for a, b in means if a is not None and b is not None]
    assert (found.prompts, found.unknown) == (len(known), len(means) - len(known))
    if not known:
        assert (found.first, found.other, found.difference) == (None, None, Interval(None))
        return
    assert found.first == pytest.approx(math.fsum(a for a, _ in known) / len(known))
    assert found.other == pytest.approx(math.fsum(b for _, b in known) / len(known))
    assert found.difference.value == pytest.approx(found.other - found.first)
    assert (found.difference.low is None) == (len(known) < MIN_PROMPTS)


def test_the_interval_is_students_over_prompts() -> None:
    rng = random.Random(3)
    means = [(rng.random(), rng.random()) for _ in range(MIN_PROMPTS)]
    expected = clustered_mean([[b - a] for a, b in means])
    found = reward_difference(pairs(*means), 1).difference
    assert found == pytest.approx(expected)


def test_an_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = random.Random(5)
    covered = 0
    for _ in range(400):
        means = [(x := rng.random(), x - 0.1 + rng.gauss(0, 0.2)) for _ in range(12)]
        interval = reward_difference(pairs(*means), 1).difference
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= -0.1 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_pairs_of_the_same_rubric_and_judge_are_told_apart() -> None:
    groups = [group("a", f"p{i}", 0.5) for i in range(3)]
    groups += [
        group("b", "p0", 0.4),
        group("b", "p1", 0.9, rubric="another"),
        group("b", "p2", 0.1)._replace(judge="another"),
    ]
    found = reward_difference(shared_prompts(["a", "b"], groups), 1)
    assert found.prompts == 3
    assert found.same_rubric == 1
    assert found.same_rubric_difference.value == pytest.approx(-0.1)
