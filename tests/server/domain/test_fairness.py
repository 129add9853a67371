"""Fair shares: teams take turns, whoever is alone has all."""

import asyncio
from collections import Counter

import pytest

from markscheme_server.domain.fairness import FairQueue, LoopThrottle


class Calls:
    """Calls of teams that hold a place until told to end."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue, self.begun = queue, list[str]()
        self._tasks: list[asyncio.Task[None]] = []
        self._ends: dict[str, list[asyncio.Event]] = {}

    async def come(self, team: str, count: int = 1, priority: int = 0) -> None:
        self._tasks += [asyncio.ensure_future(self._call(team, priority)) for _ in range(count)]
        await asyncio.sleep(0)

    async def end(self, team: str) -> None:
        """End the team's oldest call."""
        self._ends[team].pop(0).set()
        for _ in range(3):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _call(self, team: str, priority: int) -> None:
        async with self.queue.slot(team, priority):
            self.begun.append(team)
            end = asyncio.Event()
            self._ends.setdefault(team, []).append(end)
            await end.wait()


async def test_one_behind_many_waits_for_one_call() -> None:
    calls = Calls(FairQueue(32))
    await calls.come("many", 640)
    await calls.come("one")
    assert Counter(calls.begun) == {"many": 32}
    await calls.end("many")
    assert calls.begun[-1] == "one"
    await calls.leave()
    assert (calls.queue.used, calls.queue.waiting) == (0, 0)


async def test_teams_that_want_more_than_there_is_get_even_parts() -> None:
    calls = Calls(FairQueue(6))
    await calls.come("a", 100)
    await calls.come("b", 100)
    await calls.come("c", 100)
    for _ in range(4):
        await calls.end("a")
    assert Counter(calls.begun) == {"a": 6, "b": 2, "c": 2}
    await calls.leave()


async def test_with_one_place_teams_go_round_and_nobody_starves() -> None:
    calls = Calls(FairQueue(1))
    await calls.come("a", 3)
    for _ in range(4):  # b and c come back as soon as they are served
        for team in ("b", "c"):
            await calls.come(team)
        await calls.end(calls.begun[-1])
        await calls.end(calls.begun[-1])
    assert calls.begun[:6] == ["a", "a", "b", "c", "a", "b"]
    await calls.leave()


async def test_a_team_alone_has_all_places_or_the_most_that_it_may_have() -> None:
    for limit, held in ((None, 8), (5, 5)):
        calls = Calls(FairQueue(8, max_per_team=limit))
        await calls.come("alone", 20)
        assert calls.queue.used == held
        await calls.leave()


async def test_a_team_at_its_most_keeps_no_other_waiting() -> None:
    calls = Calls(FairQueue(3, max_per_team=2))
    await calls.come("busy", 20)
    await calls.come("other")
    assert Counter(calls.begun) == {"busy": 2, "other": 1}
    await calls.leave()


async def test_places_that_are_added_are_handed_out_and_those_taken_away_are_not_missed() -> None:
    calls = Calls(FairQueue(0))
    await calls.come("a", 4)
    assert calls.begun == []
    calls.queue.resize(3)
    await asyncio.sleep(0)
    assert len(calls.begun) == 3
    calls.queue.resize(1)
    await calls.end("a")
    assert (calls.queue.used, calls.queue.waiting) == (2, 1)
    await calls.leave()


async def test_who_is_given_a_place_while_leaving_gives_it_back() -> None:
    queue = FairQueue(1)
    await queue.acquire("a", 0)
    waiting = asyncio.ensure_future(queue.acquire("b", 0))
    await asyncio.sleep(0)
    queue.release("a")  # the place is b's now, who has not seen it yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (queue.used, queue.waiting) == (0, 0)


async def test_work_of_many_tasks_is_spread_over_turns_of_the_loop() -> None:
    throttle, turns, done = LoopThrottle(10), 0, list[int]()

    async def work() -> None:
        for _ in range(3):
            await throttle.wait(5, "a")
            done.append(turns)

    tasks = [asyncio.ensure_future(work()) for _ in range(20)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turns += 1
    assert len(done) == 60
    assert max(Counter(done).values()) <= 3  # two a turn, and one at the border


async def test_small_work_alone_is_not_paused() -> None:
    throttle = LoopThrottle(10)
    step = asyncio.ensure_future(throttle.wait(10, "a"))
    await asyncio.sleep(0)
    assert step.done()
