"""Verdicts for a group: look them up, have the missing ones judged, store each reply before it is used.

Criteria with a check are decided by code and cost no call. In rollout mode each distinct response is one judge
call and its rivals play no part; in group mode one call sees a blinded, shuffled pool.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from markscheme.vocabulary import UnscoredReason, VerifyMode
from markscheme_server.cache.flight import SingleFlight
from markscheme_server.cache.verdicts import CachedVerdict, VerdictCache
from markscheme_server.domain import fingerprint as fp
from markscheme_server.domain.blinding import blind, shuffle_order, unblind
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.verdict import Verdict
from markscheme_server.judge.base import Decision, Judge, JudgeFailure, JudgeUsage, VerifyTask
from markscheme_server.store.verdicts import JudgeCall, StoredVerdict, VerdictStore

Verdicts = dict[str, Verdict]
"""By criterion id."""


@dataclass(slots=True)
class Judged:
    """Verdicts by judged text, what they cost, and how many were known before."""

    by_text: dict[str, Verdicts] = field(default_factory=dict)
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    cached: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """One group's question to one judge."""

    team: str
    prompt: tuple[fp.ChatMessage, ...]
    criteria: tuple[Criterion, ...]
    texts: tuple[str, ...]
    judge: Judge
    verify: VerifyMode
    free: bool
    deadline: float

    def key(self, criterion: Criterion, text: str) -> str:
        """The verdict's address. A check does not depend on rivals, so in group mode too it has no pool."""
        pooled = self.verify == "group" and not self.free
        return fp.verdict_key(
            team=self.team, prompt=fp.prompt_key(self.prompt), criterion=fp.criterion_key(criterion),
            response=fp.text_key(text), judge=self.judge.verifier_identity,
            verify="group" if pooled else "rollout", pool=fp.pool_key(self.texts) if pooled else None)


