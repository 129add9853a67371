"""Measure judges in the background: ask a second judge, or the same judge again.

Both re-judge a share of the rollouts that were scored, after the response was sent. No reward
depends on the result. Rollouts are sampled by a hash of their texts, so every process chooses the
same ones.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from markscheme.vocabulary import Clamp, VerifyMode, View
from markscheme_server import metrics
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.hashing import ChatMessage, digest
from markscheme_server.domain.reward import reward
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.trajectory import Answer, Judged, judged_key
from markscheme_server.domain.verdict import UNKNOWN, Verdict, verdict_string
from markscheme_server.judge.base import Judge
from markscheme_server.judge_settings import SHADOW
from markscheme_server.scoring.verdict_plan import VerdictPlan
from markscheme_server.scoring.verdicts import TEXT_WEIGHT, VerdictService
from markscheme_server.store.assignments import GroupRef, ScoredRollout
from markscheme_server.store.claims import ClaimStore
from markscheme_server.store.runs import RunStore

MAX_WAITING = 1024
"""Limit of a process's queued and running questions; further ones are dropped."""
SLOTS_PART = 4
"""A process uses at most 1 / `SLOTS_PART` of a judge's concurrent calls; scoring has the rest."""
LAST = sys.maxsize
"""Priority of these questions: after every scoring call of the same team."""

