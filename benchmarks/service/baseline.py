"""The baseline: the bare `openai[aiohttp]` SDK asks the judge the service's own questions.

No service on this SDK can be faster: the baseline has no storage, no claims, no HTTP in front, and
does not read verdicts.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from openai import AsyncOpenAI, DefaultAioHttpClient


class BareSdk:
    """One SDK client with its own limit of concurrent calls, and no retries."""

    def __init__(self, base_url: str, concurrency: int, timeout_s: float = 60.0) -> None:
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key="stub",
            max_retries=0,
            timeout=timeout_s,
            http_client=DefaultAioHttpClient(),
        )
        self._slots = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def wall_s(self, sample: str, calls: int, name: str) -> float:
        """Return the seconds of `calls` calls like `sample`; `name` makes each prompt unique."""
        bodies = _bodies(json.loads(sample), calls, name)
        started = time.perf_counter()
        await asyncio.gather(*(self._ask(body) for body in bodies))
        return time.perf_counter() - started

    async def _ask(self, body: dict[str, Any]) -> None:
        async with self._slots:
            await self._client.chat.completions.create(**body)


def _bodies(sample: dict[str, Any], calls: int, name: str) -> Sequence[dict[str, Any]]:
    first, *others = sample["messages"]
    return [
        {**sample, "messages": [{**first, "content": f"{first['content']}\n{name} {n}"}, *others]}
        for n in range(calls)
    ]
