"""Test the figures of runs against a straightforward computation over all rollouts."""

import random
import statistics
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fakes.run_groups import CRITERIA, make_group, make_run
from markscheme_server.domain.group_figures import GroupFigures, load_figures
from markscheme_server.domain.run_blocks import BLOCK_STEPS, BlockMark, block_of
from markscheme_server.domain.run_columns import RunGroup
from markscheme_server.domain.run_history import RunHistory


def shown(history: RunHistory) -> Any:
    return {
        "steps": history.spans(1_000_000),
        "groups": list(history.groups()),
        "verdicts": history.verdicts(),
        "recent": history.verdicts(20),
        "counts": {
            rubric: [each.of(number) for number in range(CRITERIA)]
            for rubric, each in history.columns.verdicts.items()
        },
        "teachers": history.columns.teachers,
        "pruned": (history.pruned, history.pruned_until),
        "seconds": history.seconds_per_step,
    }


def test_figures_are_read_as_they_were_written() -> None:
    every = [each.figures for each in make_run(1)]
    back = load_figures(each.dump() for each in every)
    assert [each.dump() for each in back] == [each.dump() for each in every]
    assert [list(each.rewards) for each in back] == [list(each.rewards) for each in every]


@pytest.mark.parametrize("bins", [1, 4, 7, 1000])
def test_spans_hold_what_their_rollouts_say(bins: int) -> None:
    groups = make_run(2)
    history = RunHistory(groups)
    spans = history.spans(bins)
    assert len(spans) <= bins
    assert sum(span.groups for span in spans) == len(groups)
    for span in spans:
        inside = [g.figures for g in groups if span.first <= g.step <= span.last]
        rewards = [r for each in inside for r in each.rewards if r is not None]
        words = [w for each in inside for w in each.words if w is not None]
        teachers = [r for each in inside for r in each.teacher_rewards if r is not None]
        assert span.rollouts == sum(len(each.rewards) for each in inside)
        assert span.unscored == span.rollouts - len(rewards)
        assert span.reasons == Counter(reason for each in inside for reason in each.reasons)
        for mean, values in (
            (span.reward, rewards),
            (span.mean_words, words),
            (span.teacher_reward, teachers),
        ):
            assert mean == (pytest.approx(statistics.mean(values)) if values else None)
        if rewards:
            assert span.quantiles() == pytest.approx(tuple(np.quantile(rewards, [0.1, 0.9])))
        else:
            assert span.quantiles() is None


def test_length_and_reward_are_correlated_within_groups() -> None:
    groups = make_run(3)
    x, y = [], []
    for each in groups:
        pairs = [
            (w, r)
            for w, r in zip(each.figures.words, each.figures.rewards, strict=True)
            if w is not None and r is not None
        ]
        if len(pairs) > 1:
            for values, column in ((x, 0), (y, 1)):
                middle = statistics.mean(pair[column] for pair in pairs)
                values += [pair[column] - middle for pair in pairs]
    expected = float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))
    assert RunHistory(groups).total.length_correlation == pytest.approx(expected)


def test_a_run_of_unknown_rewards_has_no_mean() -> None:
    figures = GroupFigures(1.0, [None, None], [None, None], 0, ["timeout"] * 2)
    history = RunHistory([RunGroup("g", 0, "r", None, False, figures)])
    assert (history.total.reward, history.total.mean_words, history.now.teacher_reward) == (
        None,
        None,
        None,
    )
    assert history.curve(40) == [None]
    assert history.total.length_correlation is None


def test_a_run_without_groups_has_no_figures() -> None:
    history = RunHistory([])
    assert (history.first_step, history.last_step, history.seconds_per_step) == (None, None, None)
    assert (history.spans(10), history.curve(10), history.now.reward) == ([], [], None)


@pytest.mark.parametrize("seed", range(5))
def test_a_renewed_history_is_the_one_that_is_read_anew(seed: int) -> None:
    rng, groups = random.Random(seed), make_run(seed, steps=3 * BLOCK_STEPS)
    second = {g.step: (1, 0.5, rng.choice([0.25, 1.0])) for g in groups if rng.random() < 0.3}
    metrics = {g.step: {"loss": rng.random(), "kl": None} for g in groups}
    before = RunHistory(groups[:-8], {}, dict(list(metrics.items())[:5]))
    # A step is sent again, others are new.
    again = make_group(rng, groups[5].step, 9)
    later = [*groups, again]
    changed = {block_of(each.step) for each in (*groups[-8:], again)}
    renewed = RunHistory(
        [each for each in later if block_of(each.step) in changed], second, metrics, before
    )
    assert shown(renewed) == shown(RunHistory(later, second, metrics))
    assert shown(before) == shown(RunHistory(groups[:-8], {}, dict(list(metrics.items())[:5]))), (
        "it stays as it was"
    )


def test_the_newest_groups_come_first_when_asked_for() -> None:
    history = RunHistory(make_run(3, steps=2 * BLOCK_STEPS))
    newest = list(history.groups(newest_first=True))
    assert newest == sorted(newest, key=lambda g: (g.step, g.at, g.id), reverse=True)
    assert sorted(newest) == sorted(history.groups())


def marks(groups: list[RunGroup]) -> dict[int, BlockMark]:
    return {block_of(each.step): BlockMark(1, 0, each.step) for each in groups}


@pytest.mark.parametrize("seed", range(5))
def test_a_history_of_stored_blocks_is_that_of_their_groups(seed: int) -> None:
    rng, groups = random.Random(seed), make_run(seed, steps=3 * BLOCK_STEPS)
    second = {g.step: (1, 0.5, rng.random()) for g in groups[::3]}
    metrics = {g.step: {"loss": rng.random(), "kl": None} for g in groups}
    every = RunHistory(groups, second, metrics)
    blocks = every.blocks(marks(groups))
    assert [block.first for block in blocks] == [0, BLOCK_STEPS, 2 * BLOCK_STEPS]
    assert [block.mark for block in blocks] == list(marks(groups).values())
    assert shown(RunHistory([], second, metrics, blocks=blocks)) == shown(every)
    # The second block is read from its groups, and the third is stored with other figures.
    rest = [each for each in groups if block_of(each.step) == BLOCK_STEPS]
    earlier = RunHistory(groups[:-9], {}, {})
    mixed = RunHistory(rest, second, metrics, earlier, [blocks[0], blocks[2]])
    assert shown(mixed) == shown(every)