Kind = Literal["second", "again"]
Outcome = Literal["asked", "known", "failed", "dropped"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group as its judge scored it. `rollouts` leaves out those that judges cannot read."""

    assignment_id: str
    ref: GroupRef
    prompt: tuple[ChatMessage, ...]
    rubric: Rubric
    judge: Judge
    verify: VerifyMode
    view: View
    clamp: Clamp
    rollouts: Sequence[tuple[Answer, ScoredRollout]]
    teachers: Sequence[Answer]

    @property
    def scored(self) -> list[tuple[Answer, ScoredRollout]]:
        """The rollouts with a reward: only those can be compared."""
        return [each for each in self.rollouts if each[1].reward is not None]


class ShadowService:
    """Asks the second judge, or the same judge again, and stores the verdicts.

    Args:
        runs: Where the verdicts are stored.
        claims: Keeps processes from asking the same question.
        verdicts: Asks judges.
        judge: The second judge, if one is configured.
        second_share: Share of rollouts, 0 to 1, that the second judge scores too.
        reask_share: Share of rollouts, 0 to 1, that their own judge scores again.
        timeout_s: Seconds for one question.
    """

    def __init__(
        self,
        runs: RunStore,
        claims: ClaimStore,
        verdicts: VerdictService,
        judge: Judge | None,
        *,
        second_share: float,
        reask_share: float,
        timeout_s: float,
    ) -> None:
        self._runs, self._claims, self._verdicts, self._judge = runs, claims, verdicts, judge
        self._shares: Mapping[Kind, float] = {"second": second_share, "again": reask_share}
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots: dict[str, asyncio.Semaphore] = {}

    def start(self, groups: Sequence[ScoredGroup]) -> None:
        """Start asking about a sample of the groups' rollouts. Returns at once."""
        if groups and any(self._shares.values()):
            self._begin(asyncio.ensure_future(self._choose(groups)))

    async def drain(self, within_s: float) -> None:
        """Wait up to `within_s` seconds for running questions, then cancel the rest."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        # A task may start others.
        while self._tasks and (left_s := until - loop.time()) > 0:
            await asyncio.wait(list(self._tasks), timeout=left_s)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _begin(self, task: "asyncio.Task[None]") -> None:
        # The event loop keeps only weak references to tasks.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _choose(self, groups: Sequence[ScoredGroup]) -> None:
        """Start a task for each question about the groups."""
        for group in groups:
            if all(criterion.check is not None for criterion in group.rubric.criteria):
                continue  # code decides every criterion, so all judges agree
            await self._verdicts.throttle.wait(
                TEXT_WEIGHT * len(group.rollouts), group.ref.team, LAST
            )
            for key, part in _parts(group).items():
                for kind, share in self._shares.items():
                    judge = group.judge if kind == "again" else self._judge
                    if judge is None or judge.gateway is None:
                        continue
                    if kind == "second" and judge.verifier_identity == _judge_of(group):
                        continue
                    if not _is_chosen(share, kind, group.ref, key):
                        continue
                    if len(self._tasks) < MAX_WAITING:
                        self._begin(asyncio.ensure_future(self._ask(kind, judge, part)))
                    else:
                        _count(kind, "dropped", part)

    async def _ask(self, kind: Kind, judge: Judge, part: ScoredGroup) -> None:
        """Ask when a slot is free, and count the outcome. Raises nothing but a cancellation."""
        outcome: Outcome = "dropped"
        ask = self._ask_second if kind == "second" else self._ask_again
        try:
            async with self._slots_of(judge):
                deadline = Deadline(asyncio.get_running_loop().time() + self._timeout_s)
                outcome = await ask(judge, part, CallContext(deadline, LAST, team=part.ref.team))
        except Exception as error:  # the score was already returned and must not be affected
            outcome = "failed"
            log.warning("shadow_failed", kind=kind, error=type(error).__name__)
        finally:
            _count(kind, outcome, part)

    def _slots_of(self, judge: Judge) -> asyncio.Semaphore:
        if judge.name not in self._slots:
            concurrency = judge.gateway.concurrency if judge.gateway is not None else 1
            self._slots[judge.name] = asyncio.Semaphore(max(1, concurrency // SLOTS_PART))
        return self._slots[judge.name]

    async def _ask_second(self, judge: Judge, part: ScoredGroup, context: CallContext) -> Outcome:
        """Score rollouts by the second judge; store the rewards that it could give."""
        ref, criteria = part.ref, part.rubric.criteria
        seconded = await self._runs.seconded(ref.team, part.assignment_id, judge.verifier_identity)
        left = [each for each in part.scored if each[1].rollout_id not in seconded]
        if not left:
            return "known"
        verdicts = await self._verdicts.judge(await self._plan(judge, part), context)
        rows = []
        for answer, rollout in left:
            found = verdicts.of(answer)
            if reasons := [v.reason for v in found.values() if v.reason is not None]:
                log.info("shadow_unscored", reason=reasons[0])
                continue
            rows.append(
                {
                    "assignment_id": part.assignment_id,
                    "rollout_id": rollout.rollout_id,
                    "judge": judge.verifier_identity,
                    "step": ref.step,
                    "first_judge": _judge_of(part),
                    "first_reward": rollout.reward,
                    "first_verdicts": rollout.verdicts,
                    "reward": reward(criteria, found, part.clamp),
                    "verdicts": _verdict_string(part.rubric, found),
                }
            )
        if rows:
            await self._runs.save_second(ref.team, ref.run_id, rows)
        return "asked" if len(rows) == len(left) else "failed"

    async def _ask_again(self, judge: Judge, part: ScoredGroup, context: CallContext) -> Outcome:
        """Ask the judge that scored the rollouts again, and store its new verdicts."""
        outcomes = [
            await self._repeat(plan, context)
            for plan in await self._plan(judge, part)
            if not plan.query.is_free
        ]
        return next((each for each in outcomes if each != "known"), "known")

    async def _repeat(self, plan: VerdictPlan, context: CallContext) -> Outcome:
        query = plan.query
        claim = await self._claims.acquire(digest(["again", query.claim_key(query.texts)]))
        if claim is None:
            return "known"  # another process is asking
        try:
            keys = set(query.keys(query.criteria, query.texts)) & plan.known.keys()
            keys -= await self._runs.repeated(query.team, keys)
            if not keys:
                return "known"
            said = await self._verdicts.ask_again(query, query.texts, context)
            rows = [
                {
                    "criterion_key": query.criterion_keys[criterion.id],
                    "verdict_key": key,
                    "judge": query.judge.verifier_identity,
                    "met_before": plan.known[key].met,
                    "met_now": said[key],
                }
                for text in query.texts
                for criterion in query.criteria
                if (key := query.key(criterion, text)) in keys and key in said
            ]
            if rows:
                await self._runs.save_repeats(query.team, query.run_id, rows)
            return "asked" if len(rows) == len(keys) else "failed"
        finally:
            await self._claims.drop(claim)

    async def _plan(self, judge: Judge, part: ScoredGroup) -> list[VerdictPlan]:
        return await self._verdicts.plan(
            team=part.ref.team,
            prompt=part.prompt,
            rubric=part.rubric,
            answers=[*(answer for answer, _ in part.rollouts), *part.teachers],
            judge=judge,
            verify=part.verify,
            view=part.view,
            run_id=part.ref.run_id,
            role=SHADOW,
        )


def _judge_of(group: ScoredGroup) -> str:
    return group.judge.verifier_identity


def _parts(group: ScoredGroup) -> dict[str, ScoredGroup]:
    """Split a group into questions, by the key of their texts.

    In group mode a question is the whole group, because a call sees all its texts. Otherwise it is
    the rollouts that share one text.
    """
    if group.verify == "group":
        texts = {judged_key(answer.judged(group.view)) for answer, _ in group.rollouts}
        return {digest(sorted(texts)): group} if group.scored else {}
    by_text: dict[Judged, list[tuple[Answer, ScoredRollout]]] = {}
    for answer, rollout in group.scored:
        by_text.setdefault(answer.judged(group.view), []).append((answer, rollout))
    return {
        judged_key(text): replace(group, rollouts=rollouts, teachers=())
        for text, rollouts in by_text.items()
    }


def _is_chosen(share: float, kind: Kind, ref: GroupRef, key: str) -> bool:
    """Return whether a text is in the sample of this share. Deterministic."""
    drawn = int(digest([kind, ref.team, ref.run_id, ref.prompt_key, key])[:16], 16)
    return drawn < share * 16**16


def _verdict_string(rubric: Rubric, verdicts: Mapping[str, Verdict]) -> str:
    """Return verdicts as stored: those decided by code are unknown, since no judge was asked."""
    said = verdict_string(verdicts[criterion.id] for criterion in rubric.criteria)
    return "".join(
        each if criterion.check is None else UNKNOWN
        for criterion, each in zip(rubric.criteria, said, strict=True)
    )


def _count(kind: Kind, outcome: Outcome, part: ScoredGroup) -> None:
    metrics.SHADOW.labels(kind=kind, outcome=outcome).inc(len(part.scored))
