"""Verdicts for a group: look them up, have the missing ones judged, store each reply before it is used.

Criteria with a check are decided by code and cost no call. In rollout mode each distinct response is a judge call and
its rivals play no part; in group mode one call sees a blinded, shuffled pool. Nothing is judged twice: what is stored
is used, what another caller is at is waited for, and what nobody is at is claimed first.
"""

import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

from markscheme.vocabulary import UnscoredReason, VerifyMode
from markscheme_server import metrics
from markscheme_server.accounts.budgets import BudgetService, Line
from markscheme_server.config import VerdictReuse
from markscheme_server.domain import hashing as fp
from markscheme_server.domain.blinding import blind, shuffle_order, unblind
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.fairness import FairShares, Pace
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import StoredDecision, Verdict
from markscheme_server.judge.base import Decision, Gateway, Judge, JudgeFailure, VerifyTask
from markscheme_server.scoring.single_flight import Abandoned, SingleFlight
from markscheme_server.scoring.verdict_cache import VerdictCache
from markscheme_server.store.claims import Claim, ClaimStore
from markscheme_server.store.verdicts import Reply, StoredVerdict, VerdictStore

T = TypeVar("T")
Verdicts = dict[str, Verdict]
"""By criterion id."""
STRIDE = 1024
"""Verdicts that are worked on without a pause: some milliseconds."""
CALL_WEIGHT = STRIDE // 8
"""What one judge call weighs, in verdicts: it takes about 3 ms of computing in all."""
AHEAD, LEAST_AHEAD = 2, 64
"""Units of one team that are begun at a time: as many times a judge's places, and so many at least. One more wave is
then claimed and looked up while the first is at the judge; the rest of a large request takes no room meanwhile."""
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.25
"""How often one looks whether another process is done: soon at first, then every quarter of a second."""


@dataclass(frozen=True)
class Question:
    """One group's question to one judge. ``texts`` are judged texts (:func:`fingerprint.judged_text`), distinct."""

    team: str
    prompt: tuple[fp.ChatMessage, ...]
    criteria: tuple[Criterion, ...]
    texts: tuple[str, ...]
    judge: Judge
    verify: VerifyMode
    reuse: VerdictReuse
    run_id: str | None = None
    rubric_id: str | None = None
    _text_keys: dict[str, str] = field(default_factory=dict, compare=False)
    _keys: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)

    @property
    def pooled(self) -> bool:
        """Whether one call sees all responses. A check does not depend on rivals, so for checks there is no pool."""
        return self.verify == "group" and self.judge.gateway is not None

    @cached_property
    def prompt_key(self) -> str:
        return fp.prompt_key(self.prompt)

    @cached_property
    def criterion_keys(self) -> dict[str, str]:
        return {c.id: fp.criterion_key(c) for c in self.criteria}

    def text_key(self, text: str) -> str:
        if (key := self._text_keys.get(text)) is None:
            key = self._text_keys[text] = fp.text_key(text)
        return key

    @cached_property
    def chunks(self) -> tuple[tuple[Criterion, ...], ...]:
        """The criteria as they go into calls when all are open, in canonical order."""
        return _chunked(self.criteria, self.judge.max_criteria)

    @cached_property
    def _addresses(self) -> dict[str, fp.VerdictAddress]:
        """By criterion id: what the addresses of one criterion have in common is hashed once."""
        pool = fp.pool_key(self.texts) if self.pooled else ""
        sets = {c.id: "" for c in self.criteria}
        if self.reuse == "exact_set":
            sets = {
                c.id: fp.digest([self.criterion_keys[d.id] for d in chunk])
                for chunk in self.chunks
                for c in chunk
            }
        judge = self.judge.verifier_identity
        return {
            c.id: fp.VerdictAddress(
                team=self.team,
                prompt=self.prompt_key,
                criterion=self.criterion_keys[c.id],
                judge=judge,
                pool=pool,
                verify="group" if self.pooled else "rollout",
                judged_with=sets[c.id],
            )
            for c in self.criteria
        }

    def key(self, criterion: Criterion, text: str) -> str:
        """The verdict's address. A text's are worked out when the first of them is asked for: all texts' at once would
        keep others waiting."""
        if (keys := self._keys.get(text)) is None:
            response = self.text_key(text)
            keys = self._keys[text] = {
                c: address.of(response) for c, address in self._addresses.items()
            }
        return keys[criterion.id]

    def units(self, texts: Iterable[str]) -> list[tuple[str, ...]]:
        """Responses as they go into calls: each alone, or all of them in one."""
        return [self.texts] if self.pooled else [(text,) for text in texts]

    def claim_key(self, unit: tuple[str, ...]) -> str:
        """The address of judging these responses: one caller at a time, whatever criteria it asks about."""
        return fp.digest(
            [
                self.team,
                self.prompt_key,
                self.judge.verifier_identity,
                self.verify,
                [self.text_key(text) for text in unit],
            ]
        )


