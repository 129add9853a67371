"""Scoring a batch: each group gets its rubric, each rollout its verdicts and reward.

In two passes. The first looks everything up and asks no judge, so that a batch for which there is no room is refused
as a whole before anything has happened. The second does the work; a group's failure stays its own there: it is
answered as unscored with a reason while the others go on.
"""

import asyncio
import math
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import structlog

from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server import metrics, wire
from markscheme_server.accounts.budgets import SPENT
from markscheme_server.domain import hashing as fp
from markscheme_server.domain.call_context import Allowance, CallContext, Deadline
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.reward import feedback, reward
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import Verdict
from markscheme_server.errors import NotFound, TooLarge
from markscheme_server.judge.base import Judge, JudgeFailure, Reservation, Response
from markscheme_server.judge.replies import MAX_CRITERIA
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.rubrics import (
    Induction,
    ResolvedRubric,
    RubricRequest,
    RubricService,
)
from markscheme_server.scoring.teachers import TeacherService
from markscheme_server.scoring.verdicts import GroupVerdicts, Plan, VerdictService, sliced
from markscheme_server.store.assignments import Assignment, GroupRef, Outcome, ScoredRollout
from markscheme_server.store.engine.database import is_outage
from markscheme_server.store.rubrics import Filters
from markscheme_server.store.store import Store

log = structlog.get_logger()

TEXT_WEIGHT = 8
"""What it weighs to read one rollout, in verdicts."""
NOT_SHARED = "the rubric of this step is not shared with the team any more"


class Tally:
    """Counts over a batch, growing group by group."""

    def __init__(self) -> None:
        self.scored = self.cached = 0
        self.saved_usd = 0.0
        self.reasons: Counter[UnscoredReason] = Counter()
        self.usage = JudgeUsage()

    def add(self, group: schema.GroupScore) -> None:
        known = sum(r.reward is not None for r in group.rollouts)
        self.scored += known
        self.reasons.update(r.reason for r in group.rollouts if r.reason is not None)
        if group.rubric is not None:
            metrics.RUBRICS.labels(origin=group.rubric.origin).inc()

    def counts(self) -> schema.ScoreCounts:
        unscored = self.reasons.total()
        return schema.ScoreCounts(
            rollouts=self.scored + unscored, scored=self.scored, unscored=unscored
        )

    def cost(self) -> schema.Usage:
        return schema.Usage(
            judge_calls=self.usage.calls,
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            cached_verdicts=self.cached,
            cached_tokens=self.usage.cached_tokens,
            cost_usd=self.usage.cost_usd,
            saved_usd=self.saved_usd,
        )


@dataclass(slots=True)
class _Survey:
    """What the first pass knows of a group: a rubric or the induction that it takes, or why there will be none."""

    group: schema.Group
    texts: list[str]
    """What is judged of each rollout."""
    prompt: tuple[fp.ChatMessage, ...]
    found: ResolvedRubric | Induction | JudgeFailure
    assignment: Assignment | None = None
    plans: list[Plan] | None = None
    teachers: list[str] = field(default_factory=list)
    calls: int = 0

    @property
    def criteria(self) -> int:
        """How many each rollout is judged by; the most that there can be where the rubric is yet to be made."""
        if isinstance(self.found, ResolvedRubric):
            return len(self.found.rubric.criteria)
        return MAX_CRITERIA if isinstance(self.found, Induction) else 0


@dataclass(slots=True)
class Batch:
    """A batch that was let in, ready to be scored."""

    request: schema.ScoreRequest
    judge: Judge
    deadline: Deadline
    surveys: list[_Survey]
    reservation: Reservation | None
    caller: Caller
    allowance: Allowance
    tally: Tally = field(default_factory=Tally)

    @property
    def team(self) -> str:
        return self.caller.team

    @property
    def run_id(self) -> str | None:
        return self.request.run.id if self.request.run else None

    @property
    def teaches(self) -> bool:
        """Whether teacher responses that come with it are kept in the bank."""
        return "induce" in self.caller.scopes


