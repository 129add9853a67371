"""Which rubric a group gets: given, assigned before, reused, or induced now."""

import asyncio
from dataclasses import dataclass, replace

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, ReuseScope, UnscoredReason
from markscheme_server.accounts.budgets import BudgetService, Line
from markscheme_server.domain import hashing as fp
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.reward import mean
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.judge.base import ASKS, InductionTask, Judge, JudgeFailure, Response
from markscheme_server.judge.base import Induction as Made
from markscheme_server.scoring.failed_inductions import FailedInductions
from markscheme_server.scoring.single_flight import Abandoned, SingleFlight
from markscheme_server.store.audit import Actor
from markscheme_server.store.claims import ClaimLost
from markscheme_server.store.rubrics import Filters
from markscheme_server.store.store import Store
from markscheme_server.store.teachers import TeacherResponse
from markscheme_server.store.verdicts import JudgeCall, Reply

FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.25


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a rubric still separates the rollouts of a run (setting names ``reuse_*``)."""

    max_uses: int
    mean_below: float


@dataclass(frozen=True, slots=True)
class ResolvedRubric:
    """A rubric, how it was come by, and what that cost."""

    rubric: Rubric
    origin: AssignedOrigin
    usage: JudgeUsage = JudgeUsage()


@dataclass(frozen=True, slots=True)
class RubricRequest:
    """What a rubric is wanted for. ``teachers`` is ``None`` when they are to come from the bank; ``students`` are
    judged texts (:func:`fingerprint.judged_text`). ``reuse_scope``: as the request or the team's setting says;
    ``asks_teacher``: the teacher is asked where there are no responses."""

    team: str
    prompt: tuple[fp.ChatMessage, ...]
    teachers: tuple[str, ...] | None
    students: tuple[Response, ...]
    judge: Judge
    reuse: ReusePolicy
    run_id: str | None
    tags: tuple[str, ...] = ()
    key: str | None = None
    filters: Filters = Filters()
    reuse_scope: ReuseScope | None = None
    asks_teacher: bool = False

    def scope(self, *, teacher: bool) -> ReuseScope:
        """Whose rubrics may be reused. ``teacher``: there is one to go by, and a rubric may be induced from what it
        says; another team's rubric is then taken only where that was asked for."""
        return self.reuse_scope or ("own" if teacher else "organisation")


@dataclass(frozen=True, slots=True)
class Induction:
    """An induction that is still to be made, at its address."""

    wanted: RubricRequest
    teachers: tuple[str, ...]
    key: str
    teacher_model: str | None = None


