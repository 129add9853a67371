"""Verdicts for a group: look them up, have the missing ones judged, store before answering.

Criteria with a check are decided by code and cost no call. In rollout mode each distinct response
is a call of its own; in group mode one call sees a blinded, shuffled pool. Nothing is judged twice:
what is stored is used, what another caller has under way is waited for, and the rest is claimed
before it is judged.
"""

import asyncio
import sys
from collections import ChainMap
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from markscheme.vocabulary import UnscoredReason, VerifyMode, View
from markscheme_server import metrics
from markscheme_server.accounts.budgets import BudgetReservation, BudgetService
from markscheme_server.domain.blinding import blind, shuffle_order, unblind
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.fairness import FairQueue, LoopThrottle
from markscheme_server.domain.hashing import ChatMessage, check_view, criterion_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.trajectory import Answer, Judged, pool_key
from markscheme_server.domain.verdict import StoredDecision, Verdict
from markscheme_server.judge.base import Decision, Judge, JudgeFailure, VerifyTask
from markscheme_server.scoring.single_flight import Abandoned, SingleFlight
from markscheme_server.scoring.together import together
from markscheme_server.scoring.verdict_cache import VerdictCache
from markscheme_server.scoring.verdict_plan import Criteria, Unit, VerdictPlan, VerdictQuery
from markscheme_server.store.claims import Claim, ClaimLost, ClaimStore
from markscheme_server.store.ledger import CallDescription, CallRole
from markscheme_server.store.verdicts import JudgeReply, StoredVerdict, VerdictStore

SLICE_VERDICTS = 1024
"""Verdicts that are worked on in one go: some milliseconds of the event loop."""
CALL_WEIGHT = SLICE_VERDICTS // 8
"""The computing for one judge call, about 3 ms in all, counted in verdicts."""
TEXT_WEIGHT = 8
"""The computing for reading one response, counted in verdicts."""
UNITS_PER_SLOT, MIN_UNITS = 2, 64
"""Units of one team that are under way at a time: so many per concurrent call of the judge, and
at least `MIN_UNITS`. While one wave is at the judge the next is claimed and looked up; the rest of
a large request takes no memory meanwhile."""
T = TypeVar("T")
_ByText = Mapping[Judged, Mapping[str, Decision]]
"""Decisions by text and criterion id."""


@dataclass(frozen=True, slots=True)
class GroupVerdicts:
    """The verdicts of a group, by view, by what is judged in it and by criterion id.

    `cached`: how many were stored before, and `saved_usd`: what those had cost.
    """

    by_view: Mapping[View, Mapping[Judged, Mapping[str, Verdict]]]
    cached: int
    saved_usd: float

    def of(self, answer: Answer) -> Mapping[str, Verdict]:
        """Return the verdicts on a response by criterion id."""
        # Views share no criterion, so that no verdict hides another.
        found = [by_text[answer.judged(view)] for view, by_text in self.by_view.items()]
        return found[0] if len(found) == 1 else dict(ChainMap(*(dict(each) for each in found)))


@dataclass(frozen=True, slots=True)
class _Decisions:
    """Decisions by verdict key, and reasons by verdict key where there is none.

    `judged`: whether a judge was asked for them, rather than only the database.
    """

    decisions: Mapping[str, StoredDecision] = field(default_factory=dict)
    failures: Mapping[str, UnscoredReason] = field(default_factory=dict)
    judged: bool = False

    def __contains__(self, key: str) -> bool:
        return key in self.decisions or key in self.failures


