"""Responses as rows of `texts`: a text, or a trajectory as JSON beside its last text."""

from datetime import datetime
from typing import Any

from markscheme_server.domain.trajectory import Response, Trajectory, reply_of


def response_row(key: str, response: Response, created: datetime) -> dict[str, Any]:
    """Return the row of `texts` that holds a response."""
    return {
        "key": key,
        "text": response if isinstance(response, str) else reply_of(response),
        "messages": None if isinstance(response, str) else response.json,
        "created_at": created,
    }


def stored_response(text: str, messages: str | None) -> Response:
    """Return the response that a row of `texts` holds."""
    return text if messages is None else Trajectory(messages)
