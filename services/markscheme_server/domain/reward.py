"""The reward of one response: its weighted pass rate. Points are summed only here."""

from collections.abc import Iterable, Mapping

from markscheme.vocabulary import Clamp
from markscheme_server.domain.rubric import Criterion, maximum_score
from markscheme_server.domain.verdict import Verdict


def reward(
    criteria: tuple[Criterion, ...], verdicts: Mapping[str, Verdict], clamp: Clamp = "zero"
) -> float | None:
    """Return r = sum_k w_k v_k / W, where W is the sum of the positive points.

    This is ROPD's rule (arXiv 2605.07396, eq. 4); the verifier's own arithmetic is ignored.
    Negative points (pitfalls, as in HealthBench and RaR) lower the numerator and leave W alone.
    Criteria that do not apply to the response leave both sums. `clamp`: `zero` raises a negative
    reward to 0, as ROPD and HealthBench do; `signed` keeps it. See `reward_range`.

    Returns `None` if any criterion has no verdict or an unscored one, and if W is 0 because no
    criterion with positive points applies: a reward that is not known is not a number.
    """
    earned = 0
    applicable = []
    for criterion in criteria:
        verdict = verdicts.get(criterion.id)
        if verdict is None or verdict.reason is not None:
            return None
        if not verdict.applicable:
            continue
        applicable.append(criterion)
        if verdict.met:
            earned += criterion.points
    possible = maximum_score(tuple(applicable))
    if not possible:
        return None
    return earned / possible if clamp == "signed" else max(0.0, earned / possible)


def reward_range(criteria: tuple[Criterion, ...], clamp: Clamp) -> tuple[float, float]:
    """Return the least and the greatest reward that a response can get.

    The greatest is 1. With `signed` the least is N / W, where N is the sum of the negative points
    and W the smallest sum of positive points that a response can be measured by: that of the
    criteria that always apply, or the lightest of the others where there are none.
    """
    if clamp == "zero":
        return 0.0, 1.0
    penalties = sum(c.points for c in criteria if c.points < 0)
    always = sum(c.points for c in criteria if c.points > 0 and not c.may_not_apply)
    return penalties / (always or min(c.points for c in criteria if c.points > 0)), 1.0


def feedback(criteria: tuple[Criterion, ...], verdicts: Mapping[str, Verdict]) -> list[str]:
    """Return what the response missed, most points first: unmet criteria, and met pitfalls.

    A judge's rationale is added behind the criterion in brackets.
    """
    missed: list[tuple[int, str]] = []
    for criterion in criteria:
        verdict = verdicts.get(criterion.id)
        if verdict is None or verdict.met is None:
            continue
        if criterion.points > 0 and not verdict.met:
            missed.append((criterion.points, criterion.text + _rationale(verdict)))
        elif criterion.points < 0 and verdict.met:
            missed.append((-criterion.points, f"Avoid: {criterion.text}{_rationale(verdict)}"))
    return [text for _, text in sorted(missed, key=lambda m: -m[0])]


def _rationale(verdict: Verdict) -> str:
    return f" ({verdict.rationale})" if verdict.rationale else ""


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values, or `None` if none is known."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