class VerdictService:
    """Decides criteria for responses, each only once.

    `checks`: the judge that decides criteria with a check.
    """

    def __init__(
        self,
        store: VerdictStore,
        claims: ClaimStore,
        cache: VerdictCache,
        budgets: BudgetService,
        *,
        checks: Judge,
    ) -> None:
        self._store, self._claims, self._cache, self._budgets = store, claims, cache, budgets
        self._checks = checks
        self._flights: SingleFlight[_Decisions] = SingleFlight()
        # By judge; no limit over all teams, so that a team waits only for itself.
        self._under_way: dict[str, FairQueue] = {}
        self.throttle = LoopThrottle(SLICE_VERDICTS)
        """Counts verdicts that are worked on."""

    async def plan(
        self,
        *,
        team: str,
        prompt: Sequence[ChatMessage],
        rubric: Rubric,
        answers: Sequence[Answer],
        judge: Judge,
        verify: VerifyMode,
        view: View,
        run_id: str | None,
        role: CallRole = "verifier",
        replay_id: str | None = None,
    ) -> list[VerdictPlan]:
        """Look up what it takes to decide all criteria for all responses; ask no judge.

        `view` is what the judge reads. `role`: what its calls are recorded as. Returns a plan for
        each view that checks read and one for the criteria that a judge decides, where there are
        any.
        """
        checked: dict[View, list[Criterion]] = {}
        for criterion in rubric.criteria:
            if criterion.check is not None:
                checked.setdefault(check_view(criterion), []).append(criterion)
        # In canonical order: a verdict should not depend on how a rubric orders its criteria.
        judged = tuple(sorted((c for c in rubric.criteria if c.check is None), key=criterion_key))
        asked = [(tuple(criteria), self._checks, read) for read, criteria in checked.items()]
        if judged:
            asked.append((judged, judge, view))
        queries = [
            VerdictQuery(
                team=team,
                prompt=tuple(prompt),
                criteria=criteria,
                texts=await self._read(team, answers, read),
                judge=by,
                verify=verify,
                view=read,
                run_id=run_id,
                rubric_id=rubric.id,
                role=role,
                replay_id=replay_id,
            )
            for criteria, by, read in asked
        ]
        return await together(self._plan(query) for query in queries)

    async def judge(self, plans: Sequence[VerdictPlan], context: CallContext) -> GroupVerdicts:
        """Decide every criterion for every text of the plans.

        What a failing judge leaves open becomes an unscored verdict with its reason; nothing is
        raised for it.
        """
        for plan in plans:
            origin = "check" if plan.query.is_free else "cached"
            _count(plan.query, origin, len(plan.known))
        results = await together(
            self._check(plan, context) if plan.query.is_free else self._ask(plan, context)
            for plan in plans
        )
        by_view: dict[View, dict[Judged, dict[str, Verdict]]] = {}
        for plan, result in zip(plans, results, strict=True):
            query = plan.query
            by_text = by_view.setdefault(query.view, {})
            for texts in sliced(query.texts, len(query.criteria)):
                size = len(texts) * len(query.criteria)
                await self.throttle.wait(size, query.team, context.priority)
                for text in texts:
                    verdicts = by_text.setdefault(text, {})
                    for c in query.criteria:
                        verdicts[c.id] = _verdict(c.id, query.key(c, text), plan.known, result)
        # Code costs nothing, so reusing its verdicts saves nothing.
        paid = [plan for plan in plans if not plan.query.is_free]
        return GroupVerdicts(
            by_view,
            cached=sum(len(plan.known) for plan in paid),
            saved_usd=sum(known.cost_usd or 0.0 for plan in paid for known in plan.known.values()),
        )

    async def ask_again(
        self, query: VerdictQuery, unit: Unit, context: CallContext
    ) -> dict[str, bool | None]:
        """Ask about a unit anew, whatever is stored; the stored verdicts stay.

        Returns what was said, by verdict key; what a failing judge leaves open is not in it.
        """
        said: dict[str, bool | None] = {}
        for criteria in query.calls(query.criteria):
            async with self._question(query, unit, criteria, context) as (budget, answer):
                if isinstance(answer, JudgeFailure):
                    await budget.record(answer.reason)
                    continue
                rows = _rows(query, criteria, answer, None)
                await budget.record()
                said |= {row.key: row.decision.met for row in rows}
        return said

    async def drain(self, within_s: float) -> None:
        """Wait for the judge calls under way, for `within_s` at most, then cancel the rest."""
        await self._flights.drain(within_s)

    async def _read(self, team: str, answers: Sequence[Answer], view: View) -> tuple[Judged, ...]:
        """Return what is judged of the responses in a view, each once."""
        texts: dict[Judged, None] = {}
        for part in sliced(answers, TEXT_WEIGHT):
            await self.throttle.wait(len(part) * TEXT_WEIGHT, team)
            texts |= dict.fromkeys(answer.judged(view) for answer in part)
        return tuple(texts)

    async def _plan(self, query: VerdictQuery) -> VerdictPlan:
        known: dict[str, StoredDecision] = {}
        open_texts: list[Judged] = []
        open_criteria: set[str] = set()
        for texts in sliced(query.texts, len(query.criteria)):
            await self.throttle.wait(len(texts) * len(query.criteria), query.team)
            known |= await self._find(query.team, query.keys(query.criteria, texts))
            for text in texts:
                # A call asks about the same criteria for all of its texts: what any text lacks.
                missing = [c.id for c in query.criteria if query.key(c, text) not in known]
                if missing:
                    open_texts.append(text)
                    open_criteria.update(missing)
        if not open_texts:
            return VerdictPlan(query, known, [], ())
        missing_criteria = tuple(c for c in query.criteria if c.id in open_criteria)
        return VerdictPlan(query, known, query.units(open_texts), missing_criteria)

    async def _find(self, team: str, keys: Sequence[str]) -> dict[str, StoredDecision]:
        found = self._cache.find(keys)
        if len(found) < len(keys):
            stored = await self._store.find(team, [key for key in keys if key not in found])
            self._cache.save(stored)
            found |= stored
        return found

    async def _ask(self, plan: VerdictPlan, context: CallContext) -> _Decisions:
        """Decide all units, a bounded number of them at a time."""
        query, gateway = plan.query, plan.query.judge.gateway
        limit = max(MIN_UNITS, UNITS_PER_SLOT * (gateway.concurrency if gateway else 0))
        under_way = self._under_way.setdefault(
            query.judge.name, FairQueue(sys.maxsize, max_per_team=limit)
        )
        # The workers share one iterator: each takes the next unit when it is done with one.
        units, results = iter(plan.units), list[_Decisions]()

        async def ask_next() -> None:
            for unit in units:
                try:
                    # This bounds the wait only; the flight bounds the work on the unit.
                    async with asyncio.timeout_at(context.deadline.at):
                        size = len(unit) * len(plan.missing)
                        await self.throttle.wait(size, query.team, context.priority)
                        await under_way.acquire(query.team, context.priority)
                except TimeoutError:
                    keys = query.keys(plan.missing, unit)
                    late = dict.fromkeys(keys, UnscoredReason.TIMEOUT)
                    results.append(_Decisions(failures=late))
                    continue
                try:
                    results.append(await self._ask_unit(plan, unit, context))
                finally:
                    under_way.release(query.team)

        await together(ask_next() for _ in range(min(limit, len(plan.units))))
        return _merged(results)

    async def _check(self, plan: VerdictPlan, context: CallContext) -> _Decisions:
        """Decide by code, some texts at a time. It costs nothing, so nothing is claimed."""
        query, parts = plan.query, list[_Decisions]()
        for texts in sliced([text for unit in plan.units for text in unit], len(plan.missing)):
            keys = query.keys(plan.missing, texts)
            task = VerifyTask(query.prompt, plan.missing, texts)
            try:
                answer = await query.judge.verify(task, context)
            except JudgeFailure as failure:
                parts.append(_Decisions(failures=dict.fromkeys(keys, failure.reason)))
                continue
            await self.throttle.wait(len(keys), query.team, context.priority)
            by_text = dict(zip(texts, answer, strict=True))
            rows = _rows(query, plan.missing, by_text, cost_usd=0.0)
            if rows:
                await self._store.save(JudgeReply(query.team, rows))
            await self.throttle.wait(len(keys), query.team, context.priority)
            decisions = {row.key: row.decision for row in rows}
            self._cache.save(decisions)
            _count(query, "check", len(decisions))
            # What the judge left out was not reached in time.
            late = [key for key in keys if key not in decisions]
            parts.append(_Decisions(decisions, dict.fromkeys(late, UnscoredReason.TIMEOUT)))
        return _merged(parts)

    async def _ask_unit(self, plan: VerdictPlan, unit: Unit, context: CallContext) -> _Decisions:
        """Decide one unit, together with all who ask about the same texts at the same time."""
        query, missing, result = plan.query, plan.missing, _Decisions()
        while missing:
            keys = query.keys(missing, unit)
            work = partial(self._decide_once, plan, missing, unit, context)
            try:
                shared, led = await self._flights.run(
                    query.claim_key(unit), work, deadline=context.deadline.at
                )
            except (TimeoutError, Abandoned) as error:
                is_late = isinstance(error, TimeoutError)
                reason = UnscoredReason.TIMEOUT if is_late else UnscoredReason.UNAVAILABLE
                left = [key for key in keys if key not in result]
                return _merged([result, _Decisions(failures=dict.fromkeys(left, reason))])
            origin = "judged" if led and shared.judged else "coalesced"
            _count(query, origin, sum(key in shared.decisions for key in keys))
            # `result` comes last, so that what this caller was given first stands.
            result = _merged([shared, result])
            # The leader may have asked about other criteria: then ask about the rest.
            missing = tuple(
                c
                for c in missing
                if any(
                    key not in result and key not in plan.known for key in query.keys((c,), unit)
                )
            )
        return result

    async def _decide_once(
        self,
        plan: VerdictPlan,
        missing: Criteria,
        unit: Unit,
        context: CallContext,
        deadline: Deadline,
    ) -> _Decisions:
        """Judge one unit under a claim, or wait for the process that does."""
        query, keys = plan.query, plan.query.keys(missing, unit)
        context = replace(context, deadline=deadline)
        stored: Mapping[str, StoredDecision] = {}

        async def find() -> _Decisions | None:
            # `judge` runs after this, and leaves out what was stored by now.
            nonlocal stored
            stored = await self._store.find(query.team, keys)
            return _Decisions(stored) if all(key in stored for key in keys) else None

        async def judge(claim: Claim) -> _Decisions:
            criteria = missing
            # Where nothing was stored since the plan was made, the unit is asked about the same
            # criteria as its rivals, even those that are known for it.
            if not stored.keys() <= plan.known.keys():
                criteria = tuple(
                    c for c in missing if any(key not in stored for key in query.keys((c,), unit))
                )
            calls = query.calls(criteria)
            call = partial(self._call, query, unit, stored, context, claim)
            parts = await together(
                # A single reply ends the claim in its own transaction; several cannot.
                call(part, ends_claim=len(calls) == 1)
                for part in calls
            )
            made = [part for part in parts if part is not None]
            # One reply came after a takeover. Its cost is recorded; `once` begins again.
            if len(made) < len(parts):
                raise ClaimLost
            if len(calls) > 1:
                await self._claims.drop(claim)
            return replace(_merged([_Decisions(stored), *made]), judged=True)

        return await self._claims.once(query.claim_key(unit), find, judge, team=query.team)

    async def _call(
        self,
        query: VerdictQuery,
        unit: Unit,
        stored: Mapping[str, StoredDecision],
        context: CallContext,
        claim: Claim,
        criteria: Criteria,
        *,
        ends_claim: bool,
    ) -> _Decisions | None:
        """Make one judge call, and store its reply before it is used.

        Verdicts that are `stored` already stand, even if they were asked for again. Returns `None`
        if the claim was taken over meanwhile: then only the call's cost was stored.
        """
        keys = [key for key in query.keys(criteria, unit) if key not in stored]
        rows: list[StoredVerdict] = []
        reason: UnscoredReason | None = None
        async with self._question(query, unit, criteria, context) as (budget, answer):
            if isinstance(answer, JudgeFailure):
                reason = answer.reason
                result = _Decisions({}, dict.fromkeys(keys, reason))
            else:
                made = _rows(query, criteria, answer, budget.usage.cost_usd)
                rows = [row for row in made if row.key not in stored]
                result = _Decisions({row.key: row.decision for row in rows})
            reply = JudgeReply(query.team, rows, budget.ledger_row(reason), claim, ends_claim)
            if not await self._store.save(reply):
                return None
        # Only now: the cache holds nothing that the database lacks.
        self._cache.save(result.decisions)
        return result

    @asynccontextmanager
    async def _question(
        self, query: VerdictQuery, unit: Unit, criteria: Criteria, context: CallContext
    ) -> AsyncIterator[tuple[BudgetReservation, _ByText | JudgeFailure]]:
        """Ask the judge; yield its answer and the reservation, on which to record the cost."""
        await self.throttle.wait(CALL_WEIGHT, query.team, context.priority)
        # The order depends on the pool alone, so that a repeated call is the same to the byte.
        order = shuffle_order(pool_key(unit), len(unit))
        task = VerifyTask(query.prompt, criteria, tuple(blind(unit, order)), query.verify)
        about = CallDescription(
            team=query.team,
            run_id=query.run_id,
            role=query.role,
            judge=query.judge.verifier_identity,
            criteria=tuple(query.criterion_keys[c.id] for c in criteria),
            rubric_id=query.rubric_id,
            replay_id=query.replay_id,
        )
        answer: _ByText | JudgeFailure
        async with self._budgets.reserve(about, context) as budget:
            try:
                decided = await query.judge.verify(task, replace(context, budget=budget))
            except JudgeFailure as failure:
                answer = failure
            else:
                answer = dict(zip(unit, unblind(decided, order), strict=True))
            yield budget, answer


