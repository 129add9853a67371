"""`autorubric` 1.6.1 (on litellm), with and without its cache.

Set `LITELLM_LOCAL_MODEL_COST_MAP=True`.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from autorubric import LLMConfig, Rubric
from autorubric.graders import CriterionGrader

from service.peers.common import Grade, Mode, Options, run
from service.workload import Batch, Task

Calls = Literal["per_criterion", "per_item"]


def modes(options: Options) -> Sequence[Mode]:
    """Return the modes to measure."""
    workdir = Path(tempfile.mkdtemp(prefix="autorubric-"))
    return (
        Mode("per criterion", _grade(_grader(options, None, "per_criterion"))),
        Mode(
            "per criterion, cache",
            _grade(_grader(options, workdir / "criterion", "per_criterion")),
            cached=True,
        ),
        Mode("one call", _grade(_grader(options, None, "per_item")), default=False, one_call=True),
        Mode(
            "one call, cache",
            _grade(_grader(options, workdir / "item", "per_item")),
            default=False,
            one_call=True,
            cached=True,
        ),
    )


def _grader(options: Options, cache: Path | None, calls: Calls) -> CriterionGrader:
    config = LLMConfig(
        model="openai/stub",
        api_base=options.base_url,
        api_key="stub",
        temperature=0.0,
        max_parallel_requests=options.concurrency,
        cache_enabled=cache is not None,
        **({"cache_dir": str(cache)} if cache else {}),
    )
    return CriterionGrader(judge_model_config=config, llm_calls=calls)


def _grade(grader: CriterionGrader) -> Grade:
    async def one(task: Task, answer: str) -> float | None:
        rubric = Rubric.from_dict(
            [
                {"name": f"n{i}", "weight": float(c.points), "requirement": c.text}
                for i, c in enumerate(task.criteria)
            ]
        )
        score = (await rubric.grade(answer, grader=grader, query=task.prompt)).score
        return None if score is None else float(score)

    async def grade(batch: Batch) -> Sequence[float | None]:
        return await asyncio.gather(*(one(task, answer) for task, answer in batch.pairs()))

    return grade


if __name__ == "__main__":
    run("autorubric", modes)
