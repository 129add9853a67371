"""Routing: SRPO's table, and its carry-over to continuous scores."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_train.routing import TEACHER, Branch, route

TABLES = json.loads((Path(__file__).parent / "vectors" / "srpo.json").read_text())["V6_routing"]
BINARY = TABLES["paper_binary_tau0.5"]
CONTINUOUS = TABLES["continuous_tau_route0.6_tau_demo0.8"]


def expected(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    return tuple(row["route"].lower() for row in rows), tuple(row["demo"] for row in rows)


@pytest.mark.parametrize("rewards", list(BINARY))
def test_binary_rewards_are_routed_as_in_the_paper(rewards: str) -> None:
    routes = route(json.loads(rewards))
    assert (routes.branches, routes.demonstrations) == expected(BINARY[rewards])


@pytest.mark.parametrize("case", list(CONTINUOUS))
def test_continuous_scores_have_a_threshold_each_for_success_and_demonstration(case: str) -> None:
    scores = [row["reward"] for row in CONTINUOUS[case]]
    feedback = [i in (2, 3) for i in range(4)] if "with feedback" in case else None
    routes = route(scores, success=0.6, demonstration=0.8, feedback=feedback)
    assert (routes.branches, routes.demonstrations) == expected(CONTINUOUS[case])


def test_negative_rewards_are_failures_and_are_led_by_any_that_is_better() -> None:
    routes = route([-0.9, -0.3, 0.6], success=0.5)
    assert routes.branches == (Branch.SDPO, Branch.SDPO, Branch.GRPO)
    assert routes.demonstrations == (2, 2, None)
    assert route([-0.9, -0.3], success=-0.5, gap=0.5).demonstrations == (1, None)


def test_a_score_at_a_threshold_meets_it() -> None:
    routes = route([0.5, 0.0])
    assert routes.branches == (Branch.GRPO, Branch.SDPO)
    assert routes.demonstrations == (None, 0)
    assert route([0.8, 0.6], success=0.7, demonstration=0.8, gap=0.2).demonstrations == (None, 0)
    assert route([0.0], success=0.5, teacher_score=0.5).demonstrations == (TEACHER,)


def test_a_near_tie_is_left_to_the_reward() -> None:
    assert route([0.8, 0.65], success=0.7, demonstration=0.8, gap=0.2).branches == (
        Branch.GRPO,
        Branch.GRPO,
    )
    assert route([0.9, 0.65], success=0.7, demonstration=0.8, gap=0.2).branches == (
        Branch.GRPO,
        Branch.SDPO,
    )


def test_the_reward_alone_decides_success_also_of_a_truncated_rollout() -> None:
    routes = route([1.0, 0.0, 0.0, 0.0], truncated=[True, False, False, True])
    assert routes.branches == (Branch.GRPO, Branch.SDPO, Branch.SDPO, Branch.SDPO)
    assert routes.demonstrations == (None, 0, 0, 0)


def test_a_truncated_rollout_is_a_demonstration_only_where_no_other_is() -> None:
    routes = route([0.9, 0.0, 0.7], truncated=[True, False, False])
    assert routes.branches == (Branch.GRPO, Branch.SDPO, Branch.GRPO)
    assert routes.demonstrations == (2, 2, 0)


def test_a_truncated_rollout_fails_and_shows_nothing_if_that_is_asked_for() -> None:
    routes = route([1.0, 0.0, 1.0], truncated=[True, False, False], truncated_fails=True)
    assert routes.branches == (Branch.SDPO, Branch.SDPO, Branch.GRPO)
    assert routes.demonstrations == (2, 2, None)
    lone = route([1.0, 0.0], truncated=[True, False], truncated_fails=True)
    assert lone.branches == (Branch.GRPO, Branch.GRPO)


def test_what_has_no_score_goes_nowhere_and_shows_nothing() -> None:
    routes = route([None, 0.0, math.nan, 1.0])
    assert routes.branches == (Branch.UNSCORED, Branch.SDPO, Branch.UNSCORED, Branch.GRPO)
    assert routes.demonstrations == (None, 3, None, None)


def test_the_teacher_stands_in_only_where_no_rollout_can() -> None:
    assert route([0.0, 0.0], teacher_score=1.0).demonstrations == (TEACHER, TEACHER)
    assert route([0.0, 1.0], teacher_score=1.0).demonstrations == (1, TEACHER)
    assert route([0.0, 0.0], teacher_score=0.4).branches == (Branch.GRPO, Branch.GRPO)


def test_the_teachers_response_too_must_lead_by_the_gap() -> None:
    assert route([0.3], gap=0.3, teacher_score=0.6).demonstrations == (TEACHER,)
    assert route([0.3], gap=0.4, teacher_score=0.6).demonstrations == (None,)


def test_what_succeeded_is_told() -> None:
    routes = route([1.0, 0.5, 0.4, None, 1.0], truncated=[False] * 4 + [True])
    assert routes.successes == (True, True, False, False, True)
    failing = route([1.0, 0.4], truncated=[True, False], truncated_fails=True)
    assert failing.successes == (False, False)


def test_without_a_word_about_it_nothing_was_truncated() -> None:
    assert route([1.0, 0.0], truncated_fails=True).demonstrations == (None, 0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one length"):
        route([1.0, 0.0], truncated=[True])


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.data(),
)
def test_what_holds_for_all_groups(
    scores: list[float | None], success: float, least: float, gap: float, data: st.DataObject
) -> None:
    cut = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    fails = data.draw(st.booleans())
    routes = route(
        scores,
        success=success,
        demonstration=least,
        gap=gap,
        truncated=cut,
        truncated_fails=fails,
    )
    for own, (score, branch, shown) in enumerate(
        zip(scores, routes.branches, routes.demonstrations, strict=True)
    ):
        assert (branch is Branch.UNSCORED) == (score is None)
        if shown is not None:
            assert shown != own
            assert scores[shown] is not None
            minimum = max(least, score + gap) if gap else least  # type: ignore[operator]
            assert scores[shown] >= minimum  # type: ignore[operator]
            whole = [
                other
                for i, other in enumerate(scores)
                if i != own and other is not None and not cut[i]
            ]
            assert not cut[shown] or (not fails and all(other < minimum for other in whole))
        if branch is Branch.SDPO:
            assert shown is not None
            assert score < success or (fails and cut[own])  # type: ignore[operator]


def test_what_is_too_short_is_not_shown_but_succeeds() -> None:
    routes = route([1.0, 0.9, 0.0], too_short=[True, False, False])
    assert routes.demonstrations == (1, None, 1)
    assert [str(branch) for branch in routes.branches] == ["grpo", "grpo", "sdpo"]
    alone = route([1.0, 0.0], too_short=[True, False], teacher_score=0.8)
    assert alone.demonstrations == (None, TEACHER)
