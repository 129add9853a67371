"""`rubric` 2.2.0, which leaves the judge call to its user: here the OpenAI SDK and a semaphore."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic import BaseModel
from rubric import Rubric
from rubric.autograders import Autograder, PerCriterionGrader, PerCriterionOneShotGrader
from rubric.autograders.schemas import OneShotOutput, PerCriterionOutput

from service.peers.common import Grade, Mode, Options, run
from service.workload import Batch, Task

Output = TypeVar("Output", bound=BaseModel)


def modes(options: Options) -> Sequence[Mode]:
    """Return three modes: SDK transport, the faster aiohttp transport, all criteria in one call."""
    plain = AsyncOpenAI(base_url=options.base_url, api_key="stub", max_retries=2)
    faster = AsyncOpenAI(
        base_url=options.base_url, api_key="stub", max_retries=2, http_client=DefaultAioHttpClient()
    )
    bound = options.concurrency
    return (
        Mode(
            "per criterion",
            _grade(PerCriterionGrader(generate_fn=_asks(plain, bound, PerCriterionOutput))),
            close=plain.close,
        ),
        Mode(
            "per criterion, aiohttp transport",
            _grade(PerCriterionGrader(generate_fn=_asks(faster, bound, PerCriterionOutput))),
            default=False,
        ),
        Mode(
            "one call, aiohttp transport",
            _grade(PerCriterionOneShotGrader(generate_fn=_asks(faster, bound, OneShotOutput))),
            default=False,
            one_call=True,
            close=faster.close,
        ),
    )


def _asks(
    client: AsyncOpenAI, bound: int, output: type[Output]
) -> Callable[..., Awaitable[Output]]:
    slots = asyncio.Semaphore(bound)

    async def ask(system_prompt: str, user_prompt: str, **_: object) -> Output:
        async with slots:
            reply = await client.chat.completions.create(
                model="stub",
                messages=[
                    {"role": "system", "content": system_prompt},
                    {"role": "user", "content": user_prompt},
                ],
            )
        return output.model_validate_json(reply.choices[0].message.content or "")

    return ask


def _grade(grader: Autograder) -> Grade:
    async def one(task: Task, answer: str) -> float:
        rubric = Rubric.from_dict(
            [{"weight": float(c.points), "requirement": c.text} for c in task.criteria]
        )
        return float((await rubric.grade(answer, autograder=grader, query=task.prompt)).score)

    async def grade(batch: Batch) -> Sequence[float | None]:
        return await asyncio.gather(*(one(task, answer) for task, answer in batch.pairs()))

    return grade


if __name__ == "__main__":
    run("rubric", modes)
