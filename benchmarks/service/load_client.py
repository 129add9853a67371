"""Send load to a service with the SDK, and check every number that comes back."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from markscheme import AsyncClient
from markscheme.schema import Run, ScoreBatch
from service.processes import API_KEY
from service.workload import Batch, Task

TOLERANCE = 1e-9


@dataclass(frozen=True)
class TimedBatch:
    """One answered batch and how long the caller waited."""

    wall_s: float
    batch: ScoreBatch


@dataclass
class Accuracy:
    """Checked rollouts. `wrong` counts those with a wrong verdict or reward."""

    rollouts: int = 0
    scored: int = 0
    wrong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def scored_share(self) -> float:
        """Share of rollouts with a reward."""
        return self.scored / max(self.rollouts, 1)

    def add(self, asked: Batch, answered: ScoreBatch) -> None:
        """Compare an answer with the oracle."""
        scores = [rollout for group in answered.groups for rollout in group.rollouts]
        for (task, answer), score in zip(asked.pairs(), scores, strict=True):
            self.rollouts += 1
            self.scored += score.reward is not None
            if score.reason is not None:
                self.reasons[score.reason] += 1
            wrong_reward = (
                score.reward is not None and abs(score.reward - task.reward(answer)) > TOLERANCE
            )
            right = {f"c{i}": met for i, met in enumerate(task.verdicts(answer), 1)}
            wrong_verdict = any(
                v.met is not None and v.met is not right[v.criterion_id] for v in score.verdicts
            )
            self.wrong += wrong_reward or wrong_verdict


def raw_client(url: str) -> httpx.AsyncClient:
    """Return a plain HTTP client, where the SDK's validation would dominate the measurement."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=120.0,
        # Shorter than the 5 s after which the service closes an idle connection.
        limits=httpx.Limits(max_connections=None, keepalive_expiry=2.0),
        headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"},
    )


class Scorer:
    """One service and the rubrics made on it. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        self.client = AsyncClient(url, api_key=API_KEY)
        self._rubric_ids: dict[Task, str] = {}
        self._step = 0

    async def __aenter__(self) -> "Scorer":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.client.close()

    async def prepare(self, tasks: Sequence[Task]) -> None:
        """Store the tasks' rubrics; not part of any measured time."""
        for task in tasks:
            if task not in self._rubric_ids:
                made = await self.client.create_rubric(
                    task.prompt, [{"text": c.text, "points": c.points} for c in task.criteria]
                )
                self._rubric_ids[task] = made.id

    def share_rubrics(self, other: "Scorer") -> None:
        """Use the rubrics that another scorer stored on the same database."""
        self._rubric_ids.update(other._rubric_ids)

    def groups(self, batch: Batch) -> list[dict[str, Any]]:
        """Return the batch in the API's form."""
        return [
            {
                "id": f"g{n}",
                "prompt": task.prompt,
                "rubric_id": self._rubric_ids[task],
                "rollouts": [{"id": f"r{i}", "text": text} for i, text in enumerate(answers)],
            }
            for n, (task, answers) in enumerate(zip(batch.tasks, batch.answers, strict=True))
        ]

    def body(self, batch: Batch, *, step: int) -> bytes:
        """Return the request that `score` sends, for a plain HTTP client."""
        return json.dumps(
            {"groups": self.groups(batch), "run": {"id": "bench", "step": step}}
        ).encode()

    async def score(self, batch: Batch, *, step: int | None = None) -> TimedBatch:
        """Score one training step: the whole batch in one request."""
        if step is None:
            self._step += 1
            step = self._step
        groups = self.groups(batch)
        run = Run(id="bench", step=step)
        started = time.perf_counter()
        answered = await self.client.score(groups, run=run)
        return TimedBatch(time.perf_counter() - started, answered)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


async def score_at_once(
    scorers: Sequence[Scorer], batch: Batch, step: int
) -> list[TimedBatch | BaseException]:
    """Send the same batch through every scorer at once; a failed request is its error."""
    return await asyncio.gather(
        *(scorer.score(batch, step=step) for scorer in scorers), return_exceptions=True
    )
