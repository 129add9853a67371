"""The ``builtin`` judge: deterministic rules, no model of any kind.

It is not an LLM and does not pretend to be: it writes rubrics only for prompts that state constraints code can
decide, and it decides only criteria that carry a check. It costs nothing, needs no network and answers the same
question the same way every time, which makes it right for tests, demonstrations and verifiable instructions,
and wrong for judging style, truth or reasoning.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice

from markscheme.vocabulary import UnscoredReason
from markscheme_server.config import BUILTIN
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import (
    Decision,
    Induction,
    InductionTask,
    JudgeFailure,
    Verification,
    VerifyTask,
)
from markscheme_server.rules.checks import most_s, run_check
from markscheme_server.rules.pool import CheckPool
from markscheme_server.rules.rubricator import induce_criteria

READING_VERSION = "2"
"""Raise when a prompt may yield other criteria than before: part of every induction's address."""
CHECKS_VERSION = "1"
"""Raise when a check may decide otherwise than before: part of every verdict's address."""

MOST_CHECK_S = 20.0
"""A check that may take longer for a text is not run: it could not be stopped."""
PIECE_S = 0.05
"""After so long a thread is another team's, and the deadline is looked at by whoever waits."""


class BuiltinJudge:
    """Plays both roles by rules; see :class:`markscheme_server.judge.base.Judge`."""

    name = BUILTIN
    max_criteria = None
    gateway = None

    def __init__(self) -> None:
        self._pool = CheckPool()

    @property
    def rubricator_identity(self) -> str:
        return f"builtin/{READING_VERSION}"

    @property
    def verifier_identity(self) -> str:
        return f"builtin-checks/{CHECKS_VERSION}"

    @property
    def template(self) -> str:
        return f"builtin/{READING_VERSION}"

    async def induce(
        self, task: InductionTask, context: CallContext | None = None, *, asks: int = 1
    ) -> Induction:
        """Criteria from the prompt's own constraints. Raises ``no_rubric`` when it states none that code can decide."""
        return Induction(induce_criteria(task))

    async def verify(self, task: VerifyTask, context: CallContext | None = None) -> Verification:
        """Run each check on each response; rivals play no part. Raises ``unavailable`` for a criterion without one.

        A decision that is missing was not reached in the caller's time, or in the computing time of its request.
        """
        unchecked = [criterion.id for criterion in task.criteria if criterion.check is None]
        if unchecked:
            raise JudgeFailure(
                UnscoredReason.UNAVAILABLE,
                f"the builtin judge decides checks only; {unchecked[0]} has "
                "none, so it needs a model judge",
            )
        context = context or CallContext(Deadline(math.inf))
        # One check after the other, so that a pattern is compiled once for all responses.
        questions = [
            (criterion, i) for criterion in task.criteria for i in range(len(task.responses))
        ]
        decisions: list[dict[str, Decision]] = [{} for _ in task.responses]
        try:
            async with asyncio.timeout_at(
                None if math.isinf(context.deadline.at) else context.deadline.at
            ):
                await self._decide(task, questions, decisions, context)
        except TimeoutError:
            pass  # what was decided stands
        return Verification(tuple(decisions))

    async def _decide(
        self,
        task: VerifyTask,
        questions: Sequence[tuple[Criterion, int]],
        decisions: list[dict[str, Decision]],
        context: CallContext,
    ) -> None:
        loop, done = asyncio.get_running_loop(), 0
        while done < len(questions):
            until = time.monotonic() + min(
                context.deadline.at - loop.time(), context.allowance.left_s
            )
            made, took_s = await self._pool.run(
                partial(_piece, task.responses, questions, done, until),
                team=context.team,
                turn=context.turn,
            )
            if not made:
                return  # there is no time left
            context.allowance.left_s -= took_s
            for (criterion, i), decision in zip(
                questions[done : done + len(made)], made, strict=True
            ):
                if decision is not None:
                    decisions[i][criterion.id] = decision
            done += len(made)

    async def aclose(self) -> None:
        """Start no more checks."""
        self._pool.close()


def _piece(
    responses: Sequence[str], questions: Sequence[tuple[Criterion, int]], first: int, until: float
) -> tuple[list[Decision | None], float]:
    """Decisions from the ``first`` question on, for about ``PIECE_S`` and never beyond ``until`` (monotonic clock), and
    how long they took. ``None``: there may not be time enough for that one."""
    started = now = time.monotonic()
    made: list[Decision | None] = []
    for criterion, i in islice(questions, first, None):
        if now >= until or now >= started + PIECE_S:
            break
        check = criterion.check or {}
        fits = most_s(check, responses[i]) <= min(MOST_CHECK_S, until - now)
        made.append(run_check(check, responses[i]) if fits else None)
        now = time.monotonic()
    return made, now - started
