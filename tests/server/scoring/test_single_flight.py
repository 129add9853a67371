"""Single flight: shared while anyone waits, given up when the last one leaves."""

import asyncio

import pytest

from fakes.processes import PATIENCE_S
from markscheme_server.domain.call_context import Deadline
from markscheme_server.scoring.single_flight import Abandoned, SingleFlight


def soon(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_one_run_for_all_who_ask_meanwhile() -> None:
    flights: SingleFlight[int] = SingleFlight()
    release, runs = asyncio.Event(), 0

    async def work(due: Deadline) -> int:
        nonlocal runs
        runs += 1
        await release.wait()
        return runs

    asking = [asyncio.ensure_future(flights.run("k", work, deadline=soon())) for _ in range(20)]
    await asyncio.sleep(0)
    release.set()
    answers = await asyncio.gather(*asking)
    assert {value for value, _ in answers} == {1}
    assert sum(led for _, led in answers) == 1
    assert await flights.run("k", work, deadline=soon()) == (2, True)


async def test_work_goes_on_for_whoever_is_left_and_ends_with_the_last() -> None:
    flights: SingleFlight[str] = SingleFlight()
    release, cancelled = asyncio.Event(), asyncio.Event()

    async def work(due: Deadline) -> str:
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "done"

    leader, follower = (
        asyncio.ensure_future(flights.run("k", work, deadline=soon())) for _ in range(2)
    )
    await asyncio.sleep(0.01)
    leader.cancel()
    await asyncio.sleep(0.01)
    assert not cancelled.is_set()
    follower.cancel()
    await asyncio.wait_for(cancelled.wait(), 30)
    release.set()
    assert await flights.run("k", work, deadline=soon()) == ("done", True)


async def test_each_caller_has_its_own_deadline_and_the_work_the_latest() -> None:
    flights: SingleFlight[float] = SingleFlight()
    release = asyncio.Event()

    async def work(due: Deadline) -> float:
        await release.wait()
        return due.at

    late = soon(60)
    short = asyncio.ensure_future(flights.run("k", work, deadline=soon(0.02)))
    await asyncio.sleep(0)
    long = asyncio.ensure_future(flights.run("k", work, deadline=late))
    with pytest.raises(TimeoutError):
        await short
    release.set()
    assert await long == (late, False)


async def test_draining_gives_up_what_does_not_end() -> None:
    flights: SingleFlight[None] = SingleFlight()

    async def work(due: Deadline) -> None:
        await asyncio.Event().wait()

    asking = asyncio.ensure_future(flights.run("k", work, deadline=soon()))
    await asyncio.sleep(0.01)
    await flights.drain(0.01)
    with pytest.raises(Abandoned):
        await asking


async def test_draining_waits_for_work_that_its_callers_left() -> None:
    flights: SingleFlight[None] = SingleFlight()
    ended = False

    async def work(due: Deadline) -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended = True

    asking = asyncio.ensure_future(flights.run("k", work, deadline=soon()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    await flights.drain(PATIENCE_S)
    assert ended
