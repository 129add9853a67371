"""What the page of a replay shows, made from the answers that the API gives. Pure."""

from typing import Any

from markscheme.schema import Replay, ReplayDetail
from markscheme_server.pages.labels import labels
from markscheme_server.pages.words import decimal, signed


def replay_page(replay: ReplayDetail) -> dict[str, Any]:
    """Return what the page of a replay shows."""
    return {
        "replay": replay,
        "c": replay.comparison,
        "changed": replay_changes(replay),
        "flips": list(
            zip(
                replay.comparison.criteria,
                labels([(each.text, each.key[:8]) for each in replay.comparison.criteria]),
                strict=True,
            )
        ),
        "signed3": lambda value: signed(value, 3),
        "p_value": p_value,
    }


def replay_changes(replay: Replay) -> list[tuple[str, str]]:
    """Return what a replay changes: names and values."""
    return [
        (name, value)
        for name, value in (
            ("rubric", replay.rubric_id),
            ("judge", replay.judge),
            ("view", replay.view),
            ("mode", replay.verify),
        )
        if value is not None
    ]


def p_value(p: float | None) -> str:
    """Write the result of a test."""
    return "< 0.001" if p is not None and p < 0.001 else decimal(p, 3)
