"""Budgets kept: money is set aside before a call is made, and none is made once a hard limit is reached.

Every question is paid from a budget of its own, and what it cost is recorded however it ends. A team without a budget
pays nothing for this but one look every half second.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from markscheme.vocabulary import UnscoredReason
from markscheme_server.config import Role
from markscheme_server.domain.call_context import Deadline
from markscheme_server.domain.spend_guard import SpendGuard
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store.budgets import Budget, BudgetStore, HoldRequest, HoldResult
from markscheme_server.store.engine.ids import new_id
from markscheme_server.store.verdicts import JudgeCall, Reply, VerdictStore

SPENT = "the budget is spent: its owner must raise it, or wait for its next window"
REMEMBERED_S = 0.5
LOOK_S = 0.25
"""How often one looks again who waits for a call of its own to end: other processes' ends are not heard."""

ABANDONED = "abandoned"
"""In the ledger, in place of a reason: nobody waited for the answer any more."""

log = structlog.get_logger()


class BudgetService:
    """The budgets of a deployment's teams."""

    def __init__(self, store: BudgetStore, ledger: VerdictStore) -> None:
        self.store, self._ledger = store, ledger
        self._known: dict[str, tuple[float, list[Budget]]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._warned: set[tuple[str, str | None, float]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._open: set[BudgetReservation] = set()

    @asynccontextmanager
    async def reserve(self, line: "Line") -> AsyncIterator["BudgetReservation"]:
        """What the requests of one question are paid from, while the block asks it.

        A block that ends without having taken its :meth:`BudgetReservation.entry`, because it was cancelled or failed, has
        what was sent recorded all the same, by a task that goes on when the caller is gone.
        """
        budget = BudgetReservation(self, line)
        self._open.add(budget)
        try:
            yield budget
        finally:
            closing = asyncio.ensure_future(self._close(budget))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def drain(self, within_s: float) -> None:
        """Wait for the questions under way, which are being given up, and for what they cost to be recorded."""
        waits = [asyncio.ensure_future(budget.closed.wait()) for budget in self._open]
        if waits:
            _, late = await asyncio.wait(waits, timeout=within_s)
            for wait in late:
                wait.cancel()

    async def _close(self, budget: "BudgetReservation") -> None:
        try:
            if (call := budget.entry(ABANDONED)) is not None:
                await self._ledger.save(Reply(budget.line.team, call=call))
            elif budget.hold_id is not None:
                await self.store.release(budget.line.team, budget.hold_id)
        finally:
            self._open.discard(budget)
            budget.closed.set()
            self._end(budget.line.team)

    async def warning(self, team: str, run_id: str | None) -> str | None:
        """What a caller should know of its budgets: that a soft or hard limit was passed, in one line."""
        for budget in await self.budgets(team, run_id):
            for kind, limit in (("hard", budget.hard_usd), ("soft", budget.soft_usd)):
                if limit is not None and budget.spent_usd >= limit:
                    self._warn(budget, kind)
                    what = f"run {budget.run_id}" if budget.run_id else f"team {team}"
                    when = {"day": " today", "month": " this month", "total": ""}[budget.window]
                    return (
                        (
                            f"{kind} budget of {limit:g} USD of {what} reached: "
                            f"{budget.spent_usd:.4f} USD spent{when}"
                        )
                        .encode("ascii", "replace")
                        .decode()
                    )
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
            log.warning(
                "budget_reached",
                kind=kind,
                team=budget.team,
                window=budget.window,
                spent_usd=round(budget.spent_usd, 4),
            )

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


@dataclass(frozen=True, slots=True)
class Line:
    """What the ledger will say of a question, but for how it ended and what it cost."""

    team: str
    run_id: str | None
    role: Role
    judge: str
    criteria: tuple[str, ...] = ()
    rubric_id: str | None = None


class BudgetReservation(SpendGuard):
    """What one question has cost, and the money that its team's budgets set aside for it."""

    def __init__(self, budgets: BudgetService, line: Line) -> None:
        super().__init__()
        self.line, self.closed = line, asyncio.Event()
        self.hold_id: str | None = None
        """The hold that is to be settled or released."""
        self._budgets, self._held, self._taken = budgets, 0, False

    async def hold(self, nano: int, deadline: Deadline) -> None:
        line, spent = self.line, self.usage.settled
        if spent + nano <= self._held or not await self._budgets.budgets(line.team, line.run_id):
            return
        is_new = self.hold_id is None and not spent
        self.hold_id = self.hold_id or new_id("hold")
        self._held = spent
        wish = HoldRequest(self.hold_id, line.team, line.run_id, nano, spent)
        while (
            grant := await self._ask(wish)
        ) == "wait" and asyncio.get_running_loop().time() < deadline.at:
            await self._budgets.wait(line.team, deadline.at)
        if grant == "granted":
            self._held = spent + nano
            return
        if is_new:
            self.hold_id = None
        if grant == "spent":
            raise JudgeFailure(UnscoredReason.BUDGET, SPENT)
        raise JudgeFailure(
            UnscoredReason.TIMEOUT, "no money was left free by the budget in the request's time"
        )

    async def _ask(self, wish: HoldRequest) -> HoldResult:
        """The answer is waited for even when we are cancelled: only what is known to be held can be given back."""
        asking = asyncio.ensure_future(self._budgets.store.hold(wish))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait([asking])
            raise

    def entry(
        self, failure: str | None = None, *, rubric_id: str | None = None
    ) -> JudgeCall | None:
        """The ledger's line for all that was sent, to be saved by the caller; ``None``: nothing was, or it was taken
        before."""
        if self._taken or not self.usage.calls:
            return None
        self._taken = True
        hold_id, self.hold_id = self.hold_id, None
        line = self.line
        return JudgeCall(
            line.role,
            line.judge,
            line.criteria,
            self.usage,
            failure,
            line.run_id,
            rubric_id or line.rubric_id,
            hold_id,
        )
