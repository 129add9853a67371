"""Scoring a batch: each group gets its rubric, each rollout its verdicts and reward.

A group's failure stays its own: it is answered as unscored with a reason while the others go on.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog

from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain import fingerprint as fp
from markscheme_server.domain.reward import feedback, reward
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.verdict import Verdict
from markscheme_server.errors import NotFound
from markscheme_server.grading import wire
from markscheme_server.grading.rubrics import Found, RubricService
from markscheme_server.grading.verdicts import Judged, VerdictService
from markscheme_server.judge.base import JudgeFailure, JudgeUsage, Response
from markscheme_server.store.assignments import Assignment, ScoredRollout
from markscheme_server.store.store import Store

log = structlog.get_logger()


class Tally:
    """Counts over a batch, growing group by group."""

    def __init__(self) -> None:
        self.scored = self.unscored = self.cached = 0
        self.usage = JudgeUsage()

    def add(self, group: schema.GroupScore) -> None:
        known = sum(r.reward is not None for r in group.rollouts)
        self.scored += known
        self.unscored += len(group.rollouts) - known

    def counts(self) -> schema.ScoreCounts:
        return schema.ScoreCounts(rollouts=self.scored + self.unscored, scored=self.scored, unscored=self.unscored)

    def cost(self) -> schema.Usage:
        return schema.Usage(judge_calls=self.usage.calls, prompt_tokens=self.usage.prompt_tokens,
                            completion_tokens=self.usage.completion_tokens, cached_verdicts=self.cached)


class ScoreService:
    """``POST /v1/scores``."""

    def __init__(self, store: Store, rubrics: RubricService, verdicts: VerdictService, *, timeout_s: float) -> None:
        self._store, self._rubrics, self._verdicts, self._timeout_s = store, rubrics, verdicts, timeout_s

    def deadline(self) -> float:
        """When a request that starts now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._timeout_s

    async def find_given(self, team: str, request: schema.ScoreRequest) -> dict[str, Rubric]:
        """The rubrics that groups name, by id. Raises :class:`NotFound` or a mismatch before any work is done."""
        wanted = list(dict.fromkeys(g.rubric_id for g in request.groups if g.rubric_id is not None))
        found = await self._store.rubrics.find(team, wanted)
        for i, group in enumerate(request.groups):
            if group.rubric_id is not None and group.rubric_id not in found:
                raise NotFound(f"there is no rubric {group.rubric_id!r}", code="rubric_not_found",
                               param=f"groups.{i}.rubric_id")
        return found

    async def score(self, team: str, request: schema.ScoreRequest, given: dict[str, Rubric],
                    tally: Tally) -> AsyncIterator[schema.GroupScore]:
        """Groups as they are done, in no particular order."""
        deadline = self.deadline()
        tasks = [asyncio.ensure_future(self._group(team, request, g, given, deadline, tally)) for g in request.groups]
        try:
            for done in asyncio.as_completed(tasks):
                answer = await done
                tally.add(answer)
                yield answer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _group(self, team: str, request: schema.ScoreRequest, group: schema.Group, given: dict[str, Rubric],
                     deadline: float, tally: Tally) -> schema.GroupScore:
        prompt = wire.messages(group.prompt)
        try:
            found, assignment = await self._assign(team, request, group, prompt, given, deadline)
        except JudgeFailure as failure:
            tally.usage += failure.usage
            return _unscored(group, failure)
        tally.usage += found.usage
        teachers = await self._teachers(team, request, group, prompt)
        students = [fp.judged_text(r.text) for r in group.rollouts]
        judged = await self._verdicts.judge(
            team=team, prompt=prompt, criteria=found.rubric.criteria, texts=[*teachers, *students],
            verify=request.verify, deadline=deadline)
        tally.usage += judged.usage
        tally.cached += judged.cached
        scores = [_rollout(found.rubric, rollout.id, judged.by_text[text])
                  for rollout, text in zip(group.rollouts, students, strict=True)]
        await self._store.assignments.finish(assignment.id, [
            ScoredRollout(r.id, r.text, r.truncated, s.reward, s.reason)
            for r, s in zip(group.rollouts, scores, strict=True)])
        return _answer(group, found, scores, _teacher_score(found.rubric, teachers, judged))

    async def _assign(self, team: str, request: schema.ScoreRequest, group: schema.Group,
                      prompt: list[fp.ChatMessage], given: dict[str, Rubric],
                      deadline: float) -> tuple[Found, Assignment]:
        """The group's rubric, written down. A re-sent step finds what it was assigned before."""
        run = request.run
        if run is not None and group.rubric_id is None:
            before = await self._store.assignments.find(
                team, run_id=run.id, step=run.step, group_id=group.id, prompt=fp.prompt_key(prompt))
            if before is not None:
                rubric = (await self._store.rubrics.find(team, [before.rubric_id]))[before.rubric_id]
                return Found(rubric, before.origin, JudgeUsage()), before
        if group.rubric_id is not None:
            found = Found(given[group.rubric_id], "given", JudgeUsage())
        else:
            found = await self._rubrics.resolve(
                team=team, prompt=prompt, teachers=group.teacher_responses,
                students=[Response(r.text, r.truncated) for r in group.rollouts], reuse=request.reuse,
                run_id=run.id if run else None, deadline=deadline)
        assignment = await self._store.assignments.assign(
            team, run_id=run.id if run else None, step=run.step if run else None, group_id=group.id, prompt=prompt,
            rubric_id=found.rubric.id, origin=found.origin, reuse=request.reuse, verify=request.verify)
        return found, assignment

    async def _teachers(self, team: str, request: schema.ScoreRequest, group: schema.Group,
                        prompt: list[fp.ChatMessage]) -> list[str]:
        """The teacher responses to judge beside the rollouts: when asked for, and always in group mode."""
        if not request.score_teachers and request.verify != "group":
            return []
        bank = group.teacher_responses or await self._store.teachers.find(team, fp.prompt_key(prompt))
        return [fp.judged_text(t) for t in bank]


