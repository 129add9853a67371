"""The reward of one response: its weighted pass rate. Points are summed here and nowhere else."""

from collections.abc import Iterable, Mapping

from markscheme_server.domain.rubric import Criterion, maximum_score
from markscheme_server.domain.verdict import Verdict


def reward(criteria: tuple[Criterion, ...], verdicts: Mapping[str, Verdict]) -> float | None:
    """r = sum_k w_k v_k / W, clamped to [0, 1]; W is the sum of the positive points.

    The rule of ROPD (arXiv 2605.07396, eq. 4) with the verifier's own arithmetic ignored. Negative points
    (pitfalls, as in HealthBench and RaR) lower the numerator and leave W alone. ``None`` when any criterion
    has no verdict or an unscored one: a reward that is not known is not a number.
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
    """What the response missed, most points first: unmet criteria, and pitfalls it fell into.

    A judge's rationale stands behind the criterion it argues.
    """
    missed: list[tuple[int, str]] = []
    for criterion in criteria:
        verdict = verdicts.get(criterion.id)
        if verdict is None or verdict.met is None:
            continue
        if criterion.points > 0 and not verdict.met:
            missed.append((criterion.points, criterion.text + _argued(verdict)))
        elif criterion.points < 0 and verdict.met:
            missed.append((-criterion.points, f"Avoid: {criterion.text}{_argued(verdict)}"))
    return [text for _, text in sorted(missed, key=lambda m: -m[0])]


def _argued(verdict: Verdict) -> str:
    return f" ({verdict.rationale})" if verdict.rationale else ""


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; ``None`` when none is known."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
