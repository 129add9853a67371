"""Ids and times of stored rows."""

import secrets
import time
from datetime import UTC, datetime


def new_id(prefix: str) -> str:
    """Return ``prefix_`` and 26 hexadecimal digits that sort by time; the last 14 are random."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(7)}"


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def as_utc(stored: datetime) -> datetime:
    """Add the time zone to a stored time, which SQLite drops."""
    return stored if stored.tzinfo else stored.replace(tzinfo=UTC)
