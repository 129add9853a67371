"""Which rubric a group gets: given, assigned before, reused, or induced now."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, UnscoredReason
from markscheme_server.cache.flight import SingleFlight
from markscheme_server.domain import fingerprint as fp
from markscheme_server.domain.reward import mean
from markscheme_server.domain.rubric import Rubric
from markscheme_server.judge.base import InductionTask, Judge, JudgeFailure, JudgeUsage, Response
from markscheme_server.store.store import Store
from markscheme_server.store.verdicts import JudgeCall


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a rubric still separates the rollouts of a run (setting names ``reuse_*``)."""

    max_uses: int
    mean_below: float


@dataclass(frozen=True, slots=True)
class Found:
    """A rubric, how it was come by, and what that cost."""

    rubric: Rubric
    origin: AssignedOrigin
    usage: JudgeUsage


class RubricService:
    """Finds and induces rubrics; the same induction happens once."""

    def __init__(self, store: Store, judge: Judge, freshness: Freshness) -> None:
        self._store, self._judge, self._freshness = store, judge, freshness
        self._flight: SingleFlight[tuple[Rubric, JudgeUsage]] = SingleFlight()

    async def resolve(self, *, team: str, prompt: Sequence[fp.ChatMessage], teachers: Sequence[str] | None,
                      students: Sequence[Response], reuse: ReusePolicy, run_id: str | None, deadline: float,
                      tags: Sequence[str] = ()) -> Found:
        """The rubric for a prompt under a reuse policy.

        ``always_new`` uses only the memo of this very induction; ``if_fresh`` the newest version while it still
        separates in this run; ``frozen`` never induces. Raises :class:`JudgeFailure`.
        """
        key = fp.prompt_key(prompt)
        if teachers is None:
            teachers = await self._store.teachers.find(team, key)
        elif teachers:
            await self._store.teachers.save(team, prompt, teachers)
        newest = await self._store.rubrics.find_newest(team, key)
        if reuse == "frozen":
            if newest is None:
                raise JudgeFailure(UnscoredReason.NO_RUBRIC, "there is no rubric for this prompt and reuse is frozen")
            return Found(newest, "reused", JudgeUsage())
        induction = fp.induction_key(
            team=team, prompt=key, teachers=[fp.text_key(fp.judged_text(t)) for t in teachers],
            students=[fp.text_key(fp.judged_text(s.text)) + ("+" if s.truncated else "") for s in students],
            rubricator=self._judge.rubricator_identity)
        memo = await self._store.rubrics.find_induced(team, induction)
        if memo is not None:
            return Found(memo, "reused", JudgeUsage())
        if reuse == "if_fresh" and newest is not None and await self._is_fresh(team, newest, run_id):
            return Found(newest, "reused", JudgeUsage())
        led = False

        async def lead() -> tuple[Rubric, JudgeUsage]:
            nonlocal led
            led = True
            return await self._induce(team, prompt, teachers, students, induction, run_id, tags)

        try:
            async with asyncio.timeout_at(deadline):
                rubric, usage = await self._flight.run(induction, lead)
        except TimeoutError as error:
            raise JudgeFailure(UnscoredReason.TIMEOUT, "the rubric was not induced in the request's time") from error
        return Found(rubric, "induced", usage if led else JudgeUsage())

    async def drain(self) -> None:
        """Wait for inductions that outlived their requests."""
        await self._flight.drain()

    async def _is_fresh(self, team: str, rubric: Rubric, run_id: str | None) -> bool:
        """Of its last two groups one had spread, their mean is below the bound, and it is not used up."""
        uses = await self._store.assignments.uses(team, rubric_id=rubric.id, run_id=run_id)
        if len(uses) >= self._freshness.max_uses:
            return False
        known = [u for u in uses if u.reward_spread is not None][:2]
        if not known:
            return True
        average = mean(u.reward_mean for u in known)
        spread = any(u.reward_spread for u in known)
        return spread and average is not None and average < self._freshness.mean_below

    async def _induce(self, team: str, prompt: Sequence[fp.ChatMessage], teachers: Sequence[str],
                      students: Sequence[Response], induction: str, run_id: str | None,
                      tags: Sequence[str]) -> tuple[Rubric, JudgeUsage]:
        task = InductionTask(tuple(prompt), tuple(dict.fromkeys(fp.judged_text(t) for t in teachers)),
                             tuple(Response(fp.judged_text(s.text), s.truncated) for s in students))
        try:
            made = await self._judge.induce(task)
        except JudgeFailure as failure:
            await self._record(team, failure.usage, failure.reason)
            raise
        await self._record(team, made.usage, None)
        rubric = await self._store.rubrics.save(
            team=team, prompt=prompt, criteria=made.criteria, origin="induced", tags=tags, induction=induction,
            provenance={"rubricator": self._judge.rubricator_identity, "template": self._judge.template,
                        "teacher_keys": [fp.text_key(t) for t in task.teacher_responses],
                        "student_keys": [fp.text_key(s.text) for s in task.student_responses], "run": run_id})
        return rubric, made.usage

    async def _record(self, team: str, usage: JudgeUsage, failure: UnscoredReason | None) -> None:
        if usage.calls:
            await self._store.verdicts.save(team, [], JudgeCall(
                "rubricator", self._judge.rubricator_identity, (), usage.calls, usage.prompt_tokens,
                usage.completion_tokens, failure))
