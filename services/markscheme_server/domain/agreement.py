"""How far two judges agree, and how sure a share is."""

import math
from typing import NamedTuple

from markscheme_server.domain.verdict import MET, NOT_APPLICABLE, NOT_MET, UNKNOWN

Table = tuple[int, int, int, int]
"""Of what is known of both: met in both, only in the first, only in the second, in neither."""
_MET_BITS = str.maketrans({MET: "1", NOT_MET: "0", NOT_APPLICABLE: "0", UNKNOWN: "0"})
_JUDGED_BITS = str.maketrans({MET: "1", NOT_MET: "1", NOT_APPLICABLE: "0", UNKNOWN: "0"})
_Z95 = 1.959963984540054
"""Of the normal distribution, 95 % is within this many standard deviations."""


class _Bits(NamedTuple):
    """Verdicts with one bit each: a single operation compares thousands."""

    met: int
    judged: int

    @classmethod
    def of(cls, verdicts: str) -> "_Bits":
        if not verdicts:
            return cls(0, 0)
        return cls(int(verdicts.translate(_MET_BITS), 2), int(verdicts.translate(_JUDGED_BITS), 2))

    def table(self, other: "_Bits") -> Table:
        known = self.judged & other.judged
        both = (self.met & other.met).bit_count()
        first = (self.met & known).bit_count() - both
        second = (other.met & known).bit_count() - both
        return both, first, second, known.bit_count() - both - first - second


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
    ones, others = [], []
    for one, other in pairs:
        both = min(len(one), len(other))
        ones.append(one[:both])
        others.append(other[:both])
    agreed, first_only, second_only, neither = _Bits.of("".join(ones)).table(
        _Bits.of("".join(others))
    )
    count = agreed + first_only + second_only + neither
    if not count:
        return Agreement(0, None, None, None, None)
    share = (agreed + neither) / count
    first = (agreed + first_only) / count
    second = (agreed + second_only) / count
    chance = first * second + (1 - first) * (1 - second)
    if chance >= 1:
        return Agreement(count, share, None, None, None)
    kappa = (share - chance) / (1 - chance)
    margin = _Z95 * math.sqrt(share * (1 - share) / count) / (1 - chance)
    return Agreement(count, share, kappa, max(-1.0, kappa - margin), min(1.0, kappa + margin))


def cross_tables(joined: str, criteria: int) -> dict[tuple[int, int], Table]:
    """Return the table of each two criteria by their indices.

    `joined`: verdict strings of so many criteria each.
    """
    if not joined:
        return {}
    columns = [_Bits.of(joined[index::criteria]) for index in range(criteria)]
    return {
        (one, other): columns[one].table(columns[other])
        for one in range(criteria)
        for other in range(one + 1, criteria)
    }


def wilson(successes: int, trials: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share; `None` without trials."""
    if not trials:
        return None
    share, z2 = successes / trials, _Z95 * _Z95
    middle = share + z2 / (2 * trials)
    margin = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)
