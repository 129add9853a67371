"""Test the reward: in its range, monotone, independent of order, null if anything is unknown."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme.vocabulary import Clamp, UnscoredReason
from markscheme_server.domain.reward import feedback, reward, reward_range
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


CLAMPS: list[Clamp] = ["zero", "signed"]


@st.composite
def partly_applicable(
    draw: st.DrawFn,
) -> tuple[tuple[Criterion, ...], dict[str, Verdict]]:
    """Criteria of which some may not apply, and verdicts that say so of some of those."""
    points = draw(st.lists(POINTS, min_size=1, max_size=8).filter(lambda ps: max(ps) > 0))
    criteria = tuple(
        Criterion(f"c{i}", f"criterion {i}", p, may_not_apply=draw(st.booleans()))
        for i, p in enumerate(points, 1)
    )
    verdicts = {}
    for c in criteria:
        met = draw(st.sampled_from([True, False, None] if c.may_not_apply else [True, False]))
        verdicts[c.id] = Verdict(c.id, met, applicable=met is not None)
    return criteria, verdicts


@given(partly_applicable(), st.sampled_from(CLAMPS))
def test_what_does_not_apply_counts_as_if_it_were_not_in_the_rubric(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]], clamp: Clamp
) -> None:
    criteria, verdicts = case
    rest = tuple(c for c in criteria if verdicts[c.id].applicable)
    value = reward(criteria, verdicts, clamp)
    if any(c.points > 0 for c in rest):
        assert value == reward(rest, {c.id: verdicts[c.id] for c in rest}, clamp)
        assert value is not None
    else:
        assert value is None


@given(partly_applicable(), st.sampled_from(CLAMPS))
def test_every_reward_is_within_the_range_that_is_told(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]], clamp: Clamp
) -> None:
    criteria, verdicts = case
    least, greatest = reward_range(criteria, clamp)
    value = reward(criteria, verdicts, clamp)
    assert value is None or least <= value <= greatest
    assert clamp == "signed" or (least, greatest) == (0.0, 1.0)


@given(partly_applicable())
def test_both_ends_of_the_signed_range_are_reached(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]],
) -> None:
    criteria, _ = case
    least, greatest = reward_range(criteria, "signed")
    positive = [c for c in criteria if c.points > 0]
    always = [c for c in positive if not c.may_not_apply]
    measured = always or [min(positive, key=lambda c: c.points)]
    worst = {
        c.id: Verdict(
            c.id,
            None if c.points > 0 and c not in measured else c.points < 0,
            applicable=c.points < 0 or c in measured,
        )
        for c in criteria
    }
    best = {c.id: Verdict(c.id, c.points > 0) for c in criteria}
    assert reward(criteria, worst, "signed") == least
    assert reward(criteria, best, "signed") == greatest


@given(marked())
def test_zero_is_signed_raised_to_nothing_less_than_0(
    case: tuple[tuple[Criterion, ...], dict[str, Verdict]],
) -> None:
    criteria, verdicts = case
    signed = reward(criteria, verdicts, "signed")
    assert signed is not None
    assert reward(criteria, verdicts, "zero") == max(0.0, signed)


def test_two_negative_rewards_are_told_apart_when_signed() -> None:
    criteria = (Criterion("c1", "good", 10), Criterion("c2", "bad", -3), Criterion("c3", "bad", -6))
    verdicts = {
        name: {
            "c1": Verdict("c1", False),
            "c2": Verdict("c2", True),
            "c3": Verdict("c3", worse),
        }
        for name, worse in (("one", False), ("both", True))
    }
    assert [reward(criteria, v, "signed") for v in verdicts.values()] == [-0.3, -0.9]
    assert [reward(criteria, v) for v in verdicts.values()] == [0.0, 0.0]
    assert reward_range(criteria, "signed") == (-0.9, 1.0)


def test_an_unknown_verdict_leaves_the_reward_unknown_beside_one_that_does_not_apply() -> None:
    criteria = (Criterion("c1", "a", 1), Criterion("c2", "b", 1, may_not_apply=True))
    verdicts = {
        "c1": Verdict("c1", None, UnscoredReason.TIMEOUT),
        "c2": Verdict("c2", None, applicable=False),
    }
    assert reward(criteria, verdicts) is None


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


@pytest.mark.parametrize(
    ("met", "reason", "applicable"),
    [
        (None, None, True),
        (True, UnscoredReason.TIMEOUT, True),
        (True, None, False),
        (None, UnscoredReason.TIMEOUT, False),
    ],
)
def test_a_verdict_is_decided_or_has_a_reason(
    met: bool | None, reason: UnscoredReason | None, applicable: bool
) -> None:
    with pytest.raises(ValueError, match="unscored with a reason"):
        Verdict("c1", met, reason, applicable=applicable)


def test_feedback_leaves_out_what_does_not_apply() -> None:
    criteria = (Criterion("c1", "one", 1, may_not_apply=True), Criterion("c2", "two", 1))
    verdicts = {"c1": Verdict("c1", None, applicable=False), "c2": Verdict("c2", False)}
    assert feedback(criteria, verdicts) == ["two"]
