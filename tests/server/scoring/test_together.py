"""Several coroutines at once, and one without a task."""

import asyncio

import pytest

from markscheme_server.scoring.together import together


async def test_a_lone_coroutine_runs_in_the_callers_task() -> None:
    async def task() -> object:
        return asyncio.current_task()

    assert await together([task()]) == [asyncio.current_task()]
    assert asyncio.current_task() not in await together([task(), task()])


async def test_results_keep_their_order_and_an_error_is_raised() -> None:
    async def after(seconds: float, result: int) -> int:
        await asyncio.sleep(seconds)
        if result < 0:
            raise ValueError("no")
        return result

    assert await together(after(0.01 / n, n) for n in (1, 2, 3)) == [1, 2, 3]
    assert await together(after(0, n) for n in ()) == []
    for results in ((-1,), (1, -1)):
        with pytest.raises(ValueError, match="no"):
            await together(after(0, n) for n in results)
