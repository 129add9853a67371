"""Test a long series of good and bad requests: memory, descriptors and threads do not grow."""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import psutil
import pytest

from fakes.bodies import PROMPT, create_rubric, model_judge
from fakes.fast_judge import GARBAGE, FastJudge
from fakes.processes import eventually

COUNT, AT_ONCE, WARM_UP = 2000, 16, 2000
MEMORY_BYTES, DESCRIPTORS = 16 * 1024 * 1024, 5
SOAK_MINUTES, SOAK_PER_S, SLOPE_BYTES = 15, 15, 1024 * 1024
"""A worker manages about 30 of these requests a second on the machine of docs/reliability.md."""
CACHE_SIZE = {"markscheme_server.app.VERDICT_CACHE_SIZE": 2000}
"""So that the cache of verdicts is full before memory is measured."""


def requests(rubric: str, count: int, seed: int) -> Iterator[tuple[str, str, Any, dict[str, str]]]:
    """Yield method, path, body and headers of each: half are scores, a fifth of all is refused."""
    chance = random.Random(seed)
    for i in range(count):
        kind = chance.randrange(20)
        texts = [
            f"answer {chance.randrange(10**9)} {'long ' * chance.randrange(200)}" for _ in range(4)
        ]
        group = {
            "id": "g",
            "prompt": PROMPT,
            "rubric_id": rubric,
            "rollouts": [{"id": f"r{j}", "text": text} for j, text in enumerate(texts)],
        }
        if kind < 8:
            yield "POST", "/v1/scores", {"groups": [group]}, {}
        elif kind < 10:
            yield "POST", "/v1/scores", {"groups": [group]}, {"Accept": "application/x-ndjson"}
        elif kind < 11:
            yield "POST", "/v1/scores", {"groups": [group]}, {"X-Deadline-Ms": "30"}
        elif kind < 13:
            yield (
                "POST",
                "/v1/rubrics",
                {
                    "prompt": f"{PROMPT} {i % 50}",
                    "criteria": [{"text": f"It is {i % 50}.", "points": 1}],
                },
                {"Idempotency-Key": f"{seed}-{i}"},
            )
        elif kind < 14:
            yield "GET", f"/v1/rubrics?limit=20&text=answer{i}", None, {}
        elif kind < 15:
            yield "GET", f"/v1/rubrics/{rubric}/lineage", None, {}
        elif kind < 16:
            yield "GET", "/v1/usage", None, {}
        elif kind < 17:
            yield "GET", f"/v1/rubrics/rub_{chance.randrange(10**9)}", None, {}
        elif kind < 18:
            yield "POST", "/v1/scores", {"groups": [group | {"rollouts": []}]}, {}
        elif kind < 19:
            yield "GET", f"/nowhere/{chance.randrange(10**9)}", None, {}
        else:
            yield "PROPFIND", "/v1/scores", None, {}


def send(url: str, rubric: str, count: int, seed: int, per_s: float | None = None) -> Counter[int]:
    """Return how many answers had each status; one in 40 callers leaves early (status 0).

    ``per_s``: begin so many requests a second, unless all of `AT_ONCE` are under way.
    """

    async def run() -> Counter[int]:
        statuses: Counter[int] = Counter()
        begun = time.monotonic()
        todo = enumerate(requests(rubric, count, seed))

        async def work(session: aiohttp.ClientSession) -> None:
            for number, (method, path, body, headers) in todo:
                if per_s is not None:
                    await asyncio.sleep(max(0.0, begun + number / per_s - time.monotonic()))
                try:
                    async with asyncio.timeout(0.02 if number % 40 == 0 else 60):
                        async with session.request(
                            method, url + path, json=body, headers=headers
                        ) as answer:
                            await answer.read()
                            statuses[answer.status] += 1
                except TimeoutError:
                    statuses[0] += 1

        # A connection that the service closes because it is idle, after 5 s, is not used again.
        connector = aiohttp.TCPConnector(keepalive_timeout=2)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(AT_ONCE):
                group.create_task(work(session))
        return statuses

    return asyncio.run(run())