class ScoreService:
    """``POST /v1/scores``."""

    def __init__(
        self,
        store: Store,
        rubrics: RubricService,
        verdicts: VerdictService,
        judges: Judges,
        teachers: TeacherService,
        *,
        timeout_s: float,
        checks_timeout_s: float = math.inf,
        max_verdicts: int | None = None,
    ) -> None:
        self._store, self._rubrics, self._verdicts, self._judges = store, rubrics, verdicts, judges
        self._teacher_service = teachers
        self._timeout_s, self._checks_timeout_s, self._max_verdicts = (
            timeout_s,
            checks_timeout_s,
            max_verdicts,
        )

    def deadline(self, deadline_ms: int | None) -> Deadline:
        """When a request that starts now must be answered, by its caller's word and our own limit."""
        own = self._timeout_s if deadline_ms is None else min(self._timeout_s, deadline_ms / 1000)
        return Deadline(asyncio.get_running_loop().time() + own)

    async def admit(
        self, caller: Caller, request: schema.ScoreRequest, deadline: Deadline
    ) -> Batch:
        """Look up what is known and reserve room for the rest; nothing is written.

        Raises :class:`NotFound` for a rubric id that does not exist, 422 for an unknown judge or where there is no
        teacher to ask, 413 for too many verdicts, and 503 with ``Retry-After`` when the judge's queue is full.
        """
        judge = self._judges.get(request.judge, "verifier")
        if request.ask_teacher:
            self._judges.teacher()
        surveys = await asyncio.gather(
            *(self._survey(caller, request, i, judge) for i in range(len(request.groups)))
        )
        self._require_bounded(surveys)
        await asyncio.gather(
            *(self._plan(caller.team, request, survey, judge) for survey in surveys)
        )
        calls = sum(s.calls for s in surveys)
        reservation = (
            judge.gateway.reserve(calls, caller.team)
            if calls and judge.gateway is not None
            else None
        )
        return Batch(
            request,
            judge,
            deadline,
            list(surveys),
            reservation,
            caller,
            Allowance(self._checks_timeout_s),
        )

    async def score(self, batch: Batch) -> AsyncIterator[schema.GroupScore]:
        """Groups as they are done, in no particular order."""
        tasks = [asyncio.ensure_future(self._group(batch, s)) for s in batch.surveys]
        try:
            for done in asyncio.as_completed(tasks):
                answer = await done
                batch.tally.add(answer)
                yield answer
        finally:
            for task in tasks:
                task.cancel()
            if batch.reservation is not None:
                batch.reservation.release()
            for reason, count in batch.tally.reasons.items():
                metrics.UNSCORED.labels(reason=reason.value).inc(count)

    async def _survey(
        self, caller: Caller, request: schema.ScoreRequest, index: int, judge: Judge
    ) -> _Survey:
        group, team = request.groups[index], caller.team
        texts = await self._texts(team, request, group)
        prompt = tuple(wire.messages(group.prompt))
        place = _place(team, request, group, prompt)
        if group.rubric_id is not None:
            given = await self._store.rubrics.find(team, group.rubric_id)
            if given is None:
                raise NotFound(
                    f"there is no rubric {group.rubric_id!r}",
                    code="rubric_not_found",
                    param=f"groups.{index}.rubric_id",
                )
            survey = _Survey(group, texts, prompt, ResolvedRubric(given, "given"))
        elif (before := await self._store.assignments.find(place)) is not None:
            rubric = await self._store.rubrics.find(team, before.rubric_id)
            survey = _Survey(
                group,
                texts,
                prompt,
                ResolvedRubric(rubric, before.origin)
                if rubric is not None
                else JudgeFailure(UnscoredReason.NO_RUBRIC, NOT_SHARED),
                before,
            )
        else:
            wanted = RubricRequest(
                team,
                prompt,
                tuple(group.teacher_responses) if group.teacher_responses is not None else None,
                tuple(
                    Response(text, r.truncated)
                    for r, text in zip(group.rollouts, texts, strict=True)
                ),
                self._judges.get(request.judge, "rubricator"),
                request.reuse,
                request.run.id if request.run else None,
                key=caller.key,
                filters=Filters(request.teacher_model, request.rubricator),
                reuse_scope=request.reuse_scope or caller.reuse_scope,
                asks_teacher=request.ask_teacher > 0,
            )
            try:
                survey = _Survey(group, texts, prompt, await self._rubrics.find(wanted))
            except JudgeFailure as failure:
                survey = _Survey(group, texts, prompt, failure)
        survey.teachers = await self._teachers(team, request, group, prompt)
        return survey

    def _require_bounded(self, surveys: Sequence[_Survey]) -> None:
        """Raise 413 when more verdicts are asked for than a request may ask for."""
        asked = sum((len(s.group.rollouts) + len(s.teachers)) * s.criteria for s in surveys)
        if self._max_verdicts is not None and asked > self._max_verdicts:
            raise TooLarge(
                f"the batch asks for {asked} verdicts (rollouts times criteria), and one request may ask "
                f"for {self._max_verdicts}: send several requests",
                code="too_many_verdicts",
                param="groups",
            )

    async def _plan(
        self, team: str, request: schema.ScoreRequest, survey: _Survey, judge: Judge
    ) -> None:
        """Work out what a group takes."""
        if isinstance(survey.found, ResolvedRubric):
            survey.plans = await self._plans(team, request, survey, survey.found.rubric, judge)
            survey.calls = sum(
                plan.calls for plan in survey.plans if plan.question.judge.gateway is not None
            )
        elif isinstance(survey.found, Induction):
            survey.calls = 1 + len({r.text for r in survey.group.rollouts})

    async def _plans(
        self, team: str, request: schema.ScoreRequest, survey: _Survey, rubric: Rubric, judge: Judge
    ) -> list[Plan]:
        return await self._verdicts.plan(
            team=team,
            prompt=survey.prompt,
            rubric=rubric,
            texts=survey.texts + survey.teachers,
            judge=judge,
            verify=request.verify,
            run_id=request.run.id if request.run else None,
        )

    async def _group(self, batch: Batch, survey: _Survey) -> schema.GroupScore:
        context = CallContext(batch.deadline, team=batch.team, allowance=batch.allowance)
        try:
            if isinstance(survey.found, JudgeFailure):
                raise survey.found
            if survey.group.teacher_responses and batch.teaches:
                await self._store.teachers.save(
                    batch.team, survey.prompt, survey.group.teacher_responses
                )
            if (
                batch.request.ask_teacher
                and isinstance(survey.found, Induction)
                and not survey.found.teachers
            ):
                survey.found = await self._taught(batch, survey, survey.found, context)
            if isinstance(survey.found, Induction):
                survey.found = await self._rubrics.induce(survey.found, context)
                batch.tally.usage += survey.found.usage
            return await self._mark(batch, survey, survey.found, context)
        except JudgeFailure as failure:
            batch.tally.usage += failure.usage
            log.info("group_unscored", reason=failure.reason)
            return _unscored(survey.group, failure)
        except TimeoutError:
            return _unscored(
                survey.group, JudgeFailure(UnscoredReason.TIMEOUT, "the request's time ran out")
            )
        except Exception as error:
            if is_outage(error):
                raise  # the database is gone for all groups alike: the caller is told to send the batch again
            # Whatever it was, it is this group's: what its neighbours were judged for is paid and stays answered.
            log.error(
                "group_failed",
                group=survey.group.id,
                error=type(error).__name__,
                at=_raised_at(error),
            )
            return _unscored(
                survey.group,
                JudgeFailure(
                    UnscoredReason.UNAVAILABLE,
                    "scoring this group failed; the service's log has the request's id",
                ),
            )
        finally:
            if batch.reservation is not None:
                batch.reservation.release(survey.calls)

    async def _taught(
        self, batch: Batch, survey: _Survey, induction: Induction, context: CallContext
    ) -> ResolvedRubric | Induction:
        """What is found once the teacher has been asked for the responses that there are none of."""
        taught = await self._teacher_service.ensure(
            batch.team, survey.prompt, batch.request.ask_teacher, context, batch.run_id
        )
        batch.tally.usage += taught.usage
        wanted = replace(induction.wanted, teachers=tuple(kept.text for kept in taught.bank))
        if batch.request.score_teachers or batch.request.verify == "group":
            survey.teachers = [fp.judged_text(text) for text in wanted.teachers or ()]
        return await self._rubrics.find(wanted)

    async def _mark(
        self, batch: Batch, survey: _Survey, found: ResolvedRubric, context: CallContext
    ) -> schema.GroupScore:
        """The group's rubric is written down, its rollouts are judged, and what came of it is kept."""
        group, request = survey.group, batch.request
        place = _place(batch.team, request, group, survey.prompt)
        stored = found.rubric.prompt_key == place.prompt_key
        assignment = survey.assignment or await self._store.assignments.assign(
            place,
            prompt=None if stored else survey.prompt,
            rubric_id=found.rubric.id,
            origin=found.origin,
            reuse=request.reuse,
            verify=request.verify,
            distinct=len(set(survey.texts)),
        )
        if assignment.rubric_id != found.rubric.id and group.rubric_id is None:
            # The same step was sent twice at a time, and the other one was first.
            rubric = await self._store.rubrics.find(batch.team, assignment.rubric_id)
            if rubric is None:
                raise JudgeFailure(UnscoredReason.NO_RUBRIC, NOT_SHARED)
            found, survey.plans = ResolvedRubric(rubric, assignment.origin), None
        plans = survey.plans or await self._plans(
            batch.team, request, survey, found.rubric, batch.judge
        )
        judged = await self._verdicts.judge(plans, context)
        batch.tally.usage += judged.usage
        batch.tally.cached += judged.cached
        scores: list[schema.RolloutScore] = []
        for part in sliced(survey.texts, len(found.rubric.criteria)):
            await self._verdicts.pace.step(
                len(part) * len(found.rubric.criteria), batch.team, context.turn
            )
            scores += [
                _rollout(found.rubric, r.id, judged.by_text[text])
                for r, text in zip(group.rollouts[len(scores) :], part, strict=False)
            ]
        # What was there already: verdicts, and the rubric, where the group would have had one induced.
        reused = found.origin == "reused" and request.reuse != "frozen"
        saved = judged.saved_usd + ((found.rubric.cost_usd or 0.0) if reused else 0.0)
        batch.tally.saved_usd += saved
        await self._store.assignments.finish(
            batch.team,
            assignment.id,
            Outcome(
                [
                    ScoredRollout(r.id, r.text, r.truncated, s.reward, s.reason)
                    for r, s in zip(group.rollouts, scores, strict=True)
                ],
                judged.cached,
                saved,
                len(
                    {
                        text
                        for text, s in zip(survey.texts, scores, strict=True)
                        if s.reward is not None
                    }
                ),
            ),
        )
        return _answer(group, found, scores, _teacher_score(found.rubric, survey.teachers, judged))

    async def _texts(
        self, team: str, request: schema.ScoreRequest, group: schema.Group
    ) -> list[str]:
        """The part of each rollout that is judged."""
        texts: list[str] = []
        for part in sliced(group.rollouts, TEXT_WEIGHT):
            await self._verdicts.pace.step(len(part) * TEXT_WEIGHT, team)
            texts += [fp.judged_text(rollout.text, request.thinking) for rollout in part]
        return texts

    async def _teachers(
        self,
        team: str,
        request: schema.ScoreRequest,
        group: schema.Group,
        prompt: tuple[fp.ChatMessage, ...],
    ) -> list[str]:
        """The teacher responses to judge beside the rollouts: when asked for, and always in group mode."""
        if not request.score_teachers and request.verify != "group":
            return []
        bank = group.teacher_responses or [
            kept.text for kept in await self._store.teachers.find(team, fp.prompt_key(prompt))
        ]
        return [fp.judged_text(t) for t in bank]


