"""How far two judges agree, and how sure a share is."""

import math
from collections import Counter
from itertools import chain
from typing import NamedTuple

from markscheme_server.domain.verdict import MET, NOT_MET

_Z95 = 1.959963984540054
"""Of the normal distribution, 95 % is within this many standard deviations."""


class Agreement(NamedTuple):
    """Verdicts of two judges on the same questions.

    `share`: in how many they agree. `kappa`: Cohen's kappa, `None` where both always say the same
    one thing, with its 95 % interval.
    """

    verdicts: int
    share: float | None
    kappa: float | None
    low: float | None
    high: float | None


def agreement(pairs: list[tuple[str, str]]) -> Agreement:
    """Compare verdict strings of one judge with those of another; only what both know counts.

    The interval is that of Cohen (1960), "A coefficient of agreement for nominal scales".
    """
    cells = Counter(chain.from_iterable(zip(one, other, strict=False) for one, other in pairs))
    known = {(a, b): cells[a, b] for a in MET + NOT_MET for b in MET + NOT_MET}
    count = sum(known.values())
    if not count:
        return Agreement(0, None, None, None, None)
    share = (known[MET, MET] + known[NOT_MET, NOT_MET]) / count
    first = (known[MET, MET] + known[MET, NOT_MET]) / count
    second = (known[MET, MET] + known[NOT_MET, MET]) / count
    chance = first * second + (1 - first) * (1 - second)
    if chance >= 1:
        return Agreement(count, share, None, None, None)
    kappa = (share - chance) / (1 - chance)
    margin = _Z95 * math.sqrt(share * (1 - share) / count) / (1 - chance)
    return Agreement(count, share, kappa, max(-1.0, kappa - margin), min(1.0, kappa + margin))


def wilson(successes: int, trials: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share; `None` without trials."""
    if not trials:
        return None
    share, z2 = successes / trials, _Z95 * _Z95
    middle = share + z2 / (2 * trials)
    margin = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)
