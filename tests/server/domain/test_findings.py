import dataclasses
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.synthetic_runs import FAULTS, LASTING_FAULTS, OUTAGE_STEPS, synthetic_run
from markscheme.schema import Finding as WireFinding
from markscheme_server.domain.findings import (
    BudgetFigures,
    CriterionFigures,
    Finding,
    GroupFilter,
    LengthReward,
    PairedRewards,
    PairFigures,
    RunFigures,
    StepFigures,
    find,
)
from markscheme_server.domain.findings.series import Series, mean, wilson_low


def of_kind(findings: Sequence[Finding], kind: str) -> list[Finding]:
    return [each for each in findings if each.kind == kind]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("seed", "onset"), [(1, 120), (2, 157)])
def test_a_planted_fault_is_found_with_its_onset_within_ten_steps(
    fault: str, seed: int, onset: int
) -> None:
    found = of_kind(find(synthetic_run(seed, fault=fault, onset=onset, steps=320)), fault)
    about_run = [each for each in found if each.criterion is None or fault == "inverted"]
    assert len(about_run) == 1
    since = about_run[0].since_step
    assert since is not None
    assert abs(since - (onset + 1)) <= 10
    assert f"{since}" in about_run[0].sentence


@pytest.mark.parametrize("fault", LASTING_FAULTS)
def test_a_fault_of_a_whole_run_is_found_and_nothing_else(fault: str) -> None:
    assert [each.kind for each in find(synthetic_run(7, fault=fault))] == [fault]


def test_twenty_healthy_runs_raise_nothing() -> None:
    found = [
        (seed, each.level, each.sentence)
        for seed in range(20)
        for each in find(synthetic_run(seed, steps=(200, 240, 300, 400)[seed % 4]))
    ]
    assert found == []


def test_runs_of_small_groups_raise_no_alarm() -> None:
    found = [
        each.sentence
        for seed in range(20)
        for each in find(synthetic_run(1000 + seed, groups=2, rollouts=4, criteria=10))
        if each.level == "alarm"
    ]
    assert found == []


def test_the_finding_of_an_outage_leads_to_its_steps_and_reasons() -> None:
    [found] = of_kind(find(synthetic_run(3, fault="unknown", onset=60)), "unknown")
    assert (found.groups.first_step, found.groups.last_step) == (60, 60 + OUTAGE_STEPS - 1)
    assert found.values["unavailable"] == found.values["unknown"] == OUTAGE_STEPS * 32
    assert "steps 61 to 80" in found.sentence
    assert "640 unavailable" in found.sentence


def test_steps_that_a_trainer_counts_from_1_stay_as_they_are() -> None:
    run = synthetic_run(3, fault="unknown", onset=60)
    moved = dataclasses.replace(run, steps=[s._replace(step=s.step + 1) for s in run.steps])
    [found] = of_kind(find(moved), "unknown")
    assert found.since_step == found.groups.first_step == 61


def test_a_fault_must_last_for_two_windows() -> None:
    # Windows of 50 steps: the second last ends soon after the onset.
    found = find(synthetic_run(5, fault="length_pays", onset=145, steps=200))
    assert of_kind(found, "length_pays") == []


def test_a_criterion_that_a_run_has_left_behind_is_no_finding() -> None:
    run = synthetic_run(7, fault="saturated")
    left = [
        dataclasses.replace(each, steps=each.steps[:90], met=each.met[:90], judged=each.judged[:90])
        for each in run.criteria
    ]
    assert find(dataclasses.replace(run, criteria=left)) == []


def test_a_criterion_that_is_asked_now_and_then_has_windows_of_its_own() -> None:
    # Every tenth step, as with a rubric for each prompt: 30 steps, windows of 7.
    criterion = CriterionFigures(
        "c", "Ends with an offer", 1, range(0, 300, 10), [16] * 30, [16] * 30, 4, 10
    )
    run = RunFigures([StepFigures(s, 16, reward_sum=8.0) for s in range(300)], [criterion])
    assert {each.kind for each in find(run)} == {"inverted", "saturated"}