@dataclass(slots=True)
class Plan:
    """What is known of a question, and what is left to ask."""

    question: Question
    known: dict[str, StoredDecision]
    units: list[tuple[str, ...]]
    missing: tuple[Criterion, ...]

    @property
    def calls(self) -> int:
        """Judge calls that the rest takes."""
        return len(self.units) * len(_chunked(self.missing, self.question.judge.max_criteria))


@dataclass(slots=True)
class GroupVerdicts:
    """Verdicts by judged text, what they cost, how many were known before, and what those had cost."""

    by_text: dict[str, Verdicts]
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    cached: int = 0
    saved_usd: float = 0.0


@dataclass(slots=True)
class _Outcome:
    """What came of one unit: verdicts by address, reasons by address where there is none, and the cost."""

    decided: dict[str, StoredDecision] = field(default_factory=dict)
    failed: dict[str, UnscoredReason] = field(default_factory=dict)
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    judged: bool = False


class VerdictService:
    """Decides criteria for responses, each question once."""

    def __init__(
        self,
        store: VerdictStore,
        claims: ClaimStore,
        cache: VerdictCache,
        budgets: BudgetService,
        *,
        checks: Judge,
        reuse: VerdictReuse,
    ) -> None:
        self._store, self._claims, self._cache, self._checks, self._reuse = (
            store,
            claims,
            cache,
            checks,
            reuse,
        )
        self._budgets = budgets
        self._flight: SingleFlight[_Outcome] = SingleFlight()
        self._begun: dict[str, FairShares] = {}
        """By judge: a team waits for none but its own."""
        self.pace = Pace(STRIDE)
        """Of work on verdicts, counted by the verdict."""

    async def plan(
        self,
        *,
        team: str,
        prompt: Sequence[fp.ChatMessage],
        rubric: Rubric,
        texts: Sequence[str],
        judge: Judge,
        verify: VerifyMode,
        run_id: str | None,
    ) -> list[Plan]:
        """What it takes to decide every criterion for every distinct text: one plan for checks, one for the judge."""
        criteria = rubric.criteria
        distinct = tuple(dict.fromkeys(texts))
        checked = tuple(c for c in criteria if c.check is not None)
        # In canonical order: a verdict reached among others should not depend on how a rubric lists them.
        asked = tuple(sorted((c for c in criteria if c.check is None), key=fp.criterion_key))
        questions = [
            Question(
                team, tuple(prompt), part, distinct, by, verify, self._reuse, run_id, rubric.id
            )
            for part, by in ((checked, self._checks), (asked, judge))
            if part
        ]
        return list(await asyncio.gather(*(self._plan(q) for q in questions)))

    async def judge(self, plans: Sequence[Plan], context: CallContext) -> GroupVerdicts:
        """Every criterion for every text of the plans.

        What a failing judge leaves open is an unscored verdict with its reason; nothing is raised for it.
        """
        result = GroupVerdicts({text: {} for plan in plans for text in plan.question.texts})
        await asyncio.gather(*(self._carry_out(plan, context, result) for plan in plans))
        return result

    async def drain(self, within_s: float) -> None:
        """Wait for judge calls under way, then give up those that are left."""
        await self._flight.drain(within_s)

    async def _plan(self, question: Question) -> Plan:
        known: dict[str, StoredDecision] = {}
        open_texts: list[str] = []
        open_criteria: set[str] = set()
        for texts in sliced(question.texts, len(question.criteria)):
            await self.pace.step(len(texts) * len(question.criteria), question.team)
            keys = [question.key(c, t) for t in texts for c in question.criteria]
            known |= await self._known(question.team, keys)
            for text in texts:
                missing = [c.id for c in question.criteria if question.key(c, text) not in known]
                if missing:
                    open_texts.append(text)
                    open_criteria.update(missing)
        if not open_texts:
            return Plan(question, known, [], ())
        # All open responses of a group are asked about the same criteria: what is compared is reached alike.
        return Plan(
            question,
            known,
            question.units(open_texts),
            tuple(c for c in question.criteria if c.id in open_criteria),
        )

    async def _known(self, team: str, keys: Sequence[str]) -> dict[str, StoredDecision]:
        known = self._cache.find(keys)
        if len(known) < len(keys):
            stored = await self._store.find(team, [key for key in keys if key not in known])
            if stored:
                self._cache.save(stored)
                known |= stored
        return known

    async def _carry_out(self, plan: Plan, context: CallContext, result: GroupVerdicts) -> None:
        question, gateway = plan.question, plan.question.judge.gateway
        if plan.known:
            for texts in sliced(question.texts, len(question.criteria)):
                await self.pace.step(
                    len(texts) * len(question.criteria), question.team, context.turn
                )
                for text in texts:
                    for c in question.criteria:
                        if (stored := plan.known.get(question.key(c, text))) is not None:
                            result.by_text[text][c.id] = _verdict(c, stored, cached=True)
            metrics.VERDICTS.labels(origin="check" if gateway is None else "cached").inc(
                len(plan.known)
            )
            if gateway is not None:
                result.cached += len(plan.known)
                result.saved_usd += sum(
                    stored.cost_usd for stored in plan.known.values() if stored.cost_usd
                )
        if not plan.units:
            return
        if gateway is None:
            await self._check(plan, context, result)
        else:
            await self._ask_all(plan, gateway, context, result)

    async def _ask_all(
        self, plan: Plan, gateway: Gateway, context: CallContext, result: GroupVerdicts
    ) -> None:
        """All units' verdicts, so many units at a time."""
        judge, team = plan.question.judge, plan.question.team
        most = max(LEAST_AHEAD, AHEAD * gateway.concurrency)
        begun = self._begun.setdefault(judge.name, FairShares(sys.maxsize, most=most))
        units = iter(plan.units)

        async def ask_next() -> None:
            for unit in units:
                try:
                    async with asyncio.timeout_at(context.deadline.at):
                        await self.pace.step(len(unit) * len(plan.missing), team, context.turn)
                        await begun.take(team, context.turn)
                except TimeoutError:
                    _fail(unit, plan.missing, UnscoredReason.TIMEOUT, result)
                    continue
                try:
                    await self._ask(plan, unit, context, result)
                finally:
                    begun.give_back(team)

        await asyncio.gather(*(ask_next() for _ in range(min(most, len(plan.units)))))

    async def _check(self, plan: Plan, context: CallContext, result: GroupVerdicts) -> None:
        """Decide by code, some texts at a time; no claim, since it costs nothing."""
        question = plan.question
        for texts in sliced([text for unit in plan.units for text in unit], len(plan.missing)):
            try:
                answer = await question.judge.verify(
                    VerifyTask(question.prompt, plan.missing, texts), context
                )
            except JudgeFailure as failure:
                _fail(texts, plan.missing, failure.reason, result)
                continue
            await self.pace.step(len(texts) * len(plan.missing), question.team, context.turn)
            rows, decided = _rows(
                question, plan.missing, dict(zip(texts, answer.decisions, strict=True)), 0.0
            )
            if rows:
                await self._store.save(Reply(question.team, rows))
            await self.pace.step(len(texts) * len(plan.missing), question.team, context.turn)
            self._cache.save(decided)
            _take(question, texts, plan.missing, decided, result)
            _fail(texts, plan.missing, UnscoredReason.TIMEOUT, result)  # what there was no time for
            metrics.VERDICTS.labels(origin="check").inc(len(decided))

    async def _ask(
        self, plan: Plan, unit: tuple[str, ...], context: CallContext, result: GroupVerdicts
    ) -> None:
        """One unit's verdicts, shared with whoever asks about the same responses at the same time."""
        question, missing = plan.question, plan.missing
        wanted = [question.key(c, text) for text in unit for c in missing]
        while missing:
            work = partial(self._settle, plan, missing, unit, context)
            try:
                outcome, led = await self._flight.run(
                    question.claim_key(unit), work, deadline=context.deadline.at
                )
            except (TimeoutError, Abandoned) as error:
                reason = (
                    UnscoredReason.TIMEOUT
                    if isinstance(error, TimeoutError)
                    else UnscoredReason.UNAVAILABLE
                )
                _fail(unit, missing, reason, result)
                return
            if led:
                result.usage += outcome.usage
            _take(question, unit, missing, outcome.decided, result)
            metrics.VERDICTS.labels(origin="judged" if led and outcome.judged else "coalesced").inc(
                sum(key in outcome.decided for key in wanted)
            )
            for text in unit:
                for c in missing:
                    if (reason_ := outcome.failed.get(question.key(c, text))) is not None:
                        result.by_text[text].setdefault(c.id, Verdict(c.id, None, reason=reason_))
            # Whom we waited for may have asked about other criteria: then it is our turn.
            missing = tuple(
                c for c in missing if any(c.id not in result.by_text[text] for text in unit)
            )
            wanted = [question.key(c, text) for text in unit for c in missing]

    async def _settle(
        self,
        plan: Plan,
        missing: tuple[Criterion, ...],
        unit: tuple[str, ...],
        context: CallContext,
        due: Deadline,
    ) -> _Outcome:
        """Judge one unit, or wait for the process that is at it; all this under a claim."""
        question = plan.question
        wanted = [question.key(c, text) for text in unit for c in missing]
        address, pause, context = (
            question.claim_key(unit),
            FIRST_LOOK_S,
            replace(context, deadline=due),
        )
        while True:
            claim = await self._claims.acquire(address)
            known = await self._store.find(question.team, wanted)
            still = tuple(
                c for c in missing if any(question.key(c, text) not in known for text in unit)
            )
            if still and known.keys() <= plan.known.keys():
                still = missing  # nobody was faster: this unit is asked what its rivals are asked
            if not still:
                if claim is not None:
                    await self._claims.drop(claim)
                return _Outcome(known)
            if claim is not None:
                outcome = _Outcome(dict(known), judged=True)
                if await self._judge_claimed(question, still, unit, context, claim, outcome):
                    return outcome
            while await self._claims.held(address):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, LAST_LOOK_S)

    async def _judge_claimed(
        self,
        question: Question,
        missing: tuple[Criterion, ...],
        unit: tuple[str, ...],
        context: CallContext,
        claim: Claim,
        outcome: _Outcome,
    ) -> bool:
        """Judge under a claim of ours, into ``outcome``; false when it was taken over meanwhile."""
        # With exact_set a verdict belongs to its set, so that the sets of the whole question are kept.
        sets = (
            question.chunks
            if question.reuse == "exact_set"
            else _chunked(missing, question.judge.max_criteria)
        )
        parts = [part for part in sets if any(c in missing for c in part)]
        try:
            kept = await asyncio.gather(
                *(
                    self._call(question, part, unit, context, claim, outcome, last=len(parts) == 1)
                    for part in parts
                )
            )
        except BaseException:
            await self._claims.drop(claim)
            raise
        if len(parts) > 1:
            await self._claims.drop(claim)
        return all(kept)

    async def _call(
        self,
        question: Question,
        criteria: tuple[Criterion, ...],
        unit: tuple[str, ...],
        context: CallContext,
        claim: Claim,
        outcome: _Outcome,
        *,
        last: bool,
    ) -> bool:
        """One judge call, stored before it is used; false when its claim had been taken over.

        What ``outcome`` holds already stands: its criteria were asked about for their neighbours' sake.
        """
        await self.pace.step(CALL_WEIGHT, question.team, context.turn)
        order = shuffle_order(fp.pool_key(unit), len(unit))
        task = VerifyTask(question.prompt, criteria, tuple(blind(unit, order)), question.verify)
        line = Line(
            question.team,
            question.run_id,
            "verifier",
            question.judge.verifier_identity,
            tuple(question.criterion_keys[c.id] for c in criteria),
            question.rubric_id,
        )
        async with self._budgets.reserve(line) as budget:
            try:
                answer = await question.judge.verify(task, replace(context, budget=budget))
            except JudgeFailure as failure:
                outcome.usage += failure.usage
                outcome.failed |= {
                    key: failure.reason
                    for text in unit
                    for c in criteria
                    if (key := question.key(c, text)) not in outcome.decided
                }
                return await self._store.save(
                    Reply(question.team, (), budget.entry(failure.reason), claim, done=last)
                )
            outcome.usage += answer.usage
            rows, decided = _rows(
                question,
                criteria,
                dict(zip(unit, unblind(answer.decisions, order), strict=True)),
                answer.usage.cost_usd,
            )
            decided = {
                key: verdict for key, verdict in decided.items() if key not in outcome.decided
            }
            if not await self._store.save(
                Reply(
                    question.team,
                    [row for row in rows if row.key in decided],
                    budget.entry(),
                    claim,
                    done=last,
                )
            ):
                return False
        self._cache.save(decided)
        outcome.decided |= decided
        return True


