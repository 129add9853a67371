"""Find the rubric for a group: reused, or induced now. The same induction happens once."""

from dataclasses import dataclass, replace
from functools import partial

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, ReuseScope, UnscoredReason, View
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.hashing import (
    ChatMessage,
    digest,
    induction_key,
    prompt_key,
)
from markscheme_server.domain.reward import mean
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.trajectory import DEFAULT_VIEW, Judged, Response, judged, judged_key
from markscheme_server.judge.base import (
    MAX_ATTEMPTS,
    InductionTask,
    Judge,
    JudgeFailure,
    StudentResponse,
)
from markscheme_server.judge.prompts import EARLIER_VERSION
from markscheme_server.scoring.failed_inductions import FailedInductions
from markscheme_server.scoring.rubric_health import FaultyRubric, RubricFaults
from markscheme_server.scoring.single_flight import Abandoned, SingleFlight
from markscheme_server.store.assignments import RubricUses
from markscheme_server.store.audit import Actor
from markscheme_server.store.claims import Claim
from markscheme_server.store.ledger import CallDescription
from markscheme_server.store.rubrics import Filters
from markscheme_server.store.store import Store
from markscheme_server.store.teachers import TeacherResponse


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a rubric still separates the rollouts of a run (the settings `reuse_*`).

    `max_uses`: groups of one run that it may score. `mean_below`: the mean reward at which it has
    become too easy.
    """

    max_uses: int
    mean_below: float


@dataclass(frozen=True, slots=True)
class ResolvedRubric:
    """A rubric for a group, and where it is from."""

    rubric: Rubric
    origin: AssignedOrigin


@dataclass(frozen=True, slots=True)
class RubricRequest:
    """What a rubric is needed for.

    `teachers`: whole teacher responses; `None`: those of the teacher bank. `students`: what is
    judged of rollouts. `view`: what of a trajectory the rubric is about, if something says so;
    `students` are in this view, or else in the default one. `key`: the prefix of the caller's API
    key. `reuse_scope`: whose rubrics may be reused, if the request or the team says so.
    `asks_teacher`: whether the teacher is asked if there are no responses.
    """

    team: str
    prompt: tuple[ChatMessage, ...]
    teachers: tuple[Response, ...] | None
    students: tuple[StudentResponse, ...]
    judge: Judge
    reuse: ReusePolicy
    run_id: str | None
    tags: tuple[str, ...] = ()
    key: str | None = None
    filters: Filters = Filters()
    reuse_scope: ReuseScope | None = None
    asks_teacher: bool = False
    view: View | None = None

    def scope(self, *, can_induce: bool) -> ReuseScope:
        """Return whose rubrics may be reused.

        `can_induce`: a rubric can be induced from teacher responses; another team's is then taken
        only on request.
        """
        return self.reuse_scope or ("own" if can_induce else "organisation")


@dataclass(frozen=True, slots=True)
class PendingInduction:
    """An induction that has to be made, under its cache key.

    `teacher_model`: the model of the teacher responses, if they are all of one. `replaces`: the
    rubric whose criteria the rubricator is shown, with their figures. `fallback`: a rubric that is
    fresh but for them, and scores the group where the induction fails.
    """

    request: RubricRequest
    teachers: tuple[Response, ...]
    key: str
    teacher_model: str | None = None
    replaces: FaultyRubric | None = None
    fallback: Rubric | None = None

    @property
    def failure_key(self) -> str:
        """What this induction shares with others for the same prompt by the same rubricator."""
        request = self.request
        return digest([request.team, prompt_key(request.prompt), request.judge.rubricator_identity])


class RubricService:
    """Finds and induces rubrics."""

    def __init__(self, store: Store, freshness: Freshness, budgets: BudgetService) -> None:
        self._store, self._freshness, self._budgets = store, freshness, budgets
        self._faults = RubricFaults(store.runs)
        self._failed = FailedInductions()
        self._flights: SingleFlight[ResolvedRubric] = SingleFlight()

    async def find(self, request: RubricRequest) -> ResolvedRubric | PendingInduction:
        """Return the rubric under the reuse policy, or the induction that it takes.

        Asks no judge and writes nothing. `always_new` reuses only the result of this very
        induction. `if_fresh` takes, in this order: what a person of the team imported or forked,
        the result of this very induction, the nearest rubric in the scope of reuse while it is
        fresh and none of its criteria is saturated or inverted. `frozen` takes the nearest rubric
        and never induces. Raises `JudgeFailure` when `frozen` finds none.
        """
        team, key = request.team, prompt_key(request.prompt)
        if request.reuse == "frozen":
            nearest = await self._find_nearest(request, can_induce=False)
            if nearest is None:
                raise JudgeFailure(
                    UnscoredReason.NO_RUBRIC,
                    "there is no rubric for this prompt and reuse is frozen",
                )
            return ResolvedRubric(nearest, "reused")
        teachers = request.teachers
        bank: list[TeacherResponse] = []
        if teachers is None:
            bank = await self._store.teachers.find(team, key)
            teachers = tuple(stored.response for stored in bank)
        nearest = None
        if request.reuse == "if_fresh":
            can_induce = bool(teachers) or request.asks_teacher
            nearest = await self._find_nearest(request, can_induce=can_induce)
            if nearest is not None and nearest.team == team and nearest.origin != "induced":
                return ResolvedRubric(nearest, "reused")
        key_of = partial(
            induction_key,
            team=team,
            prompt=key,
            teachers=[judged_key(_judged(request, response)) for response in teachers],
            # A key is hexadecimal, so "+" marks a truncated response without ambiguity.
            students=[judged_key(s.text) + ("+" if s.truncated else "") for s in request.students],
            rubricator=request.judge.rubricator_identity,
            view=request.view,
        )
        induction, replaces, fallback = key_of(), None, None
        induced = await self._store.rubrics.find_induced(team, induction)
        if induced is not None:
            return ResolvedRubric(induced, "reused")
        if nearest is not None:
            if nearest.origin != "induced":
                return ResolvedRubric(nearest, "reused")
            uses = await self._store.assignments.uses(
                team, rubric_id=nearest.id, run_id=request.run_id
            )
            # Rules would write the same criteria again.
            if request.judge.gateway is not None:
                replaces = await self._faults.find(team, nearest, uses.scored)
            fallback = nearest if self._is_fresh(uses) else None
            if replaces is not None:
                induction = key_of(replaces=(nearest.id, EARLIER_VERSION))
            elif fallback is not None:
                return ResolvedRubric(fallback, "reused")
        models = {response.model for response in bank}
        model = models.pop() if len(models) == 1 else None
        return PendingInduction(request, teachers, induction, model, replaces, fallback)

    async def resolve(self, request: RubricRequest, context: CallContext) -> ResolvedRubric:
        """Find the rubric, or induce it. Raises `JudgeFailure`."""
        if request.teachers:
            await self._store.teachers.save(request.team, request.prompt, request.teachers)
        found = await self.find(request)
        if isinstance(found, ResolvedRubric):
            return found
        gateway = request.judge.gateway
        reservation = gateway.reserve(1, request.team) if gateway is not None else None
        try:
            return await self.induce(found, context)
        finally:
            if reservation is not None:
                reservation.release()

    async def induce(self, induction: PendingInduction, context: CallContext) -> ResolvedRubric:
        """Induce the rubric, once for all callers, or return the induction's fallback.

        Raises `JudgeFailure`, also when the same induction failed a while ago.
        """
        try:
            return await self._induce_or_wait(induction, context)
        except JudgeFailure:
            if induction.fallback is None:
                raise
            return ResolvedRubric(induction.fallback, "reused")

    async def _induce_or_wait(
        self, induction: PendingInduction, context: CallContext
    ) -> ResolvedRubric:
        """Induce, or wait for a task of this process that does. Raises `JudgeFailure`."""
        if (failed := self._failed.find(induction.key)) is not None:
            raise failed
        try:
            resolved, _ = await self._flights.run(
                induction.key,
                lambda deadline: self._induce_once(induction, replace(context, deadline=deadline)),
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
        return resolved

    async def drain(self, within_s: float) -> None:
        """Wait for the inductions under way, for `within_s` at most, then cancel the rest."""
        await self._flights.drain(within_s)

    async def _find_nearest(self, request: RubricRequest, *, can_induce: bool) -> Rubric | None:
        return await self._store.rubrics.find_nearest(
            request.team,
            prompt_key(request.prompt),
            request.filters,
            scope=request.scope(can_induce=can_induce),
            run_id=request.run_id,
            # Frozen, a rubric from another view is better than none.
            view=None if request.reuse == "frozen" else request.view,
        )

    def _is_fresh(self, uses: RubricUses) -> bool:
        """Return whether an induced rubric still separates the rollouts of a run.

        It does while it has uses left, one of its last two groups had a spread, and their mean
        reward is below the bound.
        """
        if uses.count >= self._freshness.max_uses:
            return False
        # No finished group shows yet whether the rubric separates rollouts.
        if not uses.newest:
            return True
        average = mean(reward_mean for reward_mean, _ in uses.newest)
        return (
            any(spread for _, spread in uses.newest)
            and average is not None
            and average < self._freshness.mean_below
        )

    async def _induce_once(
        self, induction: PendingInduction, context: CallContext
    ) -> ResolvedRubric:
        """Induce under a claim, or wait for the process that does."""

        async def find() -> ResolvedRubric | None:
            team = induction.request.team
            rubric = await self._store.rubrics.find_induced(team, induction.key)
            return ResolvedRubric(rubric, "induced") if rubric is not None else None

        return await self._store.claims.once(
            induction.key, find, lambda claim: self._induce(induction, context, claim)
        )

    async def _induce(
        self, induction: PendingInduction, context: CallContext, claim: Claim
    ) -> ResolvedRubric:
        request, judge = induction.request, induction.request.judge
        task = InductionTask(
            request.prompt,
            # Responses that differ in their thinking only are shown once.
            tuple(dict.fromkeys(_judged(request, each) for each in induction.teachers)),
            request.students,
            induction.replaces.criteria if induction.replaces is not None else (),
        )
        # After a failure other responses are worth a try, but not three attempts at each step.
        failed_before = self._failed.find(induction.failure_key) is not None
        about = CallDescription(
            request.team, request.run_id, "rubricator", judge.rubricator_identity
        )
        async with self._budgets.reserve(about, context) as budget:
            try:
                criteria = await judge.induce(
                    task,
                    replace(context, budget=budget),
                    max_attempts=1 if failed_before else MAX_ATTEMPTS,
                )
            except JudgeFailure as failure:
                self._failed.remember(failure, induction.key, induction.failure_key)
                await budget.record(failure.reason)
                raise
            self._failed.forget(induction.failure_key)
            # Saved inside the reservation, so that the ledger row can name the rubric.
            rubric = await self._save(induction, task, criteria, claim, budget.usage.cost_usd)
            await budget.record(rubric_id=rubric.id)
        if induction.replaces is not None:
            self._faults.forget(request.team, induction.replaces.rubric)
        return ResolvedRubric(rubric, "induced")

    async def _save(
        self,
        induction: PendingInduction,
        task: InductionTask,
        criteria: tuple[Criterion, ...],
        claim: Claim,
        cost_usd: float | None,
    ) -> Rubric:
        request, judge, replaces = (
            induction.request,
            induction.request.judge,
            induction.replaces,
        )
        return await self._store.rubric_versions.save(
            team=request.team,
            prompt=request.prompt,
            criteria=criteria,
            origin="induced",
            tags=request.tags,
            view=request.view,
            induction=induction.key,
            claim=claim,
            cost_usd=cost_usd,
            actor=Actor(request.team, request.key),
            parent=replaces.rubric if replaces is not None else None,
            provenance={
                "rubricator": judge.rubricator_identity,
                "template": judge.template,
                "teacher_model": induction.teacher_model,
                "teacher_keys": [judged_key(each) for each in task.teacher_responses],
                "student_keys": [judged_key(student.text) for student in task.student_responses],
                "run": request.run_id,
            }
            | (
                {"replaces": replaces.rubric.id, "reason": replaces.reason}
                if replaces is not None
                else {}
            ),
        )


def _judged(request: RubricRequest, response: Response) -> Judged:
    """Return what is contrasted of a teacher's response."""
    return judged(response, request.view or DEFAULT_VIEW)
