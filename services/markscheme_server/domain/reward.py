"""The reward of one response: its weighted pass rate. Points are summed only here."""

from collections.abc import Iterable, Mapping

from markscheme_server.domain.rubric import Criterion, maximum_score
from markscheme_server.domain.verdict import Verdict


def reward(criteria: tuple[Criterion, ...], verdicts: Mapping[str, Verdict]) -> float | None:
    """Return r = sum_k w_k v_k / W in [0, 1], where W is the sum of the positive points.

    This is ROPD's rule (arXiv 2605.07396, eq. 4); the verifier's own arithmetic is ignored.
    Negative points (pitfalls, as in HealthBench and RaR) lower the numerator and leave W alone.
    Returns `None` if any criterion has no verdict or an unscored one: a reward that is not known
    is not a number.
    """
    earned = 0
    for criterion in criteria:
        verdict = verdicts.get(criterion.id)
        if verdict is None or verdict.met is None:
            return None
        if verdict.met:
            earned += criterion.points
    return min(1.0, max(0.0, earned / maximum_score(criteria)))


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