def _count(query: VerdictQuery, origin: str, verdicts: int) -> None:
    """Count verdicts that are in an answer."""
    if query.role == "verifier":
        metrics.VERDICTS.labels(origin=origin).inc(verdicts)


def sliced(items: Sequence[T], criteria: int) -> Iterator[tuple[T, ...]]:
    """Split items, each with a number of criteria, into parts of `SLICE_VERDICTS` verdicts."""
    count = max(1, SLICE_VERDICTS // max(1, criteria))
    for start in range(0, len(items), count):
        yield tuple(items[start : start + count])


def _merged(parts: Sequence[_Decisions]) -> _Decisions:
    """Combine results; a later one overrides an earlier one."""
    decisions: dict[str, StoredDecision] = {}
    failures: dict[str, UnscoredReason] = {}
    for part in parts:
        decisions |= part.decisions
        failures |= part.failures
    return _Decisions(decisions, failures)


def _rows(
    query: VerdictQuery,
    criteria: Criteria,
    by_text: Mapping[Judged, Mapping[str, Decision]],
    cost_usd: float | None,
) -> list[StoredVerdict]:
    """Return verdicts as they are stored; each bears an equal part of its call's cost."""
    # A float will do: this only feeds `saved_usd`. The ledger counts what was paid.
    part_usd = cost_usd / (len(criteria) * len(by_text)) if cost_usd is not None else None
    return [
        StoredVerdict(
            query.key(c, text),
            query.prompt_key,
            query.criterion_keys[c.id],
            query.text_key(text),
            query.judge.verifier_identity,
            StoredDecision(decision.met, decision.evidence, part_usd, decision.rationale),
        )
        for text, decisions in by_text.items()
        for c in criteria
        if (decision := decisions.get(c.id)) is not None
    ]


def _verdict(
    criterion_id: str, key: str, known: Mapping[str, StoredDecision], result: _Decisions
) -> Verdict:
    """Return the verdict under a key. One that was known before stands."""
    stored = known.get(key)
    decision = stored if stored is not None else result.decisions.get(key)
    if decision is None:
        return Verdict(criterion_id, None, reason=result.failures[key])
    return Verdict(
        criterion_id,
        decision.met,
        applicable=decision.met is not None,
        evidence=decision.evidence,
        cached=stored is not None,
        rationale=decision.rationale,
    )
