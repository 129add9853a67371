"""The teacher bank and the model that fills it."""

import asyncio
from dataclasses import dataclass, replace

from markscheme.vocabulary import UnscoredReason
from markscheme_server.accounts.budgets import BudgetService, Line
from markscheme_server.domain import hashing as fp
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.judge.base import JudgeFailure, Teacher
from markscheme_server.scoring.judges import Judges
from markscheme_server.store.claims import Claim
from markscheme_server.store.store import Store
from markscheme_server.store.teachers import TeacherResponse
from markscheme_server.store.verdicts import JudgeCall, Reply

FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What the bank holds for a prompt now, and what it took. ``duplicates``: what the teacher said again."""

    bank: list[TeacherResponse]
    added: int
    duplicates: int
    usage: JudgeUsage


class TeacherService:
    """Asks the teacher for responses that the bank lacks; for one prompt one asks at a time, over all processes."""

    def __init__(self, store: Store, judges: Judges, budgets: BudgetService) -> None:
        self._store, self._judges, self._budgets = store, judges, budgets

    async def ensure(
        self,
        team: str,
        prompt: tuple[fp.ChatMessage, ...],
        count: int,
        context: CallContext,
        run_id: str | None = None,
    ) -> SampleResult:
        """Ask until the bank holds ``count`` responses to the prompt, each stored as it comes.

        Each missing response is asked for once: a teacher that says the same again leaves the bank shorter. Raises
        :class:`JudgeFailure` when the teacher fails for any of them (the others are kept), 422 when there is none, and
        503 when its queue is full.
        """
        teacher = self._judges.teacher()
        key, pause = fp.prompt_key(prompt), FIRST_LOOK_S
        work = fp.digest({"teach": key, "team": team})
        while True:
            bank = await self._store.teachers.find(team, key)
            if len(bank) >= count:
                return SampleResult(bank, 0, 0, JudgeUsage())
            claim = await self._store.claims.acquire(work)
            if claim is not None:
                return await self._ask(teacher, team, prompt, count, context, run_id, claim)
            while await self._store.claims.held(work):
                if asyncio.get_running_loop().time() >= context.deadline.at:
                    raise JudgeFailure(
                        UnscoredReason.TIMEOUT, "the teacher did not respond in the request's time"
                    )
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, LAST_LOOK_S)

    async def _ask(
        self,
        teacher: Teacher,
        team: str,
        prompt: tuple[fp.ChatMessage, ...],
        count: int,
        context: CallContext,
        run_id: str | None,
        claim: Claim,
    ) -> SampleResult:
        try:
            missing = count - len(await self._store.teachers.find(team, fp.prompt_key(prompt)))
            gateway = teacher.gateway
            reservation = (
                gateway.reserve(missing, team) if gateway is not None and missing > 0 else None
            )
            try:
                outcomes = await asyncio.gather(
                    *(self._once(teacher, team, prompt, context, run_id) for _ in range(missing)),
                    return_exceptions=True,
                )
            finally:
                if reservation is not None:
                    reservation.release()
        finally:
            await self._store.claims.drop(claim)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        done = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        added = sum(new for new, _ in done)
        return SampleResult(
            await self._store.teachers.find(team, fp.prompt_key(prompt)),
            added,
            len(done) - added,
            sum((usage for _, usage in done), JudgeUsage()),
        )

    async def _once(
        self,
        teacher: Teacher,
        team: str,
        prompt: tuple[fp.ChatMessage, ...],
        context: CallContext,
        run_id: str | None,
    ) -> tuple[int, JudgeUsage]:
        """One response, stored; how many were new and what it cost."""
        async with self._budgets.reserve(
            Line(team, run_id, "teacher", teacher.teacher_identity)
        ) as budget:
            try:
                text, usage = await teacher.respond(prompt, replace(context, budget=budget))
            except JudgeFailure as failure:
                await self._record(budget.entry(failure.reason), team)
                raise
            added = await self._store.teachers.save(team, prompt, [text], teacher.teacher_model)
            await self._record(budget.entry(), team)
        return added, usage

    async def _record(self, call: JudgeCall | None, team: str) -> None:
        if call is not None:
            await self._store.verdicts.save(Reply(team, call=call))
