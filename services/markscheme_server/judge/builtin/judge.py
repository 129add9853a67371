"""The ``builtin`` judge: deterministic rules, no model of any kind.

It is not an LLM and does not pretend to be: it writes rubrics only for prompts that state constraints code can
decide, and it decides only criteria that carry a check. It costs nothing, needs no network and answers the same
question the same way every time, which makes it right for tests, demonstrations and verifiable instructions,
and wrong for judging style, truth or reasoning.
"""

import asyncio

from markscheme.vocabulary import UnscoredReason
from markscheme_server.config import BUILTIN
from markscheme_server.domain.deadline import Patience
from markscheme_server.judge.base import Decision, Induction, InductionTask, JudgeFailure, Verification, VerifyTask
from markscheme_server.judge.builtin.checks import run_check
from markscheme_server.judge.builtin.rubricator import induce_criteria

READING_VERSION = "2"
"""Raise when a prompt may yield other criteria than before: part of every induction's address."""
CHECKS_VERSION = "1"
"""Raise when a check may decide otherwise than before: part of every verdict's address."""


class BuiltinJudge:
    """Plays both roles by rules; see :class:`markscheme_server.judge.base.Judge`."""

    name = BUILTIN
    max_criteria = None
    gateway = None

    @property
    def rubricator_identity(self) -> str:
        return f"builtin/{READING_VERSION}"

    @property
    def verifier_identity(self) -> str:
        return f"builtin-checks/{CHECKS_VERSION}"

    @property
    def template(self) -> str:
        return f"builtin/{READING_VERSION}"

    async def induce(self, task: InductionTask, patience: Patience | None = None, *, asks: int = 1) -> Induction:
        """Criteria from the prompt's own constraints. Raises ``no_rubric`` when it states none that code can decide."""
        return Induction(induce_criteria(task))

    async def verify(self, task: VerifyTask, patience: Patience | None = None) -> Verification:
        """Run each check on each response; rivals play no part. Raises ``unavailable`` for a criterion without one."""
        unchecked = [criterion.id for criterion in task.criteria if criterion.check is None]
        if unchecked:
            raise JudgeFailure(UnscoredReason.UNAVAILABLE, f"the builtin judge decides checks only; {unchecked[0]} has "
                                                           "none, so it needs a model judge")
        return Verification(tuple(await asyncio.to_thread(self._decide_all, task)))

    async def aclose(self) -> None:
        """Nothing is held open."""

    @staticmethod
    def _decide_all(task: VerifyTask) -> list[dict[str, Decision]]:
        """In a thread: a long response takes milliseconds, which others on the event loop need not wait for."""
        return [{c.id: run_check(c.check, response) for c in task.criteria if c.check is not None}
                for response in task.responses]
