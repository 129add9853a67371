"""Budgets kept: money is set aside before a call is made, and none is made once a hard limit is reached.

A team without a budget pays nothing for this but one look every half second.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.deadline import Deadline
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store.budgets import Budget, BudgetStore, Wish
from markscheme_server.store.ids import new_id

SPENT = "the budget is spent: its owner must raise it, or wait for its next window"
REMEMBERED_S = 0.5
LOOK_S = 0.25
"""How often one looks again who waits for a call of its own to end: other processes' ends are not heard."""

log = structlog.get_logger()


class Treasury:
    """The budgets of a deployment's teams."""

    def __init__(self, store: BudgetStore) -> None:
        self.store = store
        self._known: dict[str, tuple[float, list[Budget]]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._warned: set[tuple[str, str | None, float]] = set()

    @asynccontextmanager
    async def purse(self, team: str, run_id: str | None) -> AsyncIterator["TeamPurse"]:
        """What the questions of the block are paid from; what was set aside and not handed to the ledger goes back."""
        purse = TeamPurse(self, team, run_id)
        try:
            yield purse
        finally:
            for hold in purse.take():
                await self.store.release(team, hold)
            self._end(team)

    async def warning(self, team: str, run_id: str | None) -> str | None:
        """What a caller should know of its budgets: that a soft or hard limit was passed, in one line."""
        for budget in await self.budgets(team, run_id):
            for kind, limit in (("hard", budget.hard_usd), ("soft", budget.soft_usd)):
                if limit is not None and budget.spent_usd >= limit:
                    self._warn(budget, kind)
                    what = f"run {budget.run_id}" if budget.run_id else f"team {team}"
                    when = {"day": " today", "month": " this month", "total": ""}[budget.window]
                    return (f"{kind} budget of {limit:g} USD of {what} reached: "
                            f"{budget.spent_usd:.4f} USD spent{when}").encode("ascii", "replace").decode()
        return None

    async def budgets(self, team: str, run_id: str | None) -> list[Budget]:
        """The budgets that bind a run of the team, as they stood half a second ago at most."""
        at, known = self._known.get(team, (-REMEMBERED_S, []))
        if time.monotonic() - at >= REMEMBERED_S:
            at = time.monotonic()
            known = await self.store.find(team)
            self._known[team] = at, known
        return [budget for budget in known if budget.run_id in (None, run_id)]

    def _warn(self, budget: Budget, kind: str) -> None:
        """Once a window and process."""
        once = (budget.team + kind, budget.run_id, budget.since.timestamp())
        if once not in self._warned:
            self._warned.add(once)
            log.warning("budget_reached", kind=kind, team=budget.team, window=budget.window,
                        spent_usd=round(budget.spent_usd, 4))

    async def wait(self, team: str, until: float) -> None:
        """Until a call of the team has ended here, or it is time to look again."""
        event = self._ended.setdefault(team, asyncio.Event())
        try:
            async with asyncio.timeout_at(min(until, asyncio.get_running_loop().time() + LOOK_S)):
                await event.wait()
        except TimeoutError:
            pass

    def _end(self, team: str) -> None:
        if (event := self._ended.pop(team, None)) is not None:
            event.set()


class TeamPurse:
    """Money set aside for the calls of one question."""

    def __init__(self, treasury: Treasury, team: str, run_id: str | None) -> None:
        self._treasury, self._team, self._run_id = treasury, team, run_id
        self._holds: list[str] = []

    async def hold(self, usd: float, deadline: Deadline) -> None:
        """Set aside the most that the next call may cost. Raises :class:`JudgeFailure`."""
        if not await self._treasury.budgets(self._team, self._run_id):
            return
        wish = Wish(new_id("hold"), self._team, self._run_id, usd)
        while (grant := await self._treasury.store.hold(wish)) == "wait":
            if asyncio.get_running_loop().time() >= deadline.at:
                raise JudgeFailure(UnscoredReason.TIMEOUT, "no money was left free by the budget in the request's time")
            await self._treasury.wait(self._team, deadline.at)
        if grant == "spent":
            raise JudgeFailure(UnscoredReason.BUDGET, SPENT)
        self._holds.append(wish.id)

    def take(self) -> tuple[str, ...]:
        """What was set aside, to be settled by the ledger; it is then no longer here."""
        taken, self._holds = tuple(self._holds), []
        return taken
