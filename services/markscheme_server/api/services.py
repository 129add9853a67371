"""What the routes work with, as the composition root put it together."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Query, Request
from pydantic import BeforeValidator

from markscheme.vocabulary import Scope
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.accounts.rate_limit import TeamRates
from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.rubrics import RubricService
from markscheme_server.scoring.scores import ScoreService
from markscheme_server.scoring.teachers import TeacherService
from markscheme_server.scoring.verdicts import VerdictService
from markscheme_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases and what they stand on."""

    settings: Settings
    store: Store
    identity: Authenticator
    rates: TeamRates
    judges: Judges
    rubrics: RubricService
    verdicts: VerdictService
    scores: ScoreService
    teachers: TeacherService
    budgets: BudgetService


async def _services(request: Request) -> Services:  # a plain function would be sent to a thread
    return cast(Services, request.state.services)


UsesServices = Annotated[Services, Depends(_services)]


def _may(scope: Scope) -> Any:
    """Who asks, if their key has the scope. Raises :class:`Forbidden`."""

    async def caller(request: Request) -> Caller:
        found = caller_of(request)
        if scope not in found.scopes:
            raise Forbidden(
                f"this key may not do this: it takes the scope {scope!r}, and it has "
                f"{', '.join(sorted(found.scopes))}",
                code="missing_scope",
            )
        return found

    return Depends(caller)


def caller_of(request: Request) -> Caller:
    """Who asks, as :class:`~markscheme_server.api.middleware.Authenticated` found out."""
    return cast(Caller, request.scope["markscheme.caller"])


Reader = Annotated[Caller, _may("read")]
Scorer = Annotated[Caller, _may("score")]
Inducer = Annotated[Caller, _may("induce")]
Administrator = Annotated[Caller, _may("admin")]

_DIGITS = re.compile(r"[0-9]{1,15}")


def _plain_integer(text: Any) -> Any:
    if isinstance(text, str) and not _DIGITS.fullmatch(text):
        raise ValueError("write a whole number with the digits 0 to 9 only")
    return text


PlainInteger = BeforeValidator(_plain_integer)
"""For numbers in headers and queries: Python's own reading takes ``1_000``, ``+1``, `` 1`` and ``1.0`` too."""

DeadlineMs = Annotated[
    int | None,
    PlainInteger,
    Header(
        alias="X-Deadline-Ms",
        ge=1,
        le=86_400_000,
        description="How long the caller still waits, in milliseconds",
    ),
]
"""What a caller's remaining time is sent as."""

NO_NUL = r"^[^\x00]*$"
PromptText = Annotated[
    str | None,
    Query(max_length=100_000, pattern=NO_NUL, description="The exact text of a one-message prompt"),
]
PromptKey = Annotated[str | None, Query(alias="prompt_key", pattern="^[0-9a-f]{64}$")]
"""The two ways to name a prompt in a query."""

Limit = Annotated[int, PlainInteger, Query(ge=1, le=100)]
"""How many entries of a list are asked for."""

BUDGET_WARNING = "X-Budget-Warning"
WARNS = {
    BUDGET_WARNING: {
        "description": "That a soft or hard budget of the team or the run is reached",
        "schema": {"type": "string"},
    }
}
"""What tells a caller of its budgets while its calls still succeed."""
