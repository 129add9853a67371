"""Requests a minute of the teams that have a limit, and of a tenth of it: a minute's worth does not come at once."""

import math
import time
from dataclasses import dataclass, replace

from markscheme_server.limits.sliding_window import MINUTE_S, LimitState, SlidingWindows

SHORT_S = 6
"""The shorter window, in which a tenth of the minute's requests may come."""
LEAST_AT_ONCE = 10
"""So many may come in it whatever the limit: they are hardly felt, and a team with a small limit may send them so."""
REMEMBERED_S = 1.0
"""How long it is believed at most that a team's limit is used up. Counts only fall while nothing is let in, so nothing
is refused that a question would have let in, unless Redis was emptied or has come back."""


@dataclass(frozen=True, slots=True)
class RateDecision:
    """Whether a request is let in, and the room that its team's limit has left."""

    admitted: bool
    room: LimitState


class TeamRates:
    """Counts requests by team. A limit that is changed begins with nothing counted."""

    def __init__(self, windows: SlidingWindows) -> None:
        self._minute, self._short = windows, windows.of(SHORT_S)
        self._used_up: dict[str, tuple[int, float, LimitState]] = {}

    async def take(self, team: str, rpm: int) -> RateDecision:
        """Count one request of a team that may send ``rpm`` a minute. Refusals are not counted, and most of them ask
        nobody."""
        known = self._refused(team, rpm)
        if known is not None:
            return RateDecision(False, known)
        names = "team", team, "requests"
        soon = await self._soon(rpm, *names)
        admitted = soon.remaining > 0 and await self._minute.take(rpm, 1, *names)
        if admitted and (short := _short(rpm)) is not None:
            admitted = await self._short.take(short, 1, *names)
        at, room = time.monotonic(), await self._minute.room(rpm, 1, *names)
        if not admitted:
            room = replace(
                room,
                remaining=min(room.remaining, soon.remaining),
                wait_s=max(room.wait_s, soon.wait_s),
            )
        if admitted:
            self._used_up.pop(team, None)
        else:
            self._used_up[team] = rpm, at, room
        return RateDecision(admitted, room)

    async def _soon(self, rpm: int, *names: str) -> LimitState:
        """The room in the shorter window. It is only looked at: a refusal is to take nothing of either."""
        short = _short(rpm)
        return (
            LimitState(rpm, 0.0, 0.0) if short is None else await self._short.room(short, 1, *names)
        )

    def _refused(self, team: str, rpm: int) -> LimitState | None:
        """What a request is to be told, when it is known that there is no room for it yet."""
        limit, since, room = self._used_up.get(team, (0, 0.0, None))
        passed_s = time.monotonic() - since
        if room is None or limit != rpm or passed_s >= min(room.wait_s, REMEMBERED_S):
            return None
        return replace(room, wait_s=room.wait_s - passed_s, whole_s=room.whole_s - passed_s)


def _short(rpm: int) -> int | None:
    """How many of ``rpm`` requests a minute may come in the shorter window; ``None``: all of them."""
    short = max(LEAST_AT_ONCE, math.ceil(rpm * SHORT_S / MINUTE_S))
    return short if short < rpm else None