def test_a_criterion_that_nobody_meets_says_so() -> None:
    steps = range(100), [0] * 100, [16] * 100
    run = RunFigures(
        [StepFigures(s, 16) for s in range(100)], [CriterionFigures("c", "Rhymes", 1, *steps, 0, 9)]
    )
    [found] = find(run)
    assert found.kind == "out_of_reach"
    assert found.sentence.startswith("Nobody meets a criterion: “Rhymes”")


def test_a_criterion_without_teacher_verdicts_is_neither_inverted_nor_out_of_reach() -> None:
    steps = range(100), [0] * 100, [16] * 100
    run = RunFigures(
        [StepFigures(s, 16) for s in range(100)], [CriterionFigures("c", "Rhymes", 1, *steps)]
    )
    assert find(run) == []


def test_a_criterion_sends_no_control_characters_to_a_terminal() -> None:
    steps = range(100), [0] * 100, [16] * 100
    text = "Rhymes\x1b[31m\nin red\u202e.\x07"
    run = RunFigures(
        [StepFigures(s, 16) for s in range(100)], [CriterionFigures("c", text, 1, *steps, 0, 9)]
    )
    [found] = find(run)
    assert "“Rhymes[31m in red”" in found.sentence


def test_criteria_that_all_rollouts_meet_do_not_repeat_each_other() -> None:
    run = RunFigures([StepFigures(0)], pairs=[PairFigures("a", "b", both=1000, neither=3)])
    assert find(run) == []


def test_a_daily_budget_is_compared_with_what_the_day_will_cost() -> None:
    def run(ends_in_s: float) -> RunFigures:
        budget = BudgetFigures("day", spent_usd=5.0, hard_usd=8.0, ends_in_s=ends_in_s)
        return RunFigures(
            [StepFigures(s) for s in range(100)],
            planned_steps=1000,
            cost_usd=10.0,
            seconds_per_step=60.0,
            budgets=[budget],
        )

    # 0.10 dollars a step, a step a minute.
    assert find(run(ends_in_s=29 * 60)) == []
    [found] = find(run(ends_in_s=31 * 60))
    assert found.level == "alarm"
    assert found.values["projected_usd"] == pytest.approx(8.1)


def test_a_run_that_ended_spends_no_more() -> None:
    run = dataclasses.replace(synthetic_run(7, fault="money"), running=False)
    assert find(run) == []


def test_alarms_come_first() -> None:
    run = synthetic_run(4, fault="cut_off", onset=50, steps=240)
    metrics = [s._replace(metrics={"collapse/short": 1.0}) for s in run.steps]
    levels = [each.level for each in find(dataclasses.replace(run, steps=metrics))]
    assert levels == ["alarm", "watch"]


@pytest.mark.parametrize("length", [1, 10, 40])
def test_the_onset_of_a_slow_change_is_its_first_step(length: int) -> None:
    rng = random.Random(length)
    met = []
    for t in range(400):
        share = 0.4 + 0.5 * min(1.0, max(0.0, (t - 200) / length))
        met.append(float(sum(rng.random() < share for _ in range(32))))
    series = Series.of(range(400), ([32.0] * 400, met), mean)
    assert abs(series.change(0, rising=True) - 201) <= 10


def test_wilsons_interval_is_that_of_the_literature() -> None:
    # Newcombe (1998), 81 of 263.
    assert wilson_low(81, 263) == pytest.approx(0.2553, abs=5e-5)


counts = st.integers(0, 40)


@st.composite
def step_figures(draw: st.DrawFn, step: int) -> StepFigures:
    known, unknown = draw(counts), draw(counts)
    rewards = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=known, max_size=known))
    groups = draw(st.integers(0, 4)) if known > 1 else 0
    total = sum(rewards)
    second = draw(st.integers(0, known))
    return StepFigures(
        step,
        rollouts=known + unknown,
        reasons={"timeout": unknown} if unknown else {},
        reward_sum=total,
        reward_squares=sum(reward * reward for reward in rewards),
        truncated=draw(st.integers(0, known + unknown)),
        comparable_groups=groups,
        flat_groups=draw(st.integers(0, groups)),
        words=draw(st.none() | st.integers(0, 10_000)),
        teacher=PairedRewards(known, total, draw(st.floats(0, known))),
        second_judge=PairedRewards(second, sum(rewards[:second]), draw(st.floats(0, second))),
        length_reward=LengthReward(known, groups, 2.0, 2.0, draw(st.floats(-2, 2))),
        metrics={
            "collapse/short": draw(st.sampled_from([None, 0.0, 1.0])),
            "completions/mean_length": draw(st.sampled_from([None, 100.0, 1e308, -1e308])),
        },
    )