def _rollout(rubric: Rubric, rollout_id: str, verdicts: dict[str, Verdict]) -> schema.RolloutScore:
    value = reward(rubric.criteria, verdicts)
    reason = next((v.reason for c in rubric.criteria if (v := verdicts[c.id]).reason is not None), None)
    return schema.RolloutScore(
        id=rollout_id, reward=value, status="unscored" if value is None else "scored", reason=reason,
        verdicts=[wire.from_verdict(verdicts[c.id]) for c in rubric.criteria],
        feedback=feedback(rubric.criteria, verdicts))


def _teacher_score(rubric: Rubric, teachers: Sequence[str], judged: Judged) -> schema.TeacherScore | None:
    if not teachers:
        return None
    return schema.TeacherScore(rewards=[reward(rubric.criteria, judged.by_text[t]) for t in teachers])


def _answer(group: schema.Group, found: Found, scores: list[schema.RolloutScore],
            teacher: schema.TeacherScore | None) -> schema.GroupScore:
    known = sum(s.reward is not None for s in scores)
    status = "scored" if known == len(scores) else "partial" if known else "unscored"
    rubric = found.rubric
    return schema.GroupScore(
        id=group.id, status=status, error=None, teacher=teacher, rollouts=scores,  # type: ignore[arg-type]
        rubric=schema.RubricRef(id=rubric.id, version=rubric.version, content_hash=rubric.content_hash,
                                origin=found.origin, criteria=wire.from_criteria(rubric.criteria)))


def _unscored(group: schema.Group, failure: JudgeFailure) -> schema.GroupScore:
    """A group without a rubric: every reward is null with the reason."""
    return schema.GroupScore(
        id=group.id, status="unscored", rubric=None, teacher=None,
        error=schema.ErrorDetail(message=str(failure), type="judge_error", code=failure.reason),
        rollouts=[schema.RolloutScore(id=r.id, reward=None, status="unscored", reason=UnscoredReason(failure.reason),
                                      verdicts=[], feedback=[]) for r in group.rollouts])
