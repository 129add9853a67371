"""A run in text: its address, its curve and its findings, for terminals and logs."""

from collections.abc import Sequence

import httpx

from markscheme.names import path_segment
from markscheme.schema import Finding, FindingCounts

_BARS = "▁▂▃▄▅▆▇█"
UNKNOWN_BAR = "·"
"""What stands in a curve where nothing is known."""
MARKS = {"alarm": "!", "watch": "△"}
"""What stands before a finding of each level."""
STYLES = {"alarm": "red", "watch": "yellow"}


def run_url(base_url: str, run_id: str) -> str:
    """Return the address of a run's page, without a password."""
    return _page_url(base_url, "runs", run_id)


def replay_url(base_url: str, replay_id: str) -> str:
    """Return the address of a replay's page, without a password."""
    return _page_url(base_url, "replays", replay_id)


def _page_url(base_url: str, kind: str, id_: str) -> str:
    base = str(httpx.URL(base_url).copy_with(userinfo=b"")).rstrip("/")
    return f"{base}/pages/{kind}/{path_segment(id_)}"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """Return a curve of rewards as one line of bars, `width` at most.

    The lowest bar is 0, or the lowest value if it is negative; the highest is 1, or the highest
    value if it is more. Where there are more values than bars, a bar is the mean of its known ones.
    """
    count = min(width, len(values))
    parts = [
        values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)
    ]
    means = [
        sum(known) / len(known) if (known := [v for v in part if v is not None]) else None
        for part in parts
    ]
    known = [value for value in means if value is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    return "".join(
        UNKNOWN_BAR
        if value is None
        else _BARS[min(int((value - low) / (high - low) * len(_BARS)), len(_BARS) - 1)]
        for value in means
    )


def finding_line(finding: Finding) -> str:
    """Return a finding as one line."""
    return f"{MARKS[finding.level]} {finding.sentence}"


def finding_counts(counts: FindingCounts | None) -> str:
    """Return how many findings there are of each level, such as `!2 △1`.

    Empty if there are none, and if that is not known.
    """
    if counts is None:
        return ""
    each = ((MARKS["alarm"], counts.alarm), (MARKS["watch"], counts.watch))
    return " ".join(f"{mark}{count}" for mark, count in each if count)