@st.composite
def runs(draw: st.DrawFn) -> RunFigures:
    # Few distinct steps, repeated: long runs are quick to draw.
    kinds = draw(st.lists(step_figures(0), max_size=4))
    length = draw(st.sampled_from([0, 1, 2, 19, 20, 21, 80, 130])) if kinds else 0
    steps = [kinds[n * len(kinds) // length]._replace(step=n) for n in range(length)]
    criteria = []
    for key in range(draw(st.integers(0, 2))):
        judged = [draw(counts) for _ in range(3)]
        met = [draw(st.integers(0, n)) for n in judged]
        teacher = draw(counts)
        criteria.append(
            CriterionFigures(
                f"c{key}",
                draw(st.text(max_size=100)),
                1.0,
                range(length),
                [met[3 * n // length] for n in range(length)],
                [judged[3 * n // length] for n in range(length)],
                draw(st.integers(0, teacher)),
                teacher,
            )
        )
    return RunFigures(
        steps,
        criteria,
        [PairFigures("c0", "c1", *(draw(st.integers(0, 300)) for _ in range(4)))],
        planned_steps=draw(st.none() | st.integers(1, 1000)),
        cost_usd=draw(st.floats(0, 100)),
        budgets=[BudgetFigures("total", draw(st.floats(0, 100)), soft_usd=1.0, hard_usd=50.0)],
    )


@settings(max_examples=60, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_findings_do_not_depend_on_the_order_of_what_is_given(
    run: RunFigures, rng: random.Random
) -> None:
    order = rng.sample(range(len(run.steps)), len(run.steps))

    def shuffled(column: Sequence[int]) -> list[int]:
        return [column[place] for place in order]

    other = dataclasses.replace(
        run,
        steps=rng.sample(run.steps, len(run.steps)),
        criteria=[
            dataclasses.replace(
                each,
                steps=shuffled(each.steps),
                met=shuffled(each.met),
                judged=shuffled(each.judged),
            )
            for each in reversed(run.criteria)
        ],
    )
    assert find(other) == find(run)


@settings(max_examples=60, deadline=None)
@given(runs(), st.integers(1, 200))
def test_unknown_rewards_change_no_finding_about_the_known_ones(run: RunFigures, more: int) -> None:
    def known(steps: Sequence[StepFigures]) -> list[Finding]:
        about = {"falling", "length_pays", "judges_part", "above_teacher", "no_spread"}
        # `words` is not known if it is not known of one rollout.
        plain = [each._replace(words=None) for each in steps]
        found = find(RunFigures(plain))
        return [
            dataclasses.replace(each, groups=GroupFilter()) for each in found if each.kind in about
        ]

    steps = [
        each._replace(rollouts=each.rollouts + more, reasons={"timeout": each.unknown + more})
        for each in run.steps
    ]
    outage = [StepFigures(len(steps) + n, more, {"timeout": more}) for n in range(more)]
    assert known(steps) == known(run.steps)
    assert known([*steps, *outage]) == known(run.steps)


@settings(max_examples=100, deadline=None)
@given(runs())
def test_every_finding_is_a_sentence_that_goes_over_the_wire(run: RunFigures) -> None:
    for found in find(run):
        wire = WireFinding.model_validate(dataclasses.asdict(found))
        assert wire.model_validate_json(wire.model_dump_json()) == wire
        assert all(
            math.isfinite(value) for value in found.values.values() if isinstance(value, float)
        )
        assert found.since_step is None or found.since_step >= 1


def test_a_run_of_unknown_rewards_has_no_other_finding() -> None:
    run = RunFigures([StepFigures(s, 8, {"budget": 8}) for s in range(100)])
    assert [each.kind for each in find(run)] == ["unknown"]
