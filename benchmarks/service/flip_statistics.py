"""How often two ways of asking disagree, with standard errors clustered by rollout."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Margins = Sequence[Sequence[float]]
"""By rollout and criterion: logit(met) − logit(not met)."""


@dataclass(frozen=True)
class Comparison:
    """Two ways of asking the same questions.

    Attributes:
        verdicts: How many were compared.
        flips: Share that differs.
        error: Standard error of `flips`.
        met: Share met in each way.
        expected: Share that two independent judges with these shares would differ in.
        correlation: Of the margins.
    """

    verdicts: int
    flips: float
    error: float
    met: tuple[float, float]
    expected: float
    correlation: float


def compare(one: Margins, other: Margins, *, balanced: bool = False) -> Comparison:
    """Compare the verdicts of both ways: a margin above 0 is met.

    With `balanced` the threshold of each way and criterion is its median margin. That removes a
    small model's preference for one answer and leaves changes of order between rollouts.
    """
    left, right = (_centred(margins) if balanced else margins for margins in (one, other))
    differs = [
        [(a > 0) is not (b > 0) for a, b in zip(x, y, strict=True)]
        for x, y in zip(left, right, strict=True)
    ]
    shares = [statistics.fmean(row) for row in differs]
    met = (_share_met(left), _share_met(right))
    return Comparison(
        verdicts=sum(map(len, differs)),
        flips=statistics.fmean(shares),
        error=statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan,
        met=met,
        expected=met[0] * (1 - met[1]) + met[1] * (1 - met[0]),
        correlation=_correlation(one, other),
    )


def _centred(margins: Margins) -> Margins:
    medians = [statistics.median(column) for column in zip(*margins, strict=True)]
    return [
        [margin - median for margin, median in zip(row, medians, strict=True)] for row in margins
    ]


def _share_met(margins: Margins) -> float:
    return statistics.fmean(margin > 0 for row in margins for margin in row)


def _correlation(one: Margins, other: Margins) -> float:
    x, y = ([margin for row in margins for margin in row] for margins in (one, other))
    return statistics.correlation(x, y) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan
