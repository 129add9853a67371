"""Score a batch: each group gets its rubric, each rollout its verdicts and reward.

There are two passes. `admit` looks everything up without asking a judge, so that a batch beyond the
service's capacity is refused as a whole, with no side effects. `score` does the work. If a group
fails there, it alone is returned as unscored, with a reason.
"""

import asyncio
import math
import traceback
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from markscheme import schema
from markscheme.vocabulary import Clamp, UnscoredReason, View
from markscheme_server import metrics, wire
from markscheme_server.domain.call_context import Allowance, CallContext, Deadline
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import ChatMessage, check_view, prompt_key
from markscheme_server.domain.reward import reward
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.trajectory import (
    DEFAULT_VIEW,
    Answer,
    Judged,
    Response,
    measure,
    response_key,
    unsupported_in,
)
from markscheme_server.domain.verdict import verdict_string
from markscheme_server.errors import NotFound, TooLarge, Unavailable
from markscheme_server.judge.base import Judge, JudgeFailure, StudentResponse
from markscheme_server.judge.queue import QueueReservation
from markscheme_server.judge.replies import MAX_CRITERIA
from markscheme_server.scoring.group_scores import (
    GroupResult,
    Tally,
    group_score,
    rollout_score,
    unscored_group,
    unscored_rollout,
)
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.rubric_cache import RubricCache
from markscheme_server.scoring.rubrics import (
    PendingInduction,
    ResolvedRubric,
    RubricRequest,
    RubricService,
)
from markscheme_server.scoring.shadow import ScoredGroup, ShadowService
from markscheme_server.scoring.teachers import SampleResult, TeacherService
from markscheme_server.scoring.together import together
from markscheme_server.scoring.verdict_plan import VerdictPlan
from markscheme_server.scoring.verdicts import (
    TEXT_WEIGHT,
    GroupVerdicts,
    VerdictService,
    sliced,
)
from markscheme_server.store.assignments import (
    Assignment,
    GroupOutcome,
    GroupRef,
    ScoredRollout,
    ScoredTeacher,
)
from markscheme_server.store.engine.database import is_outage
from markscheme_server.store.rubrics import Filters
from markscheme_server.store.store import Store

log = structlog.get_logger()

RUBRIC_NOT_VISIBLE = "the rubric of this step is no longer shared with the team"


@dataclass(frozen=True, slots=True)
class GroupLookup:
    """The first pass's result for a group.

    `answers`: the rollouts; `None` for one that judges cannot read. `teachers`: the teacher
    responses to judge. `rubric`: the rubric, the induction that it takes, or why there will be
    none. `assignment`: the one that the group of this step has already.
    """

    group: schema.Group
    answers: Sequence[Answer | None]
    teachers: Sequence[Answer]
    prompt: tuple[ChatMessage, ...]
    ref: GroupRef
    rubric: ResolvedRubric | PendingInduction | JudgeFailure
    assignment: Assignment | None = None

    @property
    def verdicts(self) -> int:
        """Maximum number of verdicts that the group needs."""
        if isinstance(self.rubric, JudgeFailure):
            return 0
        criteria = MAX_CRITERIA
        if isinstance(self.rubric, ResolvedRubric):
            criteria = len(self.rubric.rubric.criteria)
        return (len(self.readable) + len(self.teachers)) * criteria

    @property
    def readable(self) -> list[Answer]:
        """The rollouts that judges can read."""
        return [answer for answer in self.answers if answer is not None]


@dataclass(frozen=True, slots=True)
class AdmittedGroup:
    """A group with the verdicts that it needs, if its rubric is known, and its judge calls."""

    lookup: GroupLookup
    plans: Sequence[VerdictPlan] | None
    calls: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was admitted. `allowance`: the computing time of its checks.

    `scored`: its groups that were scored, for the second judge.
    """

    request: schema.ScoreRequest
    judge: Judge
    deadline: Deadline
    groups: Sequence[AdmittedGroup]
    reservation: QueueReservation | None
    caller: Caller
    allowance: Allowance
    tally: Tally = field(default_factory=Tally)
    scored: list[ScoredGroup] = field(default_factory=list)


class ScoreService:
    """Scores batches: `POST /v1/scores`.

    `timeout_s`: the longest time for a request. `checks_timeout_s`: computing time for the checks
    of one request. `max_verdicts`: rollouts times criteria in one request; `None`: no limit.
    """

    def __init__(
        self,
        store: Store,
        rubrics: RubricService,
        verdicts: VerdictService,
        judges: Judges,
        teachers: TeacherService,
        shadow: ShadowService,
        *,
        timeout_s: float,
        checks_timeout_s: float = math.inf,
        max_verdicts: int | None = None,
    ) -> None:
        self._store, self._rubrics, self._verdicts = store, rubrics, verdicts
        self._judges, self._teachers, self._shadow = judges, teachers, shadow
        self._named_rubrics = RubricCache(store.rubrics)
        self._timeout_s, self._checks_timeout_s = timeout_s, checks_timeout_s
        self._max_verdicts = max_verdicts

    def deadline(self, deadline_ms: int | None) -> Deadline:
        """Return when a request that begins now must be answered.

        `deadline_ms`: how long the caller waits, in milliseconds.
        """
        limit_s = self._timeout_s
        if deadline_ms is not None:
            limit_s = min(limit_s, deadline_ms / 1000)
        return Deadline(asyncio.get_running_loop().time() + limit_s)

    def judge_of(self, options: schema.ScoreOptions) -> Judge:
        """Return the judge. Raises `Unprocessable` if there is no such judge, or no teacher."""
        if options.ask_teacher:
            # Raises now if there is no teacher: a request is refused before anything is written.
            self._judges.teacher()
        return self._judges.get(options.judge, "verifier")

    async def given_rubric(self, team: str, rubric_id: str, param: str) -> Rubric:
        """Return the rubric that a request names. Raises `NotFound`."""
        given = await self._named_rubrics.find(team, rubric_id)
        if given is None:
            raise NotFound(
                f"there is no rubric {rubric_id!r}", code="rubric_not_found", param=param
            )
        return given

    async def admit(
        self, caller: Caller, request: schema.ScoreRequest, deadline: Deadline
    ) -> Batch:
        """Look up what is known and reserve capacity for the rest; write nothing.

        Raises `NotFound` for an unknown rubric id, `Unprocessable` for an unknown judge or if
        there is no teacher to ask, `TooLarge` for too many verdicts, and `Unavailable` if the
        judge's queue is full.
        """
        judge = self.judge_of(request)
        lookups = await together(
            self._look_up(caller, request, index) for index in range(len(request.groups))
        )
        # Before the plans, which compute a key for each verdict.
        self._require_bounded(sum(lookup.verdicts for lookup in lookups))
        groups = await together(self._plan_group(request, lookup, judge) for lookup in lookups)
        calls, reservation = sum(group.calls for group in groups), None
        if calls and judge.gateway is not None:
            reservation = judge.gateway.reserve(calls, caller.team)
        return Batch(
            request=request,
            judge=judge,
            deadline=deadline,
            groups=groups,
            reservation=reservation,
            caller=caller,
            allowance=Allowance(self._checks_timeout_s),
        )

    async def score(self, batch: Batch) -> AsyncIterator[schema.GroupScore]:
        """Yield groups as they finish, in no particular order."""
        scoring = [self._score_group(batch, group) for group in batch.groups]
        # A lone group, as most requests have, needs no task of its own.
        tasks = [asyncio.ensure_future(each) for each in scoring] if len(scoring) > 1 else []
        try:
            for done in asyncio.as_completed(tasks) if tasks else scoring:
                result = await done
                batch.tally.add(result)
                yield result.score
        finally:
            # If a group raises or the caller disconnects, cancel the others.
            for task in tasks:
                task.cancel()
            if batch.reservation is not None:
                batch.reservation.release()
            # Last, so that background questions never delay a response.
            self._shadow.start(batch.scored)
            for reason, count in batch.tally.reasons.items():
                metrics.UNSCORED.labels(reason=reason.value).inc(count)

    async def _look_up(
        self, caller: Caller, request: schema.ScoreRequest, index: int
    ) -> GroupLookup:
        """Find a group's rubric: the one that it names, was assigned before, or may reuse."""
        group, team = request.groups[index], caller.team
        prompt = tuple(wire.messages(group.prompt))
        run_id, step = (request.run.id, request.run.step) if request.run else (None, None)
        ref = GroupRef(team, run_id, step, group.id, prompt_key(prompt))
        answers = await self._read(team, request, group)
        teacher_responses = [wire.response(each) for each in group.teacher_responses or ()]
        rubric: ResolvedRubric | PendingInduction | JudgeFailure
        assignment = None
        if unsupported := _unsupported(prompt, teacher_responses, answers):
            rubric = JudgeFailure(UnscoredReason.NOT_SUPPORTED, unsupported)
        elif group.rubric_id is not None:
            given = await self.given_rubric(team, group.rubric_id, f"groups.{index}.rubric_id")
            rubric = ResolvedRubric(given, "given")
        elif (assignment := await self._store.assignments.find(ref)) is not None:
            try:
                # The step was sent before. Keeping its rubric keeps its stored verdicts.
                rubric = await self._assigned_rubric(team, assignment)
            except JudgeFailure as failure:
                rubric = failure
        else:
            judge = self._judges.get(request.judge, "rubricator")
            view = request.view or judge.view
            rubric_request = RubricRequest(
                team=team,
                prompt=prompt,
                teachers=None if group.teacher_responses is None else tuple(teacher_responses),
                students=tuple(
                    StudentResponse(answer.judged(view or DEFAULT_VIEW), rollout.truncated)
                    for answer, rollout in zip(answers, group.rollouts, strict=True)
                    if answer is not None
                ),
                judge=judge,
                view=view,
                reuse=request.reuse,
                run_id=run_id,
                key=caller.key,
                filters=Filters(request.teacher_model, request.rubricator),
                reuse_scope=request.reuse_scope or caller.reuse_scope,
                asks_teacher=request.ask_teacher > 0,
            )
            try:
                # A failure here leaves this group unscored; it does not refuse the batch.
                rubric = await self._rubrics.find(rubric_request)
            except JudgeFailure as failure:
                rubric = failure
        return GroupLookup(
            group=group,
            answers=answers,
            teachers=await self._judged_teachers(request, teacher_responses, ref),
            prompt=prompt,
            ref=ref,
            rubric=rubric,
            assignment=assignment,
        )

    async def _read(
        self, team: str, request: schema.ScoreRequest, group: schema.Group
    ) -> list[Answer | None]:
        """Return the rollouts to judge; `None` for one with parts that are not text."""
        answers: list[Answer | None] = []
        for part in sliced(group.rollouts, TEXT_WEIGHT):
            await self._verdicts.throttle.wait(len(part) * TEXT_WEIGHT, team)
            read = (Answer(wire.response(wire.said(each)), request.thinking) for each in part)
            answers += [None if answer.unsupported else answer for answer in read]
        return answers

    async def _judged_teachers(
        self, request: schema.ScoreRequest, responses: Sequence[Response], ref: GroupRef
    ) -> list[Answer]:
        """Return the teacher responses to judge beside the rollouts."""
        if not responses and _judges_teachers(request):
            bank = await self._store.teachers.find(ref.team, ref.prompt_key)
            responses = [stored.response for stored in bank]
        return _judged_teachers(request, responses)

    async def _assigned_rubric(self, team: str, assignment: Assignment) -> ResolvedRubric:
        rubric = await self._named_rubrics.find(team, assignment.rubric_id)
        if rubric is None:
            raise JudgeFailure(UnscoredReason.NO_RUBRIC, RUBRIC_NOT_VISIBLE)
        return ResolvedRubric(rubric, assignment.origin)

    def _require_bounded(self, verdicts: int) -> None:
        """Raise `TooLarge` when more verdicts are asked for than a request may ask for."""
        if self._max_verdicts is not None and verdicts > self._max_verdicts:
            raise TooLarge(
                f"the batch asks for {verdicts} verdicts (rollouts times criteria), and one "
                f"request may ask for {self._max_verdicts}: send several requests",
                code="too_many_verdicts",
                param="groups",
            )

    async def _plan_group(
        self, request: schema.ScoreRequest, lookup: GroupLookup, judge: Judge
    ) -> AdmittedGroup:
        if isinstance(lookup.rubric, ResolvedRubric):
            plans = await self._plan_verdicts(request, lookup, lookup.rubric.rubric, judge)
            return AdmittedGroup(lookup, plans, sum(plan.calls for plan in plans))
        if isinstance(lookup.rubric, PendingInduction):
            # One call induces the rubric, and one judges each distinct rollout.
            return AdmittedGroup(lookup, None, 1 + len({a.response for a in lookup.readable}))
        return AdmittedGroup(lookup, None, 0)

    async def _plan_verdicts(
        self, request: schema.ScoreRequest, lookup: GroupLookup, rubric: Rubric, judge: Judge
    ) -> list[VerdictPlan]:
        return await self._verdicts.plan(
            team=lookup.ref.team,
            prompt=lookup.prompt,
            rubric=rubric,
            answers=[*lookup.readable, *lookup.teachers],
            judge=judge,
            verify=request.verify,
            view=_view(request, rubric, judge),
            run_id=lookup.ref.run_id,
        )

    async def _score_group(self, batch: Batch, admitted: AdmittedGroup) -> GroupResult:
        """Resolve a group's rubric, judge its rollouts and store the outcome.

        Failures become an unscored group; only the loss of the database is raised.
        """
        context = CallContext(batch.deadline, team=batch.caller.team, allowance=batch.allowance)
        lookup = admitted.lookup
        rubric, asks_teacher = lookup.rubric, batch.request.ask_teacher > 0
        try:
            if isinstance(rubric, JudgeFailure):
                raise rubric
            # The bank feeds later inductions, so that writing to it takes the scope `induce`.
            if lookup.group.teacher_responses and "induce" in batch.caller.scopes:
                given = [wire.response(each) for each in lookup.group.teacher_responses]
                await self._store.teachers.save(lookup.ref.team, lookup.prompt, given)
            if isinstance(rubric, PendingInduction) and not rubric.teachers and asks_teacher:
                sampled = await self._sample_teacher(batch, lookup, context)
                bank = tuple(stored.response for stored in sampled.bank)
                lookup = replace(lookup, teachers=_judged_teachers(batch.request, bank))
                rubric = await self._rubrics.find(replace(rubric.request, teachers=bank))
            if isinstance(rubric, PendingInduction):
                rubric = await self._rubrics.induce(rubric, context)
            assigning = self._assign(batch, lookup, rubric)
            plans = admitted.plans
            # By a rubric that the group names it is judged meanwhile, whatever was assigned before.
            if lookup.group.rubric_id is None:
                assignment = await assigning
                if assignment.rubric_id != rubric.rubric.id:
                    # The same step was sent twice at a time, and the other one was first.
                    rubric = await self._assigned_rubric(lookup.ref.team, assignment)
                    plans = None
            if plans is None:
                plans = await self._plan_verdicts(batch.request, lookup, rubric.rubric, batch.judge)
            verdicts = await self._verdicts.judge(plans, context)
            clamp = batch.request.clamp
            view = _view(batch.request, rubric.rubric, batch.judge)
            limit = batch.judge.max_response_tokens
            scores, words = await self._rollout_scores(
                lookup, rubric.rubric, verdicts, clamp, context, view, limit
            )
            saved_usd = verdicts.saved_usd + _saved_by_rubric(batch.request, rubric)
            views = _read_views(rubric.rubric, view)
            teachers = _scored_teachers(rubric.rubric, lookup.teachers, verdicts, clamp)
            outcome = replace(
                _outcome(lookup, scores, words, views),
                cached_verdicts=verdicts.cached,
                saved_usd=saved_usd,
                teachers=teachers,
                criteria=len(rubric.rubric.criteria),
                judge=batch.judge.verifier_identity,
                run_id=lookup.ref.run_id,
            )
            assignment = await assigning
            await self._store.assignments.finish(lookup.ref.team, assignment.id, outcome)
            batch.scored.append(
                ScoredGroup(
                    assignment_id=assignment.id,
                    ref=lookup.ref,
                    prompt=lookup.prompt,
                    rubric=rubric.rubric,
                    judge=batch.judge,
                    verify=batch.request.verify,
                    view=view,
                    clamp=clamp,
                    rollouts=[
                        (answer, rollout)
                        for answer, rollout in zip(lookup.answers, outcome.rollouts, strict=True)
                        if answer is not None
                    ],
                    teachers=lookup.teachers,
                )
            )
            teacher = (
                schema.TeacherScore(rewards=[each.reward for each in teachers])
                if teachers
                else None
            )
            score = group_score(lookup.group, rubric, scores, teacher, clamp)
            return GroupResult(score, context.usage, verdicts.cached, saved_usd)
        except JudgeFailure as failure:
            log.info("group_unscored", reason=failure.reason)
            return GroupResult(unscored_group(lookup.group, failure), context.usage)
        except Exception as error:
            if is_outage(error):
                raise  # it concerns all groups: the caller should send the batch again
            # Whatever it was, it is this group's: what its neighbours were judged for is paid,
            # and is answered.
            log.error(
                "group_failed",
                group=lookup.group.id,
                error=type(error).__name__,
                at=_raised_at(error),
            )
            unknown = JudgeFailure(
                UnscoredReason.UNAVAILABLE,
                "scoring this group failed; find the request's id in the service's log",
            )
            return GroupResult(unscored_group(lookup.group, unknown), context.usage)
        finally:
            if batch.reservation is not None:
                # Now, not at the end of the batch, so that other requests get the capacity.
                batch.reservation.release(admitted.calls)

    async def _sample_teacher(
        self, batch: Batch, lookup: GroupLookup, context: CallContext
    ) -> SampleResult:
        ref, count = lookup.ref, batch.request.ask_teacher
        try:
            return await self._teachers.ensure(ref.team, lookup.prompt, count, context, ref.run_id)
        except Unavailable as full:
            # The batch was admitted: a full queue of the teacher concerns this group only.
            raise JudgeFailure(UnscoredReason.UNAVAILABLE, str(full)) from full

    def _assign(
        self, batch: Batch, lookup: GroupLookup, rubric: ResolvedRubric
    ) -> asyncio.Future[Assignment]:
        """Store which rubric the group gets, unless it has one already."""
        if lookup.assignment is not None:
            found = asyncio.get_running_loop().create_future()
            found.set_result(lookup.assignment)
            return found
        is_stored = rubric.rubric.prompt_key == lookup.ref.prompt_key
        views = _read_views(rubric.rubric, _view(batch.request, rubric.rubric, batch.judge))
        return self._store.assignments.assign(
            lookup.ref,
            prompt=None if is_stored else lookup.prompt,
            rubric_id=rubric.rubric.id,
            origin=rubric.origin,
            reuse=batch.request.reuse,
            verify=batch.request.verify,
            distinct=len({answer.judged_in(views) for answer in lookup.readable}),
        )

    async def _rollout_scores(
        self,
        lookup: GroupLookup,
        rubric: Rubric,
        verdicts: GroupVerdicts,
        clamp: Clamp,
        context: CallContext,
        view: View,
        limit: int | None,
    ) -> tuple[list[schema.RolloutScore], list[int | None]]:
        """Return the rollouts' scores, and the words of what was judged of each."""
        scores: list[schema.RolloutScore] = []
        words: list[int | None] = []
        rollouts = list(zip(lookup.group.rollouts, lookup.answers, strict=True))
        for part in sliced(rollouts, len(rubric.criteria)):
            size = len(part) * len(rubric.criteria)
            await self._verdicts.throttle.wait(size, context.team, context.priority)
            scores += [
                unscored_rollout(rollout, UnscoredReason.NOT_SUPPORTED)
                if answer is None
                else rollout_score(
                    rubric,
                    rollout.id,
                    verdicts.of(answer),
                    clamp,
                    view,
                    measure(answer.judged(view), limit),
                )
                for rollout, answer in part
            ]
            words += [None if answer is None else _words(answer.judged(view)) for _, answer in part]
        return scores, words


def _judges_teachers(request: schema.ScoreRequest) -> bool:
    """Return whether teacher responses are judged beside the rollouts: always in group mode."""
    return request.score_teachers or request.verify == "group"


def _judged_teachers(request: schema.ScoreRequest, responses: Sequence[Response]) -> list[Answer]:
    return [Answer(response) for response in responses] if _judges_teachers(request) else []


def _view(request: schema.ScoreRequest, rubric: Rubric, judge: Judge) -> View:
    """Return what is judged: the request's view, else the rubric's, else the judge's."""
    return request.view or rubric.view or judge.view or DEFAULT_VIEW


def _read_views(rubric: Rubric, view: View) -> list[View]:
    """Return the views that verdicts depend on: a check may read another one than the judge."""
    return list(
        dict.fromkeys(check_view(c) if c.check is not None else view for c in rubric.criteria)
    )


def _unsupported(
    prompt: Sequence[ChatMessage],
    teachers: Sequence[Response],
    answers: Sequence[Answer | None],
) -> str:
    """Return why judges cannot read a group at all; empty if they can read some of it."""
    if kinds := unsupported_in(prompt):
        return f"the prompt: {wire.not_text(kinds)}"
    for number, teacher in enumerate(teachers):
        if kinds := Answer(teacher).unsupported:
            return f"teacher response {number}: {wire.not_text(kinds)}"
    if not any(answers):
        return "judges read text only, and every rollout of the group has other parts"
    return ""


