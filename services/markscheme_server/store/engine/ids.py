"""Ids and times of stored rows."""

import secrets
import time
from datetime import UTC, datetime


def new_id(prefix: str) -> str:
    """``prefix_`` and 26 characters that sort by time of making: 12 of milliseconds, 14 random."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(7)}"


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def as_utc(stored: datetime) -> datetime:
    """A time read back: SQLite drops the zone."""
    return stored if stored.tzinfo else stored.replace(tzinfo=UTC)
