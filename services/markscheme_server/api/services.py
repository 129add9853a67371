"""The services that routes call, who may call a route, and parameters that several routes have."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BeforeValidator

from markscheme.schema import JudgeList
from markscheme.vocabulary import Scope
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.accounts.erasure import ErasureReport
from markscheme_server.accounts.rate_limit import TeamRates
from markscheme_server.accounts.sessions import Sessions
from markscheme_server.accounts.usage import UsageService
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden
from markscheme_server.scoring.judge_reports import JudgeReportService
from markscheme_server.scoring.replays import ReplayService
from markscheme_server.scoring.rollouts import RolloutService
from markscheme_server.scoring.rubric_library import RubricLibrary
from markscheme_server.scoring.run_comparison import RunComparisonService
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.scoring.runs import RunService
from markscheme_server.scoring.scores import ScoreService
from markscheme_server.scoring.teachers import TeacherService
from markscheme_server.scoring.unnamed_groups import UnnamedGroups
from markscheme_server.store.audit import Actor
from markscheme_server.store.idempotency import IdempotencyStore


@dataclass(frozen=True, slots=True)
class Services:
    """What routes and middleware use.

    `check_ready` raises when the database does not answer. `judge_kind` is that of the default
    judge, and `judges` describes them all.
    """

    authenticator: Authenticator
    sessions: Sessions
    rates: TeamRates
    library: RubricLibrary
    scores: ScoreService
    rollouts: RolloutService
    unnamed_groups: UnnamedGroups
    teachers: TeacherService
    budgets: BudgetService
    usage: UsageService
    runs: RunService
    groups: RunGroupService
    comparisons: RunComparisonService
    judge_reports: JudgeReportService
    replays: ReplayService
    idempotency: IdempotencyStore
    erase_team: Callable[[str, Actor], Awaitable[ErasureReport]]
    check_ready: Callable[[], Awaitable[None]]
    judge_kind: Literal["builtin", "openai"]
    judges: JudgeList


async def _services(request: Request) -> Services:  # FastAPI runs plain functions in a thread
    return cast(Services, request.state.services)


UsesServices = Annotated[Services, Depends(_services)]


class _Key(HTTPBearer):
    """The dependency that gives the caller, and refuses one whose key lacks the scope.

    It is a bearer key for the OpenAPI document only: `AuthenticationMiddleware` checks keys, before
    bodies are read.
    """

    def __init__(self, scope: Scope | None) -> None:
        super().__init__(
            scheme_name="HTTPBearer",
            description="An API key, once the service has one: `mk_…`, or the operator's",
        )
        self._scope = scope

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        found = caller_of(request)
        if self._scope is not None and self._scope not in found.scopes:
            raise Forbidden(
                f"this call needs a key with the scope {self._scope!r}; this one has "
                f"{', '.join(sorted(found.scopes))}",
                code="missing_scope",
            )
        return found


def caller_of(request: Request) -> Caller:
    """Return the authenticated caller."""
    return cast(Caller, request.scope["markscheme.caller"])


AnyCaller = Annotated[Caller, Security(_Key(None))]
"""For routes whose service decides who may call them."""
Reader = Annotated[Caller, Security(_Key("read"))]
Scorer = Annotated[Caller, Security(_Key("score"))]
Inducer = Annotated[Caller, Security(_Key("induce"))]
Administrator = Annotated[Caller, Security(_Key("admin"))]

_DIGITS = re.compile(r"[0-9]{1,15}")


def _require_digits(text: Any) -> Any:
    if isinstance(text, str) and not _DIGITS.fullmatch(text):
        raise ValueError("write a whole number with the digits 0 to 9 only")
    return text


PlainInteger = BeforeValidator(_require_digits)
"""For numbers in headers and queries: Python also reads `1_000`, `+1`, ` 1` and `1.0`."""

DeadlineMs = Annotated[
    int | None,
    PlainInteger,
    Header(
        alias="X-Deadline-Ms",
        ge=1,
        le=86_400_000,
        description="Milliseconds that the caller still waits",
    ),
]

NO_NUL = r"^[^\x00]*$"
"""PostgreSQL stores no NUL, so a filter with one matches nothing and is refused."""
PromptText = Annotated[
    str | None,
    Query(max_length=100_000, pattern=NO_NUL, description="Exact text of a one-message prompt"),
]
PromptKey = Annotated[
    str | None, Query(alias="prompt_key", pattern="^[0-9a-f]{64}$", description="Or its key")
]

Limit = Annotated[int, PlainInteger, Query(ge=1, le=100, description="Entries on a page")]
After = Annotated[
    str | None, Query(max_length=64, pattern=NO_NUL, description="The last id of the page before")
]

BUDGET_WARNING = "X-Budget-Warning"
WARNS = {
    BUDGET_WARNING: {
        "description": "Present when a soft or hard budget of the team or the run is reached",
        "schema": {"type": "string"},
    }
}
"""OpenAPI's description of the header that warns while calls still succeed."""
