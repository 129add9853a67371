"""The scoring services on one store, without HTTP, and a model whose replies a test decides."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from fakes.processes import PATIENCE_S
from markscheme import schema
from markscheme.vocabulary import SCOPES
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import messages_of
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.judge.base import Decision, InductionTask, Judge, Verification, VerifyTask
from markscheme_server.judge.queue import CallQueue
from markscheme_server.rules.judge import BuiltinJudge
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.replay_groups import GroupReplayer
from markscheme_server.scoring.rollouts import RolloutService
from markscheme_server.scoring.rubrics import Freshness, RubricService
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.scoring.runs import RunService
from markscheme_server.scoring.scores import ScoreService
from markscheme_server.scoring.shadow import ShadowService
from markscheme_server.scoring.teachers import TeacherService
from markscheme_server.scoring.verdict_cache import VerdictCache
from markscheme_server.scoring.verdicts import VerdictService
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.store import Store
from markscheme_server.store.tables import claims

PROMPT = "Name a colour."
RED, BLUE = (Caller(team, frozenset(SCOPES)) for team in ("red", "blue"))
CRITERIA = (Criterion("c1", "It is good.", 1),)
CHECKED = Criterion("c9", "It says red.", 1, check={"kind": "contains", "texts": ["red"]})


async def is_good(task: VerifyTask) -> Verification:
    """Decide that a response meets all criteria if it says so."""
    return tuple(
        {criterion.id: Decision("good" in str(text)) for criterion in task.criteria}
        for text in task.responses
    )


class Model:
    """A judge and teacher that a test answers for. `asked`: what it was asked to verify."""

    template, max_criteria, view, max_response_tokens = "1", None, None, None

    def __init__(self, name: str = "model") -> None:
        self.name = self.teacher_model = name
        self.rubricator_identity = self.verifier_identity = self.teacher_identity = name
        self.verify_as: Callable[[VerifyTask], Awaitable[Verification]] = is_good
        self.says: Callable[[], Awaitable[str]] = self._say
        self.asked: list[VerifyTask] = []
        self.inductions: list[InductionTask] = []
        self.sampled = 0
        queue = CallQueue(1000)
        self.gateway: Any = SimpleNamespace(concurrency=8, reserve=queue.reserve, endpoints=[])

    async def induce(
        self, task: InductionTask, _context: CallContext, *, max_attempts: int = 1
    ) -> tuple[Criterion, ...]:
        self.inductions.append(task)
        text = f"It is good, says {self.rubricator_identity} ({len(self.inductions)})."
        return (Criterion("c1", text, 1),)

    async def verify(self, task: VerifyTask, _context: CallContext) -> Verification:
        self.asked.append(task)
        return await self.verify_as(task)

    async def respond(self, _prompt: object, _context: CallContext) -> str:
        self.sampled += 1
        return await self.says()

    async def _say(self) -> str:
        return f"Response {self.sampled}."

    async def aclose(self) -> None:
        """Has nothing to close."""


class Scoring:
    """The services of one process for the teams red and blue, on a store of its own."""

    def __init__(self, store: Store, **more: Judge) -> None:
        self.store, self.model, checks = store, Model(), BuiltinJudge()
        judges: Mapping[str, Judge] = {"model": self.model, "builtin": checks, **more}
        roles = dict.fromkeys(("verifier", "rubricator", "teacher"), "model")
        self.judges = Judges(judges, roles)
        budgets = BudgetService(store.budgets, store.ledger)
        self.rubrics = RubricService(store, Freshness(max_uses=2, mean_below=0.9), budgets)
        self.verdicts = VerdictService(
            store.verdicts, store.claims, VerdictCache(size=1000), budgets, checks=checks
        )
        self.teachers = TeacherService(store, self.judges, budgets)
        self.shadow = self.shadowed(None)
        self.scores = ScoreService(
            store,
            self.rubrics,
            self.verdicts,
            self.judges,
            self.teachers,
            self.shadow,
            timeout_s=60,
            max_verdicts=100,
        )
        self.rollouts = RolloutService(store, self.scores)
        self.histories = RunHistories(store.runs)
        self.runs = RunService(store.runs, store.budgets, self.histories)
        self.groups = RunGroupService(
            store.runs, store.run_groups, store.rubrics, self.histories, list(judges.values())
        )
        self.replayer = GroupReplayer(
            store.run_groups, store.rubrics, self.verdicts, self.judges, timeout_s=60, checks_s=60
        )

    async def aclose(self) -> None:
        """Stop as a process does, so that nothing uses the store when it is closed."""
        for service in (self.rollouts, self.rubrics, self.verdicts, self.shadow):
            await service.drain(PATIENCE_S)
        await self.store.drain()
        await self.store.close()

    def shadowed(self, second: Judge | None, share: float = 0.0) -> ShadowService:
        """Return a service that asks a second judge, and judges again, for a share of texts."""
        return ShadowService(
            self.store.runs,
            self.store.claims,
            self.verdicts,
            second,
            second_share=share,
            reask_share=share,
            timeout_s=60,
        )

    async def rubric(
        self, criteria: Sequence[Criterion] = CRITERIA, *, team: str = "red", prompt: str = PROMPT
    ) -> Rubric:
        return await self.store.rubric_versions.save(
            team=team,
            prompt=messages_of(prompt),
            criteria=criteria,
            origin="imported",
            provenance={},
            actor=Actor(team),
        )

    async def score(
        self, *texts: str, rubric: Rubric | None = None, step: int = 0, **more: Any
    ) -> schema.GroupScore:
        """Return the score of a group of the run `run`, of these texts."""
        request = group_request(*texts, rubric=rubric, step=step, **more)
        batch = await self.scores.admit(RED, request, self.scores.deadline(None))
        (score,) = [each async for each in self.scores.score(batch)]
        return score

    async def expire_claims(self) -> None:
        """Let the leases of all claims have ended."""
        async with self.store.database.writing(ALL_TEAMS) as connection:
            await connection.execute(sa.update(claims).values(expires_at=0.0))

    async def forget_rubric(self, rubric: Rubric) -> None:
        """Let a rubric of the team blue be no longer shared with red."""
        await self.store.rubrics.change("blue", rubric.id, shared_with=[], actor=Actor("blue"))

    async def share(self, rubric: Rubric) -> None:
        """Share a rubric of the team blue with red."""
        await self.store.rubrics.change("blue", rubric.id, shared_with=["red"], actor=Actor("blue"))


def group_request(
    *texts: str, rubric: Rubric | None = None, step: int = 0, **more: Any
) -> schema.ScoreRequest:
    group = {
        "id": f"g{step}",
        "prompt": PROMPT,
        "rubric_id": rubric.id if rubric is not None else None,
        "teacher_responses": more.pop("teachers", None),
        "rollouts": [{"id": f"r{n}", "text": text} for n, text in enumerate(texts)],
    }
    return schema.ScoreRequest.model_validate(
        {"groups": [group], "run": {"id": "run", "step": step}} | more
    )


async def until(look: Callable[[], Awaitable[object]]) -> None:
    """Wait until what is looked at is true."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await look():
                return
            await asyncio.sleep(0.01)


def in_an_hour() -> Deadline:
    return Deadline(asyncio.get_running_loop().time() + 3600)
