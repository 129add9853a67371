"""`verifiers` 0.4.0: its rubric judge, all criteria in one call (default) or one a call."""

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from service.peers.common import Grade, Mode, Options, run
from service.workload import Batch, Task

KEY_VARIABLE = "STUB_KEY"


def modes(options: Options) -> Sequence[Mode]:
    """Return the modes to measure."""
    os.environ[KEY_VARIABLE] = "stub"
    workdir = Path(tempfile.mkdtemp(prefix="verifiers-"))
    at_once = max(1, round(options.concurrency / options.work.criteria))
    return (
        Mode("one call", _grade(options, workdir, None, options.concurrency), one_call=True),
        Mode("per criterion", _grade(options, workdir, 1, at_once)),
    )


class Trace(SimpleNamespace):
    """The part of a rollout's trace that the rubric judge reads and writes."""

    def record_metric(self, name: str, value: float) -> None:
        """Ignore a metric."""
        self.metrics[name] = value

    def record_judge_call(self, **call: Any) -> None:
        """Ignore a judge call."""
        self.calls.append(call)


def _grade(options: Options, workdir: Path, max_criteria: int | None, at_once: int) -> Grade:
    from verifiers.v1.judges.rubric import RubricJudge, RubricJudgeConfig

    def judge(task: Task, path: Path) -> Any:
        path.write_text(
            json.dumps(
                {
                    "criteria": [
                        {"name": f"n{i}", "text": c.text, "weight": float(c.points)}
                        for i, c in enumerate(task.criteria)
                    ]
                }
            )
        )
        return RubricJudge(
            RubricJudgeConfig(
                path=str(path),
                model="stub",
                base_url=options.base_url,
                api_key_var=KEY_VARIABLE,
                view="last_reply",
                max_criteria=max_criteria,
            )
        )

    async def grade(batch: Batch) -> Sequence[float | None]:
        judges = {task: judge(task, workdir / f"{n}.json") for n, task in enumerate(batch.tasks)}
        slots = asyncio.Semaphore(at_once)

        async def one(task: Task, answer: str) -> float | None:
            trace = Trace(last_reply=answer, transcript=answer, metrics={}, calls=[])
            async with slots:
                score = await judges[task].score(SimpleNamespace(prompt_text=task.prompt), trace)
            return float(score if not isinstance(score, dict) else next(iter(score.values())))

        return await asyncio.gather(*(one(task, answer) for task, answer in batch.pairs()))

    return grade


if __name__ == "__main__":
    run("verifiers", modes)
