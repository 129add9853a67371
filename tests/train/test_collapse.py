"""The rules that see a collapse, on made-up series."""

import dataclasses
import json
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markscheme_train.collapse import ADVICE, WINDOW, CollapseWatch, Figures, Finding, Rule

HEALTHY = Figures(
    reward=0.6,
    length=300.0,
    repetition=0.1,
    distinct=0.9,
    failed=0.4,
    routed=0.3,
    divergence=0.02,
    gain_failure=-0.3,
    gain_success=0.05,
)
ONSET = 40
Change = Callable[[float], dict[str, float]]
"""What a collapse makes of the figures, by its progress from 0 to 1."""
NAMES = [field.name for field in dataclasses.fields(Figures)]


def series(change: Change, *, seed: int = 0, steps: int = 100) -> list[Figures]:
    """Return noisy figures that are healthy up to the onset, then change within ten steps."""
    noise = random.Random(seed)
    made = []
    for step in range(1, steps + 1):
        progress = min(1.0, max(0.0, (step - ONSET) / 10))
        figures = dataclasses.replace(HEALTHY, **(change(progress) if progress else {}))
        made.append(
            Figures(
                **{
                    name: value * noise.uniform(0.9, 1.1)
                    for name, value in dataclasses.asdict(figures).items()
                }
            )
        )
    return made


def found(figures: Iterable[Figures]) -> dict[Rule, tuple[int, Finding]]:
    watch = CollapseWatch()
    seen: dict[Rule, tuple[int, Finding]] = {}
    for step, each in enumerate(figures, 1):
        for finding in watch.observe(step, each):
            assert finding.rule not in seen, "a rule warns once"
            seen[finding.rule] = (step, finding)
    return seen