class VerdictService:
    """Decides criteria for responses, each question once."""

    def __init__(self, store: VerdictStore, cache: VerdictCache, *, judge: Judge, checks: Judge,
                 concurrency: int) -> None:
        self._store, self._cache, self._judge, self._checks = store, cache, judge, checks
        self._places = asyncio.Semaphore(concurrency)
        self._flight: SingleFlight[tuple[dict[str, CachedVerdict], JudgeUsage]] = SingleFlight()

    async def judge(self, *, team: str, prompt: Sequence[fp.ChatMessage], criteria: Sequence[Criterion],
                    texts: Sequence[str], verify: VerifyMode, deadline: float) -> Judged:
        """Every criterion for every distinct text; ``deadline`` is on the event loop's clock.

        ``texts`` are judged texts (:func:`fingerprint.judged_text`). What a failing judge leaves open is an
        unscored verdict with its reason; nothing is raised for it.
        """
        distinct = tuple(dict.fromkeys(texts))
        result = Judged({text: {} for text in distinct})
        checked = tuple(c for c in criteria if c.check is not None)
        asked = tuple(sorted((c for c in criteria if c.check is None), key=fp.criterion_key))
        jobs = [_Job(team, tuple(prompt), part, distinct, judge, verify, free, deadline)
                for part, judge, free in ((checked, self._checks, True), (asked, self._judge, False)) if part]
        await asyncio.gather(*(self._answer(job, result) for job in jobs))
        return result

    async def drain(self) -> None:
        """Wait for judge calls that outlived their requests."""
        await self._flight.drain()

    async def _answer(self, job: _Job, result: Judged) -> None:
        known = await self._known(job)
        open_texts = [t for t in job.texts if any(job.key(c, t) not in known for c in job.criteria)]
        for text in job.texts:
            for c in job.criteria:
                if (stored := known.get(job.key(c, text))) is not None:
                    result.by_text[text][c.id] = Verdict(c.id, stored[0], evidence=stored[1], cached=True)
                    result.cached += not job.free
        if not open_texts:
            return
        # The same missing set for all open rollouts of the group: verdicts that are compared are reached alike.
        missing = tuple(c for c in job.criteria if any(job.key(c, t) not in known for t in open_texts))
        pools = [job.texts] if job.verify == "group" and not job.free else [(t,) for t in open_texts]
        if job.free:
            pools = [tuple(open_texts)]
        await asyncio.gather(*(self._ask(job, missing, pool, result) for pool in pools))

    async def _known(self, job: _Job) -> dict[str, CachedVerdict]:
        keys = [job.key(c, t) for t in job.texts for c in job.criteria]
        known = await self._cache.find(keys)
        rest = [k for k in keys if k not in known]
        if rest:
            stored = await self._store.find(job.team, rest)
            await self._cache.save(stored)
            known |= stored
        return known

    async def _ask(self, job: _Job, criteria: tuple[Criterion, ...], pool: tuple[str, ...], result: Judged) -> None:
        """One judge call, shared with whoever asks the same at the same time."""
        flight = fp.digest([job.key(c, t) for t in pool for c in criteria])
        led = False

        async def lead() -> tuple[dict[str, CachedVerdict], JudgeUsage]:
            nonlocal led
            led = True
            return await self._call(job, criteria, pool)

        try:
            async with asyncio.timeout_at(job.deadline):
                decided, usage = await self._flight.run(flight, lead)
        except (JudgeFailure, TimeoutError) as error:
            reason = error.reason if isinstance(error, JudgeFailure) else UnscoredReason.TIMEOUT
            if led and isinstance(error, JudgeFailure):
                result.usage += error.usage
            for text in pool:
                for c in criteria:
                    result.by_text[text].setdefault(c.id, Verdict(c.id, None, reason=reason))
            return
        if led:
            result.usage += usage
        for text in pool:
            for c in criteria:
                met, evidence = decided[job.key(c, text)]
                # A verdict that was already stored stands, also when its neighbours had to be asked for.
                result.by_text[text].setdefault(c.id, Verdict(c.id, met, evidence=evidence))

    async def _call(self, job: _Job, criteria: tuple[Criterion, ...],
                    pool: tuple[str, ...]) -> tuple[dict[str, CachedVerdict], JudgeUsage]:
        order = shuffle_order(fp.pool_key(pool), len(pool))
        task = VerifyTask(job.prompt, criteria, tuple(blind(pool, order)), job.verify)
        try:
            async with nullcontext() if job.free else self._places:
                answer = await job.judge.verify(task)
        except JudgeFailure as failure:
            if failure.usage.calls:
                await self._store.save(job.team, [], self._record(job, criteria, failure.usage, failure.reason))
            raise
        by_text = dict(zip(pool, unblind(answer.decisions, order), strict=True))
        return await self._keep(job, criteria, by_text, answer.usage), answer.usage

    async def _keep(self, job: _Job, criteria: tuple[Criterion, ...], by_text: Mapping[str, Mapping[str, Decision]],
                    usage: JudgeUsage) -> dict[str, CachedVerdict]:
        rows, decided = [], {}
        for text, choices in by_text.items():
            for c in criteria:
                choice, key = choices[c.id], job.key(c, text)
                decided[key] = (choice.met, choice.evidence)
                rows.append(StoredVerdict(key, fp.prompt_key(job.prompt), fp.criterion_key(c), fp.text_key(text),
                                          job.judge.verifier_identity, choice.met, choice.evidence))
        await self._store.save(job.team, rows, None if job.free else self._record(job, criteria, usage, None))
        await self._cache.save(decided)
        return decided

    @staticmethod
    def _record(job: _Job, criteria: tuple[Criterion, ...], usage: JudgeUsage,
                failure: UnscoredReason | None) -> JudgeCall:
        return JudgeCall("verifier", job.judge.verifier_identity, tuple(fp.criterion_key(c) for c in criteria),
                         usage.calls, usage.prompt_tokens, usage.completion_tokens, failure)
