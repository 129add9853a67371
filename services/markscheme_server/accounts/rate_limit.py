"""Limit the requests per minute of a team, and let them come evenly.

Two windows count: the minute, and a shorter one of `SHORT_WINDOW_S` that takes its part of the
minute's limit, so that a minute's worth of requests does not come at once. What both admit is
paced: a burst begins at `PACE` times the even rate, so that other teams' requests come between.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from markscheme_server.limits.sliding_window import MINUTE_S, LimitState, SlidingWindows

SHORT_WINDOW_S = 6
MIN_BURST = 10
"""Requests that may come in the short window whatever the limit; so few are hardly felt."""
PACE = 2
MIN_PER_S = 10
"""A team's requests may begin this often in a process, whatever its limit."""
FREE_BURST = 2
"""Requests of a burst that begin at once."""
CACHE_S = 1.0
"""Cache a rejection for at most 1 s.

The windows only drain while we reject, so a cached rejection is never stricter than a fresh check,
unless Redis was flushed or has come back.
"""


@dataclass(frozen=True, slots=True)
class RateDecision:
    """Whether a request is admitted, how long it waits first, and its team's limit."""

    admitted: bool
    state: LimitState
    delay_s: float = 0.0


class TeamRates:
    """Counts requests by team. A limit that was changed begins with nothing counted."""

    def __init__(
        self, windows: SlidingWindows, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._minute, self._short = windows, windows.with_window(SHORT_WINDOW_S)
        self._clock = clock
        self._rejections: dict[str, tuple[int, float, LimitState]] = {}
        self._paced_until: dict[str, float] = {}

    async def hit(self, team: str, rpm: int) -> RateDecision:
        """Count a request of a team that may send `rpm` per minute, if it is admitted.

        Most rejections are answered from the cache, without a round trip.
        """
        if (cached := self._cached_rejection(team, rpm)) is not None:
            return RateDecision(False, cached)
        names = "team", team, "requests"
        short_limit = _short_limit(rpm)
        # Only look at the short window first: a rejection must not count in either window.
        short_state = (
            LimitState(rpm, 0.0, 0.0)
            if short_limit is None
            else await self._short.limit_state(short_limit, 1, *names)
        )
        admitted = short_state.remaining > 0 and await self._minute.hit(rpm, 1, *names)
        if admitted and short_limit is not None:
            # Another request may have taken the last place in the short window meanwhile.
            admitted = await self._short.hit(short_limit, 1, *names)
        now, state = self._clock(), await self._minute.limit_state(rpm, 1, *names)
        if admitted:
            self._rejections.pop(team, None)
            return RateDecision(True, state, self._pace(team, rpm, now))
        state = replace(
            state,
            remaining=min(state.remaining, short_state.remaining),
            retry_after_s=max(state.retry_after_s, short_state.retry_after_s),
        )
        self._rejections[team] = rpm, now, state
        return RateDecision(False, state)

    def _pace(self, team: str, rpm: int, now: float) -> float:
        """Give the request its turn and return the seconds until then.

        The wait is bounded: `_short_limit(rpm)` requests take `SHORT_WINDOW_S / PACE` at most.
        """
        spacing_s = 1 / max(MIN_PER_S, PACE * rpm / MINUTE_S)
        turn = max(now, self._paced_until.get(team, now))
        self._paced_until[team] = turn + spacing_s
        # The first `FREE_BURST` requests begin at once, and those after them move up as far.
        return max(0.0, turn - now - (FREE_BURST - 1) * spacing_s)

    def _cached_rejection(self, team: str, rpm: int) -> LimitState | None:
        """Return the state of the limit while it is known to be exceeded."""
        limit, since, state = self._rejections.get(team, (0, 0.0, None))
        passed_s = self._clock() - since
        if state is None or limit != rpm or passed_s >= min(state.retry_after_s, CACHE_S):
            return None
        return replace(
            state,
            retry_after_s=state.retry_after_s - passed_s,
            reset_s=state.reset_s - passed_s,
        )


def _short_limit(rpm: int) -> int | None:
    """Return how many of `rpm` requests may come in the short window; `None`: all of them."""
    limit = max(MIN_BURST, math.ceil(rpm * SHORT_WINDOW_S / MINUTE_S))
    return limit if limit < rpm else None
