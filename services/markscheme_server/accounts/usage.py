"""What teams spent, what they may spend, and the audit trail, as they go over the wire."""

from collections.abc import Sequence
from datetime import date

from markscheme import schema
from markscheme.vocabulary import UsageKey
from markscheme_server.accounts.unknown_team import unknown_team
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden, NotFound
from markscheme_server.store.audit import AuditStore, actor_of
from markscheme_server.store.budgets import Budget, BudgetStore
from markscheme_server.store.teams import TeamStore, UnknownTeam
from markscheme_server.store.usage import Bucket, UsageStore


class UsageService:
    """Reports, budgets and audit entries on behalf of a caller.

    A team reads its own usage and budgets; the scope `admin` reads every team's.
    `unpriced_judges`: names of the judges without prices, which no budget limits.
    """

    def __init__(
        self,
        usage: UsageStore,
        budgets: BudgetStore,
        audit: AuditStore,
        teams: TeamStore,
        *,
        unpriced_judges: Sequence[str],
    ) -> None:
        self._usage, self._budgets, self._audit, self._teams = usage, budgets, audit, teams
        self._unpriced_judges = list(unpriced_judges)

    async def report(
        self,
        caller: Caller,
        group_by: Sequence[UsageKey],
        *,
        team: str | None,
        since: date | None,
        until: date | None,
    ) -> schema.UsageReport:
        """Add up the ledger from `since` to the day before `until` (UTC).

        `team` `None`: the caller's own, or every team's for an administrator. Raises `Forbidden`
        for another team's usage, and `NotFound` for an administrator's unknown team.
        """
        if "admin" not in caller.scopes:
            if team not in (None, caller.team):
                raise Forbidden(
                    "this key sees its own team's usage; another's takes the scope 'admin'",
                    code="missing_scope",
                    param="team",
                )
            team = caller.team
        elif team is not None:
            await self._require(team)
        buckets, total, more = await self._usage.aggregate(team, group_by, since=since, until=until)
        return schema.UsageReport(
            since=since,
            until=until,
            data=[_to_bucket(bucket) for bucket in buckets],
            total=_to_bucket(total),
            truncated=more,
        )

    async def get_budget(self, caller: Caller, team: str, run_id: str | None) -> schema.Budget:
        """Return the budget of a run, or of all that a team does (`None`). Raises `NotFound`."""
        # Hidden and absent are answered alike, so that nobody learns of other teams' budgets.
        visible = team == caller.team or "admin" in caller.scopes
        budgets = await self._budgets.find(team) if visible else []
        budget = next((budget for budget in budgets if budget.run_id == run_id), None)
        if budget is None:
            raise _no_budget()
        return self._to_budget(budget)

    async def budgets(self, caller: Caller) -> list[schema.Budget]:
        """Return the budgets of the caller's team, the one on everything first."""
        return [self._to_budget(budget) for budget in await self._budgets.find(caller.team)]

    async def put_budget(
        self, caller: Caller, team: str, run_id: str | None, payload: schema.BudgetPut
    ) -> schema.Budget:
        """Set a budget; what was spent in its window so far counts. Raises `NotFound`."""
        try:
            budget = await self._budgets.put(
                team,
                run_id,
                hard_usd=payload.hard_usd,
                soft_usd=payload.soft_usd,
                window=payload.window_of(run_id),
                actor=actor_of(caller),
            )
        except UnknownTeam as error:
            raise await unknown_team(self._teams, team, "name") from error
        return self._to_budget(budget)

    async def remove_budget(self, caller: Caller, team: str, run_id: str | None) -> None:
        """Remove a budget. Raises `NotFound`."""
        if not await self._budgets.remove(team, run_id, actor_of(caller)):
            raise _no_budget()

    async def audit(
        self,
        *,
        team: str | None,
        subject: str | None,
        action: str | None,
        after: str | None,
        limit: int,
    ) -> schema.AuditList:
        """Return one page of audit entries, newest first; `None` leaves a filter out.

        Raises `NotFound` for an unknown team. One that was erased is known: its trail stays.
        """
        if team is not None:
            await self._require(team)
        entries, more = await self._audit.page(
            team=team, subject=subject, action=action, after=after, limit=limit
        )
        return schema.AuditList(
            has_more=more,
            data=[
                schema.AuditEntry(
                    id=entry.id,
                    team=entry.team,
                    key=entry.key,
                    action=entry.action,
                    subject=entry.subject,
                    detail=dict(entry.detail),
                    created_at=entry.created_at,
                )
                for entry in entries
            ],
        )

    async def _require(self, team: str) -> None:
        if not await self._teams.is_known(team):
            raise await unknown_team(self._teams, team, "team")

    def _to_budget(self, budget: Budget) -> schema.Budget:
        return schema.Budget(
            team=budget.team,
            run=budget.run_id,
            hard_usd=budget.hard_usd,
            soft_usd=budget.soft_usd,
            window=budget.window,
            since=budget.since,
            spent_usd=budget.spent_usd,
            unpriced_judges=self._unpriced_judges,
        )


def _to_bucket(bucket: Bucket) -> schema.UsageBucket:
    group = {
        key: date.fromisoformat(value) if key == "day" and value else value
        for key, value in bucket.group
    }
    return schema.UsageBucket.model_validate(group | bucket.sums)


def _no_budget() -> NotFound:
    return NotFound("there is no such budget", code="budget_not_found", param="name")
