"""The ``builtin`` judge: deterministic rules, no model of any kind.

It writes rubrics only for prompts with constraints that code can decide, and decides only criteria
that carry a check. It costs nothing, needs no network and always gives the same answer. It suits
tests, demonstrations and verifiable instructions; it cannot judge style, truth or reasoning.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import checked_text
from markscheme_server.judge.base import (
    Decision,
    InductionTask,
    JudgeFailure,
    Verification,
    VerifyTask,
)
from markscheme_server.judge_settings import BUILTIN
from markscheme_server.rules.checks import max_seconds, run_check
from markscheme_server.rules.pool import CheckPool
from markscheme_server.rules.rubricator import induce_criteria

PARSER_VERSION = "3"
"""Increment when a prompt may yield other criteria; part of an induction's cache key."""
CHECKS_VERSION = "1"
"""Increment when a check may decide otherwise; part of a verdict's cache key."""

MAX_CHECK_S = 20.0
"""A check that may take longer for a text is not run: a running check cannot be stopped."""
SLICE_S = 0.05
"""Seconds of checks per slice; between slices teams take turns, and the deadline is checked."""


class BuiltinJudge:
    """Plays both roles by rules; implements `judge.base.Judge`."""

    name = BUILTIN
    max_criteria = None
    max_response_tokens = None
    view = None
    gateway = None

    def __init__(self) -> None:
        self._pool = CheckPool()

    @property
    def rubricator_identity(self) -> str:
        """The version of the parser."""
        return f"builtin/{PARSER_VERSION}"

    @property
    def verifier_identity(self) -> str:
        """The version of the checks."""
        return f"builtin-checks/{CHECKS_VERSION}"

    @property
    def template(self) -> str:
        """The version of the parser, for the provenance of rubrics."""
        return f"builtin/{PARSER_VERSION}"

    async def induce(
        self, task: InductionTask, context: CallContext | None = None, *, max_attempts: int = 1
    ) -> tuple[Criterion, ...]:
        """Induce criteria from the prompt's constraints.

        Raises a `JudgeFailure` of reason ``no_rubric`` when it states none that code can decide.
        """
        return induce_criteria(task)

    async def verify(self, task: VerifyTask, context: CallContext | None = None) -> Verification:
        """Run each check on each response by itself.

        A decision is missing where the deadline or the request's computing time ran out. Raises a
        `JudgeFailure` of reason ``unavailable`` for a criterion without a check.
        """
        unchecked = [criterion.id for criterion in task.criteria if criterion.check is None]
        if unchecked:
            raise JudgeFailure(
                UnscoredReason.UNAVAILABLE,
                f"the builtin judge decides checks only; {unchecked[0]} has "
                "none, so it needs a model judge",
            )
        context = context or CallContext(Deadline(math.inf))
        texts = [checked_text(response) for response in task.responses]
        # Ordered by criterion, so that a pattern is compiled once for all responses.
        questions = [
            (criterion, i) for criterion in task.criteria for i in range(len(task.responses))
        ]
        decisions: list[dict[str, Decision]] = [{} for _ in task.responses]
        try:
            async with asyncio.timeout_at(
                None if math.isinf(context.deadline.at) else context.deadline.at
            ):
                await self._decide(texts, questions, decisions, context)
        except TimeoutError:
            pass  # return the decisions so far
        return tuple(decisions)

    async def _decide(
        self,
        texts: Sequence[str],
        questions: Sequence[tuple[Criterion, int]],
        decisions: list[dict[str, Decision]],
        context: CallContext,
    ) -> None:
        loop, done = asyncio.get_running_loop(), 0
        while done < len(questions):
            until = time.monotonic() + min(
                context.deadline.at - loop.time(), context.allowance.left_s
            )
            decided, took_s = await self._pool.run(
                partial(_run_slice, texts, questions, done, until),
                team=context.team,
                priority=context.priority,
            )
            if not decided:
                return  # there is no time left
            context.allowance.left_s -= took_s
            for (criterion, i), decision in zip(
                questions[done : done + len(decided)], decided, strict=True
            ):
                if decision is not None:
                    decisions[i][criterion.id] = decision
            done += len(decided)

    async def aclose(self) -> None:
        """Cancel the checks that have not started."""
        self._pool.close()


def _run_slice(
    responses: Sequence[str], questions: Sequence[tuple[Criterion, int]], first: int, until: float
) -> tuple[list[Decision | None], float]:
    """Decide questions from the ``first`` one on, for about `SLICE_S` and not beyond ``until``.

    Returns the decisions and the seconds they took. ``None``: there may not be enough time for that
    check. ``until`` is on the monotonic clock.
    """
    started = now = time.monotonic()
    decided: list[Decision | None] = []
    for criterion, i in islice(questions, first, None):
        if now >= until or now >= started + SLICE_S:
            break
        check = criterion.check or {}
        fits = max_seconds(check, responses[i]) <= min(MAX_CHECK_S, until - now)
        decided.append(run_check(check, responses[i]) if fits else None)
        now = time.monotonic()
    return decided, now - started
