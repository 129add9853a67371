"""The teacher bank, and the model that fills it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server import wire
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.hashing import ChatMessage, digest, prompt_key
from markscheme_server.judge.base import JudgeFailure, Teacher
from markscheme_server.scoring.judges import Judges
from markscheme_server.store.claims import Claim, ClaimTimeout
from markscheme_server.store.ledger import CallDescription
from markscheme_server.store.store import Store
from markscheme_server.store.teachers import TeacherResponse


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The bank's responses to a prompt, and how many were sampled.

    `duplicates`: responses that the bank held already.
    """

    bank: list[TeacherResponse]
    added: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class _SamplingRequest:
    """A request to fill the bank for a prompt up to `count` responses."""

    teacher: Teacher
    team: str
    prompt: tuple[ChatMessage, ...]
    count: int
    run_id: str | None

    @property
    def prompt_key(self) -> str:
        return prompt_key(self.prompt)


class TeacherService:
    """Stores teacher responses, and samples those that the bank lacks.

    One process at a time samples for a prompt of a team.
    """

    def __init__(self, store: Store, judges: Judges, budgets: BudgetService) -> None:
        self._store, self._judges, self._budgets = store, judges, budgets

    async def add(self, team: str, entries: Sequence[schema.TeacherEntry]) -> int:
        """Store teacher responses. Returns how many the bank did not hold before.

        Raises `Unprocessable` for parts that are not text; nothing is stored then.
        """
        read = [
            (
                wire.text_messages(entry.prompt, f"entries.{number}.prompt"),
                wire.text_responses(entry.responses, f"entries.{number}.responses"),
                entry.model,
            )
            for number, entry in enumerate(entries)
        ]
        added = await asyncio.gather(*(self._store.teachers.save(team, *entry) for entry in read))
        return sum(added)

    async def list_responses(self, team: str, prompt_key: str) -> list[TeacherResponse]:
        """Return the team's teacher responses for a prompt, oldest first."""
        return await self._store.teachers.find(team, prompt_key)

    async def ensure(
        self,
        team: str,
        prompt: tuple[ChatMessage, ...],
        count: int,
        context: CallContext,
        run_id: str | None = None,
    ) -> SampleResult:
        """Sample until the bank holds `count` responses to the prompt; store each as it comes.

        Each missing response is sampled once: if the teacher repeats itself the bank stays
        shorter. Raises `JudgeFailure` if the teacher fails for any of them (the others are
        stored), `Unprocessable` if there is no teacher, and `Unavailable` if its queue is full.
        """
        sampling = _SamplingRequest(self._judges.teacher(), team, prompt, count, run_id)
        bank = await self._full_bank(sampling)
        if bank is not None:
            return bank
        try:
            return await self._store.claims.once(
                digest({"teach": sampling.prompt_key, "team": team}),
                lambda: self._full_bank(sampling),
                lambda claim: self._sample(sampling, context, claim),
                deadline=context.deadline.at,
            )
        except ClaimTimeout as error:
            raise JudgeFailure(
                UnscoredReason.TIMEOUT, "the teacher did not respond in the request's time"
            ) from error

    async def _full_bank(self, sampling: _SamplingRequest) -> SampleResult | None:
        bank = await self._store.teachers.find(sampling.team, sampling.prompt_key)
        return SampleResult(bank) if len(bank) >= sampling.count else None

    async def _sample(
        self, sampling: _SamplingRequest, context: CallContext, claim: Claim
    ) -> SampleResult:
        """Sample the missing responses under a claim."""
        before = await self._store.teachers.find(sampling.team, sampling.prompt_key)
        missing, gateway = max(0, sampling.count - len(before)), sampling.teacher.gateway
        reservation = gateway.reserve(missing, sampling.team) if gateway and missing else None
        try:
            # Let all finish: a paid response is stored even if another one fails.
            results = await asyncio.gather(
                *(self._sample_one(sampling, context) for _ in range(missing)),
                return_exceptions=True,
            )
        finally:
            if reservation is not None:
                reservation.release()
        added = 0
        for result in results:
            if isinstance(result, BaseException):
                raise result
            added += result
        # Responses were stored one by one, so the claim cannot end in their transaction.
        await self._store.claims.drop(claim)
        bank = await self._store.teachers.find(sampling.team, sampling.prompt_key)
        return SampleResult(bank, added, len(results) - added)

    async def _sample_one(self, sampling: _SamplingRequest, context: CallContext) -> int:
        """Sample and store one response. Returns how many were new."""
        teacher = sampling.teacher
        about = CallDescription(sampling.team, sampling.run_id, "teacher", teacher.teacher_identity)
        async with self._budgets.reserve(about, context) as budget:
            try:
                text = await teacher.respond(sampling.prompt, replace(context, budget=budget))
            except JudgeFailure as failure:
                await budget.record(failure.reason)
                raise
            added = await self._store.teachers.save(
                sampling.team, sampling.prompt, [text], teacher.teacher_model
            )
            await budget.record()
        return added
