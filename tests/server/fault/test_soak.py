"""Test a long series of good and bad requests: memory, descriptors and threads do not grow."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from fakes.bodies import PROMPT, create_rubric, model_judge
from fakes.fast_judge import GARBAGE, FastJudge
from fakes.processes import eventually

COUNT, AT_ONCE, WARM_UP = 2000, 16, 2000
MEMORY_BYTES, DESCRIPTORS = 16 * 1024 * 1024, 5


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
            yield "BREW", "/v1/scores", None, {}


def send(url: str, rubric: str, count: int, seed: int) -> Counter[int]:
    """How many answers had each status; one in 40 callers leaves before its answer (status 0)."""

    async def run() -> Counter[int]:
        statuses: Counter[int] = Counter()
        todo = enumerate(requests(rubric, count, seed))

        async def work(session: aiohttp.ClientSession) -> None:
            for number, (method, path, body, headers) in todo:
                try:
                    async with asyncio.timeout(0.02 if number % 40 == 0 else 60):
                        async with session.request(
                            method, url + path, json=body, headers=headers
                        ) as answer:
                            await answer.read()
                            statuses[answer.status] += 1
                except TimeoutError:
                    statuses[0] += 1

        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work(session))
        return statuses

    return asyncio.run(run())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_thousand_mixed_requests_leave_nothing_behind(
    kind: str,
    start: Callable[..., Any],
    judge: FastJudge,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    record_property: Callable[[str, str], None],
) -> None:
    judge.failure, judge.failing_share = GARBAGE, 0.05
    settings = {"database_url": request.getfixturevalue("database")} if kind == "postgresql" else {}
    service = start(**model_judge(judge.url), **settings)
    seen = psutil.Process(service.process.pid)
    rubric = create_rubric(service.url, criteria=2)

    def settled() -> tuple[int, int, int]:
        """Return descriptors, threads and memory once all is answered.

        Connections to the judge are not counted, because they stay open for a while.
        """
        for attempt in eventually():
            with attempt:
                connections = [c for c in seen.net_connections("tcp") if c.raddr]
                assert judge.in_flight == 0
                assert not [c for c in connections if c.laddr.port == service.port]
        kept = [c for c in connections if c.raddr.port == judge.port]
        return seen.num_fds() - len(kept), seen.num_threads(), service.resident_bytes

    send(service.url, rubric, WARM_UP, seed=0)
    descriptors, threads, memory = settled()
    statuses = send(service.url, rubric, COUNT, seed=1)
    later = settled()
    assert sum(statuses.values()) == COUNT
    assert {status for status in statuses if status >= 500} <= {503}
    assert statuses[200] > COUNT / 3
    assert min(statuses[404], statuses[405], statuses[422]) > 0
    grown = later[2] - memory
    record_property(
        "figure",
        f"{kind}: {COUNT} requests, memory {grown / 2**20:+.1f} MiB on {memory / 2**20:.0f}, "
        f"descriptors {later[0] - descriptors:+d}, threads {later[1] - threads:+d}",
    )
    assert abs(later[0] - descriptors) <= DESCRIPTORS
    assert later[1] - threads <= DESCRIPTORS
    assert grown <= MEMORY_BYTES