COLLAPSES: list[tuple[Rule, Change, str]] = [
    (
        Rule.SHORT,
        lambda p: {"length": 300 - 280 * p},
        r"\d\d+ tokens, 3\d\d at first|2\d\d at first",
    ),
    (
        Rule.SHORT,
        lambda p: {"length": 300 - 180 * p, "reward": 0.6 - 0.3 * p},
        r"\d\d+ tokens, 3\d\d at first|2\d\d at first",
    ),
    (
        Rule.TEMPLATE,
        lambda p: {"repetition": 0.1 + 0.8 * p},
        r"\d\d% of their n-grams occurred before, \d+% at first",
    ),
    (
        Rule.TEMPLATE,
        lambda p: {"repetition": 0.1 + 0.4 * p, "reward": 0.6 - 0.3 * p},
        "occurred before",
    ),
    (Rule.TEMPLATE, lambda p: {"distinct": 0.9 - 0.88 * p}, r"are distinct, \d\d% at first"),
    (
        Rule.TEMPLATE,
        lambda p: {"distinct": 0.9 - 0.6 * p, "reward": 0.6 - 0.3 * p},
        "to different prompts are alike",
    ),
    (
        Rule.TEACHER_WORSE,
        lambda p: {"gain_success": 0.05 - 0.15 * p, "reward": 0.6 - 0.5 * p},
        r"reward has fallen from 0\.\d\d to 0\.\d\d",
    ),
    (Rule.TEACHER_WORSE, lambda p: {"gain_success": 0.05 - 0.6 * p}, r"that of failures 0\.\d\d\d"),
    (Rule.TEACHER_EQUAL, lambda p: {"divergence": 0.02 - 0.01999 * p}, "nats a token"),
    (
        Rule.NOTHING_ROUTED,
        lambda p: {"routed": 0.3 - 0.3 * p},
        r"[01]\.\d% of the rollouts, while [34]\d% fail",
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rule", "change", "words"), COLLAPSES)
def test_a_collapse_is_found_within_twenty_steps_of_its_onset(
    rule: Rule, change: Change, words: str, seed: int
) -> None:
    seen = found(series(change, seed=seed))
    assert list(seen) == [rule]
    step, finding = seen[rule]
    assert ONSET < step <= ONSET + 20
    assert finding.since == step - WINDOW + 1
    assert re.search(words, finding.message)
    assert f"(means of steps {finding.since} to {step})" in finding.message
    assert finding.message.endswith(ADVICE[rule])


def better(progress: float) -> dict[str, float]:
    """Return figures of a run that solves its task: nothing is left to be routed."""
    return {"reward": 0.6 + 0.38 * progress, "failed": 0.4 - 0.38 * progress, "routed": 0.0}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change",
    [
        lambda p: {},
        better,
        lambda p: {**better(p), "length": 300 - 180 * p},
        lambda p: {**better(p), "distinct": 0.9 - 0.6 * p, "repetition": 0.1 + 0.3 * p},
        lambda p: {**better(p), "gain_success": 0.05 - 0.15 * p},
        lambda p: {"reward": 0.6 - 0.06 * p, "gain_success": -0.1},
        lambda p: {"reward": 0.6 - 0.3 * p},
        lambda p: {"gain_success": -0.03, "gain_failure": -0.02},
    ],
    ids=["steady", "solved", "shorter", "alike", "sure", "dip", "other reason", "overtaken"],
)
def test_a_healthy_run_raises_nothing(change: Change, seed: int) -> None:
    assert found(series(change, seed=seed)) == {}


def test_a_self_teacher_that_is_worse_from_the_start_is_found_after_one_window() -> None:
    """As measured on SmolLM2: successes -0.343 nats a token, failures -0.277."""
    worse = dataclasses.replace(HEALTHY, gain_success=-0.343, gain_failure=-0.277)
    step, finding = found([worse] * 30)[Rule.TEACHER_WORSE]
    assert (step, finding.since) == (WINDOW, 1)
    assert "is 0.343 nats a token lower, that of failures 0.277" in finding.message


def test_a_task_without_a_success_routes_nothing_and_that_is_found() -> None:
    hard = Figures(reward=0.0, failed=1.0, routed=0.0, length=300.0)
    assert list(found([hard] * 30)) == [Rule.NOTHING_ROUTED]


def test_a_run_without_a_self_teacher_is_watched_for_what_it_has() -> None:
    plain = Figures(reward=0.5, length=300.0, repetition=0.1, distinct=0.9)
    short = dataclasses.replace(plain, length=10.0)
    assert list(found([plain] * 30 + [short] * 20)) == [Rule.SHORT]


def test_what_was_measured_in_too_few_batches_decides_nothing() -> None:
    rare = [
        dataclasses.replace(HEALTHY, gain_success=-0.5 if step % 3 == 0 else None)
        for step in range(60)
    ]
    assert found(rare) == {}


NUMBER = st.none() | st.floats(-1e6, 1e6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.builds(Figures, **dict.fromkeys(NAMES, NUMBER)), max_size=40),
    st.integers(0, 40),
)
def test_a_watch_that_is_stored_and_restored_goes_on_as_if_it_had_not_been(
    figures: list[Figures], cut: int
) -> None:
    whole, first, second = CollapseWatch(), CollapseWatch(), CollapseWatch()
    expected = [whole.observe(step, each) for step, each in enumerate(figures, 1)]
    parts = [first.observe(step, each) for step, each in enumerate(figures[:cut], 1)]
    second.restore(json.loads(json.dumps(first.state())))
    parts += [second.observe(step, each) for step, each in enumerate(figures[cut:], cut + 1)]
    assert parts == expected
    assert second.state() == whole.state()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Figures, **dict.fromkeys(NAMES, NUMBER)), max_size=60))
def test_any_numbers_give_each_rule_once_at_most_and_a_state_of_bounded_size(
    figures: list[Figures],
) -> None:
    watch = CollapseWatch()
    rules = [f.rule for step, each in enumerate(figures, 1) for f in watch.observe(step, each)]
    assert len(rules) == len(set(rules)) == len(watch.found)
    state: Any = watch.state()
    assert len(state["last"]) <= WINDOW
    assert all(len(values) <= WINDOW for values in state["first"].values())


@settings(max_examples=60, deadline=None)
@given(st.builds(Figures, **dict.fromkeys(NAMES, st.floats(0.1, 1e3))))
def test_a_run_that_does_not_change_is_short_or_a_template_never(figures: Figures) -> None:
    assert not {Rule.SHORT, Rule.TEMPLATE} & set(found([figures] * 30))


def test_the_length_is_compared_with_the_first_batches() -> None:
    watch = CollapseWatch()
    for step in range(1, 21):
        watch.observe(step, Figures(length=100.0))
    assert watch.length_ratio(Figures(length=25.0)) == 0.25
    assert watch.length_ratio(Figures()) is None
    assert CollapseWatch().length_ratio(Figures(length=25.0)) is None
