"""Who did what."""

from datetime import datetime
from typing import Any, Literal

from markscheme.schema.base import Wire


class AuditEntry(Wire):
    """One deed. ``key``: the prefix of the key it was done with; ``None``: the operator's doing.

    ``subject`` is what it was done to: ``rubric:ID``, ``key:PREFIX`` or ``team:NAME``.
    """

    object: Literal["audit.entry"] = "audit.entry"
    id: str
    team: str
    key: str | None
    action: str
    subject: str
    detail: dict[str, Any]
    created_at: datetime


class AuditList(Wire):
    """``GET /v1/audit``: newest first."""

    object: Literal["list"] = "list"
    data: list[AuditEntry]
    has_more: bool