class RubricService:
    """Finds and induces rubrics; the same induction happens once."""

    def __init__(self, store: Store, freshness: Freshness, budgets: BudgetService) -> None:
        self._store, self._freshness, self._budgets = store, freshness, budgets
        self._failed = FailedInductions()
        self._flight: SingleFlight[tuple[Rubric, JudgeUsage]] = SingleFlight()

    async def find(self, wanted: RubricRequest) -> ResolvedRubric | Induction:
        """The rubric under the reuse policy, or the induction that it takes. Asks no judge and writes nothing.

        ``always_new`` uses only the memo of this very induction. ``if_fresh`` uses what a person of the team brought
        or edited, else the memo, else the nearest rubric in the scope of reuse while it is fresh. ``frozen`` uses the
        nearest and never induces. Raises :class:`JudgeFailure` when it is frozen and there is none.
        """
        team, key = wanted.team, fp.prompt_key(wanted.prompt)
        if wanted.reuse == "frozen":
            nearest = await self._store.rubrics.find_nearest(
                team, key, wanted.filters, scope=wanted.scope(teacher=False), run_id=wanted.run_id
            )
            if nearest is None:
                raise JudgeFailure(
                    UnscoredReason.NO_RUBRIC,
                    "there is no rubric for this prompt and reuse is frozen",
                )
            return ResolvedRubric(nearest, "reused")
        teachers = wanted.teachers
        bank: list[TeacherResponse] = []
        if teachers is None:
            bank = await self._store.teachers.find(team, key)
            teachers = tuple(kept.text for kept in bank)
        nearest = None
        if wanted.reuse == "if_fresh":
            nearest = await self._store.rubrics.find_nearest(
                team,
                key,
                wanted.filters,
                scope=wanted.scope(teacher=bool(teachers) or wanted.asks_teacher),
                run_id=wanted.run_id,
            )
            if nearest is not None and nearest.team == team and nearest.origin != "induced":
                return ResolvedRubric(nearest, "reused")
        induction = fp.induction_key(
            team=team,
            prompt=key,
            teachers=[fp.text_key(fp.judged_text(t)) for t in teachers],
            students=[fp.text_key(s.text) + ("+" if s.truncated else "") for s in wanted.students],
            rubricator=wanted.judge.rubricator_identity,
        )
        memo = await self._store.rubrics.find_induced(team, induction)
        if memo is not None:
            return ResolvedRubric(memo, "reused")
        if nearest is not None and await self._is_fresh(team, nearest, wanted.run_id):
            return ResolvedRubric(nearest, "reused")
        models = {kept.model for kept in bank}
        return Induction(wanted, teachers, induction, models.pop() if len(models) == 1 else None)

    async def resolve(self, wanted: RubricRequest, context: CallContext) -> ResolvedRubric:
        """The rubric, found or induced: :meth:`find` and then, where it takes that, :meth:`induce`."""
        if wanted.teachers:
            await self._store.teachers.save(wanted.team, wanted.prompt, wanted.teachers)
        found = await self.find(wanted)
        if isinstance(found, ResolvedRubric):
            return found
        gateway = wanted.judge.gateway
        reservation = gateway.reserve(1, wanted.team) if gateway is not None else None
        try:
            return await self.induce(found, context)
        finally:
            if reservation is not None:
                reservation.release()

    async def induce(self, induction: Induction, context: CallContext) -> ResolvedRubric:
        """Make the rubric, once whoever asks. Raises :class:`JudgeFailure`, also where the same failed lately."""
        if (failed := self._failed.find(induction.key)) is not None:
            raise failed
        try:
            (rubric, usage), led = await self._flight.run(
                induction.key,
                lambda due: self._settle(induction, replace(context, deadline=due)),
                deadline=context.deadline.at,
            )
        except TimeoutError as error:
            raise JudgeFailure(
                UnscoredReason.TIMEOUT, "the rubric was not induced in the request's time"
            ) from error
        except Abandoned as error:
            raise JudgeFailure(
                UnscoredReason.UNAVAILABLE, "the service is stopping; send the batch again"
            ) from error
        return ResolvedRubric(rubric, "induced", usage if led else JudgeUsage())

    async def drain(self, within_s: float) -> None:
        """Wait for inductions under way, then give up those that are left."""
        await self._flight.drain(within_s)

    async def _is_fresh(self, team: str, rubric: Rubric, run_id: str | None) -> bool:
        """Of its last two groups one had spread, their mean is below the bound, and it is not used up. What a person
        brought or edited stays until it is retired."""
        if rubric.origin != "induced":
            return True
        uses = await self._store.assignments.uses(team, rubric_id=rubric.id, run_id=run_id)
        if uses.count >= self._freshness.max_uses:
            return False
        if not uses.newest:
            return True
        average = mean(reward_mean for reward_mean, _ in uses.newest)
        return (
            any(spread for _, spread in uses.newest)
            and average is not None
            and average < self._freshness.mean_below
        )

    async def _settle(
        self, induction: Induction, context: CallContext
    ) -> tuple[Rubric, JudgeUsage]:
        """Induce under a claim, or wait for the process that does."""
        claims, pause = self._store.claims, FIRST_LOOK_S
        while True:
            claim = await claims.acquire(induction.key)
            memo = await self._store.rubrics.find_induced(induction.wanted.team, induction.key)
            if memo is not None:
                if claim is not None:
                    await claims.drop(claim)
                return memo, JudgeUsage()
            if claim is not None:
                try:
                    return await self._induce(induction, context, claim)
                except ClaimLost:
                    continue
                except BaseException:
                    await claims.drop(claim)
                    raise
            while await claims.held(induction.key):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, LAST_LOOK_S)

    async def _induce(
        self, induction: Induction, context: CallContext, claim: tuple[str, int]
    ) -> tuple[Rubric, JudgeUsage]:
        wanted, judge = induction.wanted, induction.wanted.judge
        task = InductionTask(
            wanted.prompt,
            tuple(dict.fromkeys(fp.judged_text(t) for t in induction.teachers)),
            wanted.students,
        )
        # After a failure other responses are worth a try, but not three calls at each step.
        about = fp.digest([wanted.team, fp.prompt_key(wanted.prompt), judge.rubricator_identity])
        asks = 1 if self._failed.find(about) is not None else ASKS
        line = Line(wanted.team, wanted.run_id, "rubricator", judge.rubricator_identity)
        async with self._budgets.reserve(line) as budget:
            try:
                made = await judge.induce(task, replace(context, budget=budget), asks=asks)
            except JudgeFailure as failure:
                self._failed.remember(failure, induction.key, about)
                await self._record(budget.entry(failure.reason), wanted.team)
                raise
            self._failed.forget(about)
            rubric = await self._keep(induction, task, made, claim)
            await self._record(budget.entry(rubric_id=rubric.id), wanted.team)
        return rubric, made.usage

    async def _keep(
        self, induction: Induction, task: InductionTask, made: Made, claim: tuple[str, int]
    ) -> Rubric:
        wanted, judge = induction.wanted, induction.wanted.judge
        return await self._store.rubrics.save(
            team=wanted.team,
            prompt=wanted.prompt,
            criteria=made.criteria,
            origin="induced",
            tags=wanted.tags,
            induction=induction.key,
            claim=claim,
            cost_usd=made.usage.cost_usd,
            actor=Actor(wanted.team, wanted.key),
            provenance={
                "rubricator": judge.rubricator_identity,
                "template": judge.template,
                "teacher_model": induction.teacher_model,
                "teacher_keys": [fp.text_key(t) for t in task.teacher_responses],
                "student_keys": [fp.text_key(s.text) for s in task.student_responses],
                "run": wanted.run_id,
            },
        )

    async def _record(self, call: JudgeCall | None, team: str) -> None:
        if call is not None:
            await self._store.verdicts.save(Reply(team, call=call))
