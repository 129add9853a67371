"""Enforce budgets: set money aside before a call, and refuse calls once a hard limit is reached.

Every question is paid from a reservation of its own, and what it cost is recorded however it ends.
A team without a budget costs one query every half second.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.call_context import CallContext, Deadline, SpendGuard
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.store.budgets import Budget, BudgetStore, HoldRequest, HoldResult
from markscheme_server.store.engine.ids import new_id
from markscheme_server.store.ledger import CallDescription, JudgeCall, LedgerStore

BUDGET_SPENT = "the budget is spent: its owner must raise it, or wait for its next window"
CACHE_S = 0.5
"""Seconds for which a team's budgets are cached."""
POLL_S = 0.25
"""Poll interval while waiting for budget; other processes cannot notify us."""
ABANDONED = "abandoned"
"""The failure in the ledger of a question whose callers had all left."""

log = structlog.get_logger()


class BudgetService:
    """The budgets of a deployment's teams."""

    def __init__(
        self,
        store: BudgetStore,
        ledger: LedgerStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.ledger, self._clock = store, ledger, clock
        self._cache: dict[str, tuple[float, list[Budget]]] = {}
        self._call_ended: dict[str, asyncio.Event] = {}
        self._warned: set[tuple[str, str, str | None, float]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._open: set[BudgetReservation] = set()

    @asynccontextmanager
    async def reserve(
        self, about: CallDescription, context: CallContext
    ) -> AsyncIterator["BudgetReservation"]:
        """Yield a reservation that pays for one question, which is asked for `context`'s request.

        If the block was cancelled or failed before it called `record`, what was sent is recorded
        all the same, by a task that outlives the caller.
        """
        reservation = BudgetReservation(self, about)
        self._open.add(reservation)
        context.spent.append(reservation)
        try:
            yield reservation
        finally:
            if reservation.is_settled:
                self._end(reservation)
            else:
                closing = asyncio.ensure_future(self._close(reservation))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                await asyncio.shield(closing)

    async def drain(self, within_s: float) -> None:
        """Wait until the costs of abandoned questions are recorded, for `within_s` at most."""
        waits = [asyncio.ensure_future(each.closed.wait()) for each in self._open]
        if waits:
            _, late = await asyncio.wait(waits, timeout=within_s)
            for wait in late:
                wait.cancel()

    async def _close(self, reservation: "BudgetReservation") -> None:
        try:
            # Does nothing where the question was recorded already.
            await reservation.record(ABANDONED)
            await reservation.release()
        finally:
            self._end(reservation)

    def _end(self, reservation: "BudgetReservation") -> None:
        self._open.discard(reservation)
        reservation.closed.set()
        if (event := self._call_ended.pop(reservation.about.team, None)) is not None:
            event.set()

    async def warning(self, team: str, run_id: str | None) -> str | None:
        """Return one ASCII line if a soft or hard limit of the team or the run is reached."""
        for budget in await self.budgets(team, run_id):
            for kind, limit in (("hard", budget.hard_usd), ("soft", budget.soft_usd)):
                if limit is not None and budget.spent_usd >= limit:
                    self._log_once(budget, kind)
                    subject = f"run {budget.run_id}" if budget.run_id else f"team {team}"
                    period = {"day": " today", "month": " this month", "total": ""}[budget.window]
                    line = (
                        f"{kind} budget of {limit:g} USD of {subject} reached: "
                        f"{budget.spent_usd:.4f} USD spent{period}"
                    )
                    # A run's name may have any letters, a header only ASCII.
                    return line.encode("ascii", "replace").decode()
        return None

    async def budgets(self, team: str, run_id: str | None) -> list[Budget]:
        """Return the budgets that bind a run of the team, at most `CACHE_S` old."""
        cached_at, budgets = self._cache.get(team, (-CACHE_S, []))
        if self._clock() - cached_at >= CACHE_S:
            # Taken before the query: an answer is as old as its question.
            cached_at = self._clock()
            budgets = await self.store.find(team)
            self._cache[team] = cached_at, budgets
        return [budget for budget in budgets if budget.run_id in (None, run_id)]

    def _log_once(self, budget: Budget, kind: str) -> None:
        """Log a reached limit, once per window and process."""
        occasion = (budget.team, kind, budget.run_id, budget.since.timestamp())
        if occasion not in self._warned:
            self._warned.add(occasion)
            log.warning(
                "budget_reached",
                kind=kind,
                team=budget.team,
                window=budget.window,
                spent_usd=round(budget.spent_usd, 4),
            )

    async def wait_for_call_end(self, team: str, until: float) -> None:
        """Wait until a call of the team ends in this process, at most for `POLL_S`.

        `until`: the latest time to wait for, on the event loop's clock.
        """
        event = self._call_ended.setdefault(team, asyncio.Event())
        try:
            async with asyncio.timeout_at(min(until, asyncio.get_running_loop().time() + POLL_S)):
                await event.wait()
        except TimeoutError:
            pass


class BudgetReservation(SpendGuard):
    """What one question has cost, and the money that is set aside for it."""

    def __init__(self, budgets: BudgetService, about: CallDescription) -> None:
        super().__init__()
        self.about, self.closed = about, asyncio.Event()
        self._budgets, self._recorded = budgets, False
        self._hold_id: str | None = None
        """The hold that is still to be settled or released."""
        self._held = 0
        """Nano-dollars that the hold covers."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to write: no row of the ledger, and no hold."""
        return (self._recorded or not self.usage.calls) and self._hold_id is None

    async def hold(self, nano: int, deadline: Deadline) -> None:
        """Set aside the most that the next request can cost, in nano-dollars.

        Raises `JudgeFailure` when the budget is spent, or has no money free before the deadline.
        """
        team, run_id, spent = self.about.team, self.about.run_id, self.usage.settled
        # Called before a request queues and again before it is sent: one hold serves both.
        if spent + nano <= self._held or not await self._budgets.budgets(team, run_id):
            return
        is_new = self._hold_id is None and not spent
        self._hold_id = self._hold_id or new_id("hold")
        # Until it is granted, the stored hold covers only what was spent.
        self._held = spent
        request = HoldRequest(self._hold_id, team, run_id, nano, spent)
        while (
            result := await self._request(request)
        ) == "wait" and asyncio.get_running_loop().time() < deadline.at:
            await self._budgets.wait_for_call_end(team, deadline.at)
        if result == "granted":
            self._held = spent + nano
            return
        if is_new:  # nothing was stored
            self._hold_id = None
        if result == "spent":
            raise JudgeFailure(UnscoredReason.BUDGET, BUDGET_SPENT)
        raise JudgeFailure(
            UnscoredReason.TIMEOUT, "the budget had no money free within the request's time"
        )

    async def record(self, failure: str | None = None, *, rubric_id: str | None = None) -> None:
        """Write the question's row in the ledger, unless that was done or nothing was sent."""
        await self._budgets.ledger.record(self.ledger_row(failure, rubric_id=rubric_id))

    def ledger_row(
        self, failure: str | None = None, *, rubric_id: str | None = None
    ) -> JudgeCall | None:
        """Return the question's row for the caller to store, once.

        `None`: nothing was sent, or the row was taken before. `rubric_id`: the rubric that the
        question was for, if it was not known before.
        """
        if self._recorded or not self.usage.calls:
            return None
        self._recorded = True
        # The row settles the hold, so that `release` must not delete it.
        hold_id, self._hold_id = self._hold_id, None
        about = replace(self.about, rubric_id=rubric_id or self.about.rubric_id)
        return JudgeCall(about, self.usage, failure, hold_id)

    async def release(self) -> None:
        """Give back a hold that no row of the ledger settles."""
        if self._hold_id is not None:
            await self._budgets.store.release(self.about.team, self._hold_id)

    async def _request(self, request: HoldRequest) -> HoldResult:
        # Wait for the answer even when we are cancelled: a hold must be known to be given back.
        requesting = asyncio.ensure_future(self._budgets.store.hold(request))
        try:
            return await asyncio.shield(requesting)
        except asyncio.CancelledError:
            await asyncio.wait([requesting])
            raise