def _raised_at(error: Exception) -> str:
    """File and line; the error's own words may hold a rollout."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:])
    )


def _place(
    team: str, request: schema.ScoreRequest, group: schema.Group, prompt: tuple[fp.ChatMessage, ...]
) -> GroupRef:
    run = request.run
    return GroupRef(
        team, run.id if run else None, run.step if run else None, group.id, fp.prompt_key(prompt)
    )


def _rollout(
    rubric: Rubric, rollout_id: str, verdicts: Mapping[str, Verdict]
) -> schema.RolloutScore:
    value = reward(rubric.criteria, verdicts)
    reason = next(
        (v.reason for c in rubric.criteria if (v := verdicts[c.id]).reason is not None), None
    )
    return schema.RolloutScore(
        id=rollout_id,
        reward=value,
        status="unscored" if value is None else "scored",
        reason=reason,
        verdicts=[wire.from_verdict(verdicts[c.id]) for c in rubric.criteria],
        feedback=feedback(rubric.criteria, verdicts),
    )


def _teacher_score(
    rubric: Rubric, teachers: Sequence[str], judged: GroupVerdicts
) -> schema.TeacherScore | None:
    if not teachers:
        return None
    return schema.TeacherScore(
        rewards=[reward(rubric.criteria, judged.by_text[t]) for t in teachers]
    )


def _answer(
    group: schema.Group,
    found: ResolvedRubric,
    scores: list[schema.RolloutScore],
    teacher: schema.TeacherScore | None,
) -> schema.GroupScore:
    known = sum(s.reward is not None for s in scores)
    status: Literal["scored", "partial", "unscored"] = (
        "scored" if known == len(scores) else "partial" if known else "unscored"
    )
    rubric = found.rubric
    spent = all(s.reason is UnscoredReason.BUDGET for s in scores)
    error = _error(UnscoredReason.BUDGET, SPENT) if spent else None
    return schema.GroupScore(
        id=group.id,
        status=status,
        error=error,
        teacher=teacher,
        rollouts=scores,
        rubric=schema.RubricRef(
            id=rubric.id,
            version=rubric.version,
            content_hash=rubric.content_hash,
            origin=found.origin,
            team=rubric.team,
            criteria=wire.from_criteria(rubric.criteria),
        ),
    )


def _unscored(group: schema.Group, failure: JudgeFailure) -> schema.GroupScore:
    """A group without a rubric: every reward is null with the reason."""
    return schema.GroupScore(
        id=group.id,
        status="unscored",
        rubric=None,
        teacher=None,
        error=_error(failure.reason, str(failure)),
        rollouts=[
            schema.RolloutScore(
                id=r.id,
                reward=None,
                status="unscored",
                reason=UnscoredReason(failure.reason),
                verdicts=[],
                feedback=[],
            )
            for r in group.rollouts
        ],
    )


def _error(reason: UnscoredReason, message: str) -> schema.ErrorDetail:
    kind, code = (
        ("insufficient_quota",) * 2
        if reason is UnscoredReason.BUDGET
        else ("judge_error", reason.value)
    )
    return schema.ErrorDetail(message=message, type=kind, code=code)