def sliced(texts: Sequence[T], criteria: int) -> Iterator[tuple[T, ...]]:
    """Texts, or what has one, in parts of ``STRIDE`` verdicts."""
    count = max(1, STRIDE // max(1, criteria))
    for start in range(0, len(texts), count):
        yield tuple(texts[start : start + count])


def _chunked(
    criteria: tuple[Criterion, ...], size: int | None
) -> tuple[tuple[Criterion, ...], ...]:
    size = size or len(criteria) or 1
    return tuple(criteria[start : start + size] for start in range(0, len(criteria), size))


def _rows(
    question: Question,
    criteria: Sequence[Criterion],
    by_text: Mapping[str, Mapping[str, Decision]],
    cost_usd: float | None,
) -> tuple[list[StoredVerdict], dict[str, StoredDecision]]:
    """Verdicts as they are kept; each bears an even part of its call's cost."""
    rows, decided = [], {}
    part = cost_usd / (len(criteria) * len(by_text)) if cost_usd is not None else None
    for text, choices in by_text.items():
        for c in criteria:
            if (choice := choices.get(c.id)) is None:
                continue
            key = question.key(c, text)
            decided[key] = StoredDecision(choice.met, choice.evidence, part, choice.rationale)
            rows.append(
                StoredVerdict(
                    key,
                    question.prompt_key,
                    question.criterion_keys[c.id],
                    question.text_key(text),
                    question.judge.verifier_identity,
                    choice.met,
                    choice.evidence,
                    part,
                    choice.rationale,
                )
            )
    return rows, decided


def _take(
    question: Question,
    unit: Sequence[str],
    criteria: Sequence[Criterion],
    decided: Mapping[str, StoredDecision],
    result: GroupVerdicts,
) -> None:
    """Enter what was decided. A verdict that was already known stands, also when its neighbours had to be asked for."""
    for text in unit:
        for c in criteria:
            if (verdict := decided.get(question.key(c, text))) is not None:
                result.by_text[text].setdefault(c.id, _verdict(c, verdict))


def _verdict(criterion: Criterion, stored: StoredDecision, *, cached: bool = False) -> Verdict:
    return Verdict(
        criterion.id,
        stored.met,
        evidence=stored.evidence,
        cached=cached,
        rationale=stored.rationale,
    )


def _fail(
    unit: Sequence[str],
    criteria: Sequence[Criterion],
    reason: UnscoredReason,
    result: GroupVerdicts,
) -> None:
    """Enter the reason wherever there is no verdict."""
    for text in unit:
        for c in criteria:
            if c.id not in result.by_text[text]:
                result.by_text[text][c.id] = Verdict(c.id, None, reason=reason)