def _raised_at(error: Exception) -> str:
    """Return files and lines, but not the error's message: that may hold a rollout."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:])
    )


def _saved_by_rubric(request: schema.ScoreRequest, rubric: ResolvedRubric) -> float:
    """Return what a reused rubric had cost, in dollars, if one would have been induced."""
    if rubric.origin != "reused" or request.reuse == "frozen":
        return 0.0
    return rubric.rubric.cost_usd or 0.0


def _words(judged: Judged) -> int:
    return len((judged if isinstance(judged, str) else judged.text).split())


def _outcome(
    lookup: GroupLookup,
    scores: Sequence[schema.RolloutScore],
    words: Sequence[int | None],
    views: Sequence[View],
) -> GroupOutcome:
    # Equal texts have equal rewards, so only distinct ones can show a spread.
    scored = {
        answer.judged_in(views)
        for answer, score in zip(lookup.answers, scores, strict=True)
        if answer is not None and score.reward is not None
    }
    rollouts = [
        ScoredRollout(
            rollout.id,
            wire.response(wire.said(rollout)),
            rollout.truncated,
            score.reward,
            score.reason,
            verdict_string(score.verdicts),
            count,
        )
        for rollout, score, count in zip(lookup.group.rollouts, scores, words, strict=True)
    ]
    return GroupOutcome(rollouts, distinct=len(scored))


def _scored_teachers(
    rubric: Rubric, teachers: Sequence[Answer], verdicts: GroupVerdicts, clamp: Clamp
) -> list[ScoredTeacher]:
    scored = []
    for teacher in teachers:
        found = verdicts.of(teacher)
        scored.append(
            ScoredTeacher(
                response_key(teacher.response),
                reward(rubric.criteria, found, clamp),
                verdict_string(found[c.id] for c in rubric.criteria),
            )
        )
    return scored
