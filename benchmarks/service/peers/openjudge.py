"""`py-openjudge` 0.2.4: one row per criterion through its grading runner.

It has no rubric with weights to sum.
"""

import math
from collections.abc import Sequence
from itertools import islice

from openjudge.graders.llm_grader import LLMGrader
from openjudge.models.openai_chat_model import OpenAIChatModel
from openjudge.runner.grading_runner import GradingRunner

from service.peers.common import Mode, Options, run
from service.workload import Batch

TEMPLATE = (
    "Query: {query}\nResponse: {response}\nRubrics:\n{rubrics}\n"
    'Return JSON {{"reason": "...", "score": <0-1>}}'
)


def modes(options: Options) -> Sequence[Mode]:
    """Return the modes to measure."""
    grader = LLMGrader(
        model=OpenAIChatModel(model="stub", api_key="stub", base_url=options.base_url),
        name="r",
        template=TEMPLATE,
    )

    async def grade(batch: Batch) -> Sequence[float | None]:
        rows = [
            {"query": task.prompt, "response": answer, "rubrics": criterion.text}
            for task, answer in batch.pairs()
            for criterion in task.criteria
        ]
        runner = GradingRunner(
            grader_configs={"r": grader}, max_concurrency=options.concurrency, show_progress=False
        )
        scores = iter((await runner.arun(rows))["r"])
        rewards: list[float | None] = []
        for task, _ in batch.pairs():
            ids = [
                getattr(score, "score", math.nan) for score in islice(scores, len(task.criteria))
            ]
            points = [c.points for c in task.criteria]
            reward = sum(p * m for p, m in zip(points, ids, strict=True)) / sum(points)
            rewards.append(None if math.isnan(reward) else reward)
        return rewards

    return (Mode("per criterion", grade),)


if __name__ == "__main__":
    run("py-openjudge", modes)