class Subject:
    """A service under a judge that answers one call in twenty with garbage."""

    def __init__(
        self, kind: str, start: Callable[..., Any], judge: FastJudge, fixture: Callable[[str], str]
    ) -> None:
        judge.failure, judge.failing_share = GARBAGE, 0.05
        settings = {"database_url": fixture("database")} if kind == "postgresql" else {}
        self.judge = judge
        self.service = start(**model_judge(judge.url), **settings, constants=CACHE_SIZE)
        self.url: str = self.service.url
        self.process = psutil.Process(self.service.process.pid)
        self.rubric = create_rubric(self.url, criteria=2)

    @property
    def memory(self) -> int:
        """Bytes of resident memory."""
        bytes_: int = self.service.resident_bytes
        return bytes_

    def settled(self) -> tuple[int, int]:
        """Return descriptors and threads once all is answered.

        Connections to the judge are not counted, because they stay open for a while.
        """
        for attempt in eventually():
            with attempt:
                connections = [c for c in self.process.net_connections("tcp") if c.raddr]
                assert self.judge.in_flight == 0
                assert not [c for c in connections if c.laddr.port == self.service.port]
        kept = [c for c in connections if c.raddr.port == self.judge.port]
        return self.process.num_fds() - len(kept), self.process.num_threads()


def check_statuses(statuses: Counter[int], count: int) -> None:
    assert sum(statuses.values()) == count
    assert {status for status in statuses if status >= 500} <= {503}
    assert statuses[200] > count / 3
    assert min(statuses[404], statuses[405], statuses[422]) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_thousand_mixed_requests_leave_nothing_behind(
    kind: str,
    start: Callable[..., Any],
    judge: FastJudge,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, str], None],
) -> None:
    subject = Subject(kind, start, judge, request.getfixturevalue)
    send(subject.url, subject.rubric, WARM_UP, seed=0)
    (descriptors, threads), memory = subject.settled(), subject.memory
    check_statuses(send(subject.url, subject.rubric, COUNT, seed=1), COUNT)
    (descriptors_later, threads_later), grown = subject.settled(), subject.memory - memory
    record_property(
        "figure",
        f"{kind}: {COUNT} requests, memory {grown / 2**20:+.1f} MiB on {memory / 2**20:.0f}, "
        f"descriptors {descriptors_later - descriptors:+d}, threads {threads_later - threads:+d}",
    )
    assert abs(descriptors_later - descriptors) <= DESCRIPTORS
    assert threads_later - threads <= DESCRIPTORS
    assert grown <= MEMORY_BYTES


@pytest.mark.slow
@pytest.mark.timeout(60 * (SOAK_MINUTES + 10))
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_quarter_of_an_hour_of_mixed_requests_leaves_nothing_behind(
    kind: str,
    start: Callable[..., Any],
    judge: FastJudge,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, str], None],
) -> None:
    """Compare memory by a line through its values of each minute, the first third left out."""
    subject = Subject(kind, start, judge, request.getfixturevalue)
    send(subject.url, subject.rubric, WARM_UP, seed=0)
    descriptors, threads = subject.settled()
    count, memory = 60 * SOAK_PER_S, []
    for minute in range(SOAK_MINUTES):
        statuses = send(subject.url, subject.rubric, count, seed=1 + minute, per_s=SOAK_PER_S)
        check_statuses(statuses, count)
        memory.append(subject.memory)
    descriptors_later, threads_later = subject.settled()
    settled = memory[SOAK_MINUTES // 3 :]
    slope = statistics.linear_regression(range(len(settled)), settled).slope
    record_property(
        "figure",
        f"{kind}: {SOAK_MINUTES * count} requests in {SOAK_MINUTES} minutes, memory "
        f"{slope / 2**20:+.2f} MiB a minute on {memory[-1] / 2**20:.0f}, descriptors "
        f"{descriptors_later - descriptors:+d}, threads {threads_later - threads:+d}",
    )
    assert abs(descriptors_later - descriptors) <= DESCRIPTORS
    assert threads_later - threads <= DESCRIPTORS
    assert slope <= SLOPE_BYTES
