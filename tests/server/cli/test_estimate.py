"""Test the estimate of a training's judge calls and their cost.

Counts and times are computed by hand; sizes are compared with the templates.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme.plan import TrainingPlan
from markscheme_server.cli.estimate import Estimate, Load, UnknownJudge, estimate, inductions
from markscheme_server.config import Settings
from markscheme_server.judge import prompts

PLAN = {
    "steps": 100,
    "batches": 100,
    "groups": 800,
    "rollouts_per_group": 8,
    "prompts": 50,
    "prompt_characters": 400,
    "response_tokens": 100,
    "teacher_responses": 2,
    "teacher_characters": 600,
    "reuse": "if_fresh",
    "verify": "rollout",
}
PRICES = {"judge_price_input": 2.0, "judge_price_output": 10.0}


def plan(**changes: Any) -> TrainingPlan:
    return TrainingPlan(**(PLAN | changes))


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **({"judge": "openai", "judge_model": "m"} | changes))


def loads(estimated: Estimate) -> tuple[Load, Load]:
    rubricator, verifier = estimated.loads
    assert (rubricator.role, verifier.role) == ("rubricator", "verifier")
    return rubricator, verifier


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reuse": "frozen"}, 0),
        ({"reuse": "always_new"}, 800),
        ({}, 100),  # 16 visits a prompt, 8 a rubric
        ({"groups": 850}, 150),  # 17 visits: a third rubric each
        ({"groups": 810}, 110),  # ten of the prompts are visited a 17th time
        ({"groups": 30}, 30),  # not all are visited
    ],
)
def test_inductions_follow_the_reuse(changes: dict[str, Any], expected: int) -> None:
    assert inductions(plan(**changes), 8) == expected


@given(groups=st.integers(1, 5000), prompts_=st.integers(1, 500), uses=st.integers(1, 20))
def test_reuse_never_costs_more_than_none(groups: int, prompts_: int, uses: int) -> None:
    made = inductions(plan(groups=groups, prompts=prompts_), uses)
    assert min(groups, prompts_) <= made <= groups
    assert made * uses >= groups


def test_one_verifying_call_a_rollout_and_more_when_criteria_are_shared_out() -> None:
    assert loads(estimate(plan(), settings(), {}))[1].calls == 6400
    assert loads(estimate(plan(), settings(judge_max_criteria=3), {}))[1].calls == 6400 * 3
    assert loads(estimate(plan(), settings(judge_max_criteria=20), {}))[1].calls == 6400
    evaluated = plan(evaluation_groups=20, evaluation_rollouts=50)
    assert loads(estimate(evaluated, settings(), {}))[1].calls == 6450
    pooled = loads(estimate(plan(verify="group"), settings(), {}))[1]
    assert pooled.calls == 800


def test_sizes_are_those_of_the_real_messages() -> None:
    rubricator, verifier = loads(estimate(plan(), settings(), {}))
    one = verifier.prompt_tokens / verifier.calls
    fixed = len(prompts.VERIFIER.template) / 4
    assert fixed + 100 + 100 + 8 * 25 < one < fixed + 100 + 100 + 8 * 30 + 200
    longer = loads(estimate(plan(response_tokens=300), settings(), {}))[1]
    assert longer.prompt_tokens - verifier.prompt_tokens == 200 * verifier.calls
    made = rubricator.prompt_tokens / rubricator.calls
    fixed = len(prompts.RUBRICATOR.template) / 4
    assert fixed + 100 + 2 * 150 + 8 * 100 < made < fixed + 100 + 2 * 150 + 8 * 100 + 400
    pooled = loads(estimate(plan(verify="group"), settings(), {}))[1]
    assert pooled.prompt_tokens / pooled.calls > one + 7 * 100 + 2 * 150


def test_a_response_counts_no_further_than_it_is_judged() -> None:
    short, long = (
        loads(estimate(plan(response_tokens=tokens), settings(judge_max_response_tokens=64), {}))[1]
        for tokens in (200, 4000)
    )
    assert short.prompt_tokens == long.prompt_tokens


def test_hardening_is_paid_for() -> None:
    bare = loads(estimate(plan(), settings(), {}))[1]
    for extra in ("judge_evidence", "judge_hardening"):
        assert (
            loads(estimate(plan(), settings(**{extra: True}), {}))[1].prompt_tokens
            > bare.prompt_tokens
        )


def test_money_is_tokens_at_the_configured_prices() -> None:
    priced = estimate(plan(), settings(**PRICES), {})
    for load in priced.loads:
        assert load.cost == pytest.approx(
            (load.prompt_tokens * 2 + load.completion_tokens * 10) / 1e6
        )
    assert priced.cost == pytest.approx(sum(load.cost or 0 for load in priced.loads))
    unpriced = estimate(plan(), settings(judge_price_input=2.0), {})
    assert unpriced.cost is None
    assert unpriced.unpriced == ("default",)


def test_limits_say_how_long_it_takes_at_least() -> None:
    estimated = estimate(
        plan(), settings(judge_rpm=100, judge_tpm=50_000, judge_concurrency=16), {"default": 1.5}
    )
    calls = sum(load.calls for load in estimated.loads)
    tokens = sum(load.prompt_tokens + load.completion_tokens for load in estimated.loads)
    # A batch: one of the 100 inductions, then 64 verifications in 4 rounds of 16.
    assert [(wait.limit, wait.hours) for wait in estimated.waits] == [
        ("100 calls a minute", pytest.approx(calls / 100 / 60)),
        ("50,000 tokens a minute", pytest.approx(tokens / 50_000 / 60)),
        ("16 at a time, 1.50 s each", pytest.approx(100 * (1 + 4) * 1.5 / 3600)),
    ]
    assert estimate(plan(), settings(), {}).waits == ()


def test_rules_cost_nothing() -> None:
    estimated = estimate(plan(), settings(judge="builtin"), {"builtin": 0.1})
    assert estimated.cost == 0
    assert [load.calls for load in estimated.loads] == [0, 0]
    assert estimated.waits == ()


def test_each_role_is_priced_at_its_own_judge(tmp_path: Path) -> None:
    file = tmp_path / "markscheme.toml"
    file.write_text(
        '[judges.strong]\nmodel = "big"\nprice_input = 3\nprice_output = 15\n'
        '[judges.cheap]\nmodel = "small"\n[roles]\nrubricator = "strong"\nverifier = "cheap"\n'
    )
    both = Settings(_env_file=None, config=file)
    estimated = estimate(plan(), both, {})
    assert [load.judge for load in estimated.loads] == ["strong", "cheap"]
    assert estimated.loads[0].cost is not None
    assert estimated.unpriced == ("cheap",)
    assert {load.judge for load in estimate(plan(judge="strong"), both, {}).loads} == {"strong"}
    with pytest.raises(UnknownJudge, match="builtin, strong, cheap"):
        estimate(plan(judge="other"), both, {})


SECOND = (
    '[judges.fast]\nmodel = "a"\nprice_input = 1\nprice_output = 2\nrpm = 100\n'
    '[judges.strong]\nmodel = "b"\nprice_input = 3\nprice_output = 15\nmax_criteria = 4\n'
    '[roles]\nrubricator = "fast"\nverifier = "fast"\nshadow = "strong"\n'
)


def with_second(tmp_path: Path, **changes: Any) -> Settings:
    file = tmp_path / "markscheme.toml"
    file.write_text(SECOND)
    return Settings(_env_file=None, config=file, **changes)


def test_a_second_judge_and_reasks_are_counted_apart(tmp_path: Path) -> None:
    bare = estimate(plan(), with_second(tmp_path), {})
    both = estimate(plan(), with_second(tmp_path, shadow_share=0.05, reask_share=0.0201), {})
    assert bare.shadow == ()
    assert (both.loads, both.cost, both.waits) == (bare.loads, bare.cost, bare.waits)
    second, again = both.shadow
    assert (second.role, second.judge) == ("second judge", "strong")
    assert second.calls == 6400 * 0.05 * 2  # it is asked four of eight criteria at a time
    assert second.cost == pytest.approx(
        (second.prompt_tokens * 3 + second.completion_tokens * 15) / 1e6
    )
    verifier = bare.loads[1]
    assert (again.role, again.judge, again.calls) == ("asked again", "fast", 129)
    assert again.prompt_tokens * verifier.calls == verifier.prompt_tokens * again.calls
    pooled = estimate(plan(verify="group"), with_second(tmp_path, shadow_share=0.05), {})
    assert pooled.shadow[0].calls == 800 * 0.05 * 2


def test_a_second_judge_is_not_asked_about_itself(tmp_path: Path) -> None:
    settings_ = with_second(tmp_path, shadow_share=1, reask_share=1)
    assert [load.role for load in estimate(plan(judge="strong"), settings_, {}).shadow] == [
        "asked again"
    ]
    assert [load.role for load in estimate(plan(judge="builtin"), settings_, {}).shadow] == [
        "second judge"
    ]


def test_a_second_judge_without_prices_is_named(tmp_path: Path) -> None:
    file = tmp_path / "markscheme.toml"
    file.write_text(SECOND.replace("price_input = 3\n", ""))
    estimated = estimate(plan(), Settings(_env_file=None, config=file, shadow_share=0.5), {})
    assert estimated.cost is not None
    assert estimated.shadow[0].cost is None
    assert estimated.unpriced == ("strong",)


def test_completion_tokens_grow_with_what_is_decided() -> None:
    alone = loads(estimate(plan(), settings(), {}))[1]
    pooled = loads(estimate(plan(verify="group"), settings(), {}))[1]
    each = alone.completion_tokens / alone.calls
    assert pooled.completion_tokens / pooled.calls == 10 * each
    assert 8 * 8 < each < 8 * 20
    assert math.isclose(
        loads(estimate(plan(groups=1600), settings(), {}))[1].completion_tokens,
        2 * alone.completion_tokens,
    )
