"""Format numbers, times and names for pages. An unknown number is a dash."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from markscheme.vocabulary import FindingKind, GroupSort, ReplayState, RunState

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"

FINDINGS: Mapping[FindingKind, str] = {
    "inverted": "Inverted",
    "falling": "Falling",
    "saturated": "Saturated",
    "out_of_reach": "Out of reach",
    "repeats": "Repeats another",
    "noisy": "Noisy",
    "judges_part": "The judges part",
    "length_pays": "Length pays",
    "above_teacher": "Above the teacher",
    "no_spread": "No spread",
    "unknown": "Rewards not known",
    "cut_off": "Cut off",
    "money": "Money",
    "collapse": "Collapse",
}
"""Titles of findings."""

SORTS: Mapping[GroupSort, str] = {
    "newest": "Newest",
    "spread": "Most spread",
    "flat": "No spread",
    "above_teacher": "Above the teacher",
    "unknown": "Not known",
    "length": "Longest winners",
    "disagreement": "Widest disagreement",
}
"""Titles of the orders of groups."""

STATES: Mapping[RunState, str] = {
    "running": "run",
    "silent": "watch",
    "finished": "",
    "stopped": "bad",
    "failed": "bad",
}
"""Style of each state's pill."""

REPLAY_STATES: Mapping[ReplayState, str] = {
    "queued": "",
    "running": "run",
    "paused": "watch",
    "finished": "",
    "cancelled": "bad",
    "failed": "bad",
}
"""Style of each state's pill."""

LIVE_REPLAYS: tuple[ReplayState, ...] = ("queued", "running", "paused")
"""States of a replay that is not over."""

CATEGORIES = {
    "task_fulfilment": "Task fulfilment",
    "observable_quality": "Observable quality",
    "general_reasoning": "General reasoning",
    None: "Other criteria",
}


def decimal(value: float | None, digits: int = 2) -> str:
    """Write a reward or another small figure."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """Write a difference, with its sign; one that rounds to 0 has none."""
    text = decimal(value, digits)
    if value is None or text.startswith(MINUS) or float(text) == 0:
        return text
    return f"+{text}"


def percent(share: float | None, digits: int = 0) -> str:
    """Write a share of 0 to 1 as a percentage."""
    return DASH if share is None else f"{decimal(100 * share, digits)}{SPACE}%"


def whole(value: int | None) -> str:
    """Write a count, with commas between the thousands."""
    return DASH if value is None else f"{value:,}".replace("-", MINUS)


def usd(value: float | None) -> str:
    """Write dollars: two digits, and more for amounts below a cent."""
    if value is None:
        return DASH
    digits = 2 if value == 0 or abs(value) >= 0.01 else 6
    text = f"{abs(value):,.{digits}f}"
    if digits > 2:
        text = text.rstrip("0")
    return f"{MINUS if value < 0 else ''}${text}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Write a count and what is counted."""
    return f"{whole(count)} {one if count == 1 else many or one + 's'}"


def figure(value: float | None, text: str) -> Markup:
    """Return the HTML of a number: shown rounded, with all digits in its `value` attribute."""
    if value is None:
        return Markup('<span class="none">{}</span>').format(text)
    return Markup('<data value="{}">{}</data>').format(repr(value), text)


def moment(time: datetime | None) -> Markup:
    """Return the HTML of a time (UTC), which the script turns into "14 s ago"."""
    if time is None:
        return Markup(DASH)
    at = time.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), f"{at.day} {at:%b %Y, %H:%M} UTC"
    )


def fact(value: Any) -> str:
    """Write a fact of a run."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def share(met: int, judged: int) -> float | None:
    """Return the share that met a criterion, if any response was judged."""
    return met / judged if judged else None
