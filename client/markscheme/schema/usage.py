"""What judging cost and saved, and what it may cost."""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from markscheme.schema.base import Wire
from markscheme.vocabulary import BudgetWindow

Usd = Annotated[float, Field(ge=0, le=1e9)]


class UsageBucket(Wire):
    """Sums over calls of judges and teachers.

    The keys that buckets are grouped by are set, the others null. `cost_usd` sums what is known;
    `unpriced_calls` went to judges without prices, or never stated their tokens. The role `shadow`
    has the calls of the second judge, and those in which a judge was asked again. Savings have no
    role and no judge: `cached_verdicts` were reused, and `saved_usd` is what they and reused
    rubrics had cost.
    """

    team: str | None = None
    run: str | None = None
    rubric: str | None = None
    role: str | None = None
    judge: str | None = None
    day: date | None = None
    month: str | None = None
    calls: int
    failed_calls: int
    unpriced_calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: float
    cached_verdicts: int
    saved_usd: float


class UsageReport(Wire):
    """`GET /v1/usage`: sums of the ledger from `since` to the day before `until` (UTC)."""

    object: Literal["usage"] = "usage"
    since: date | None
    until: date | None
    data: list[UsageBucket]
    total: UsageBucket
    truncated: bool = Field(
        description="There are more buckets than are shown; the total counts them all"
    )


class BudgetPut(Wire):
    """`PUT /v1/teams/{name}/budget`: a spending limit for a team, or for one of its runs.

    Above `soft_usd` answers carry `X-Budget-Warning`; at `hard_usd` no more calls are made. Days
    and months are UTC; `total` never resets.
    """

    hard_usd: Usd | None = None
    soft_usd: Usd | None = None
    window: BudgetWindow | None = Field(
        default=None, description="Default: month, and total for a run"
    )

    @model_validator(mode="after")
    def _useful(self) -> "BudgetPut":
        if self.hard_usd is None and self.soft_usd is None:
            raise ValueError("give hard_usd, soft_usd, or both")
        if (
            self.hard_usd is not None
            and self.soft_usd is not None
            and self.soft_usd > self.hard_usd
        ):
            raise ValueError("soft_usd is the warning before hard_usd: it cannot be larger")
        return self

    def window_of(self, run: str | None) -> BudgetWindow:
        """Return the window of a budget on this run, or on the team."""
        return self.window or ("total" if run else "month")


class Budget(Wire):
    """A budget and what was spent of it.

    Calls of `unpriced_judges` have no known cost, so the budget does not limit them.
    """

    object: Literal["budget"] = "budget"
    team: str
    run: str | None
    hard_usd: float | None
    soft_usd: float | None
    window: BudgetWindow
    since: datetime
    spent_usd: float
    unpriced_judges: list[str]
