"""The audit trail."""

from datetime import datetime
from typing import Any, Literal

from markscheme.schema.base import Wire


class AuditEntry(Wire):
    """One recorded action.

    `key` is the prefix of the key that was used, or null for the operator. `subject` is what the
    action changed: `rubric:ID`, `run:ID`, `key:PREFIX` or `team:NAME`.
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
    """`GET /v1/audit`: newest first."""

    object: Literal["list"] = "list"
    data: list[AuditEntry]
    has_more: bool
