"""Test the reward: in [0, 1], monotone, independent of order, and null if anything is unknown."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.reward import feedback, reward
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.verdict import Verdict

POINTS = st.integers(-100, 100).filter(bool)


@st.composite
def marked(draw: st.DrawFn) -> tuple[tuple[Criterion, ...], dict[str, Verdict]]:
    points = [draw(st.integers(1, 100)), *draw(st.lists(POINTS, max_size=11))]
    criteria = tuple(Criterion(f"c{i}", f"criterion {i}", p) for i, p in enumerate(points, 1))
    return criteria, {c.id: Verdict(c.id, draw(st.booleans())) for c in criteria}


@given(marked())
def test_it_is_the_clamped_weighted_pass_rate(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]],
) -> None:
    criteria, verdicts = case
    value = reward(criteria, verdicts)
    assert value is not None
    assert math.isfinite(value)
    earned = math.fsum(c.points for c in criteria if verdicts[c.id].met)
    possible = math.fsum(c.points for c in criteria if c.points > 0)
    assert value == pytest.approx(max(0.0, min(1.0, earned / possible)), abs=1e-12)


@given(marked(), st.data())
def test_meeting_more_never_pays_less(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]], data: st.DataObject
) -> None:
    criteria, verdicts = case
    changed = data.draw(st.sampled_from(criteria))
    without = reward(criteria, verdicts | {changed.id: Verdict(changed.id, False)})
    beside = reward(criteria, verdicts | {changed.id: Verdict(changed.id, True)})
    assert without is not None
    assert beside is not None
    assert beside >= without if changed.points > 0 else beside <= without


@given(marked(), st.randoms())
def test_order_does_not_matter(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]], random: object
) -> None:
    criteria, verdicts = case
    shuffled = list(criteria)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reward(tuple(shuffled), verdicts) == reward(criteria, verdicts)


@given(marked(), st.sampled_from(UnscoredReason), st.data())
def test_one_unknown_verdict_makes_it_unknown(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]],
    reason: UnscoredReason,
    data: st.DataObject,
) -> None:
    criteria, verdicts = case
    lost = data.draw(st.sampled_from(criteria)).id
    assert reward(criteria, verdicts | {lost: Verdict(lost, None, reason)}) is None
    assert reward(criteria, {k: v for k, v in verdicts.items() if k != lost}) is None


def test_feedback_names_what_was_missed_most_points_first() -> None:
    criteria = (
        Criterion("c1", "small", 1),
        Criterion("c2", "large", 5),
        Criterion("c3", "pitfall", -3),
        Criterion("c4", "met", 4),
    )
    verdicts = {
        "c1": Verdict("c1", False),
        "c2": Verdict("c2", False),
        "c3": Verdict("c3", True),
        "c4": Verdict("c4", True),
    }
    assert feedback(criteria, verdicts) == ["large", "Avoid: pitfall", "small"]


@pytest.mark.parametrize(("met", "reason"), [(None, None), (True, UnscoredReason.TIMEOUT)])
def test_a_verdict_is_decided_or_has_a_reason(
    met: bool | None, reason: UnscoredReason | None
) -> None:
    with pytest.raises(ValueError, match="unscored with a reason"):
        Verdict("c1", met, reason)
