"""Print what small scoring requests compute and wait for: `python -m runs.lone_requests`.

One after the other, then at 50 a second: milliseconds a request of each part's computing, and of
waiting for a core; how often the service's process went to sleep; latency over the judge's.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from service import processes
from service.bench import SMALL, Bench
from service.load_client import Scorer, percentile, raw_client
from service.processes import Process
from service.scenarios.load import OVERHEAD_LATENCY_S, arrive
from service.stub_judge import Settings
from service.workload import Work, make_batch

REQUESTS, RATE_PER_S = 200, 50.0


async def one_after_the_other(url: str, bodies: list[bytes]) -> list[float]:
    """Return each request's latency less the judge's, in seconds."""
    added = []
    async with raw_client(url) as http:
        for body in bodies:
            started = time.perf_counter()
            (await http.post("/v1/scores", content=body)).raise_for_status()
            added.append(time.perf_counter() - started - OVERHEAD_LATENCY_S)
    return added


async def at_random(url: str, bodies: list[bytes]) -> list[float]:
    """Return the same for requests that arrive at random times."""
    return (await arrive(url, bodies, RATE_PER_S))[0]


def sleeps(process: Process) -> int:
    """Return how often the process's first thread has gone to sleep."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


async def bodies_of(service: Process, name: str, count: int) -> list[bytes]:
    """Store the rubrics, and return requests of one new rollout each."""
    tasks = make_batch(SMALL, "lone").tasks
    async with Scorer(service.url) as scorer:
        await scorer.prepare(tasks)
        return [
            scorer.body(make_batch(Work(1, 1, 6), f"{name} {n}", (tasks[n % len(tasks)],)), step=n)
            for n in range(count)
        ]


def measure(parts: Mapping[str, Process], work: Callable[[], list[float]], requests: int) -> str:
    """Return a line of figures, each for one request."""
    service = parts["service"]
    before = {name: (part.cpu_s(), part.queued_s()) for name, part in parts.items()}
    slept, added = sleeps(service), work()
    each_ms = 1000 / requests
    figures = [
        f"{name} {(part.cpu_s() - before[name][0]) * each_ms:.2f} ms"
        f" + {(part.queued_s() - before[name][1]) * each_ms:.1f} ms"
        for name, part in parts.items()
    ]
    slept = sleeps(service) - slept
    return (
        f"{', '.join(figures)}; {slept / requests:.1f} wake-ups; "
        f"p50 {percentile(added, 0.5) * 1000:.0f} ms, p99 {percentile(added, 0.99) * 1000:.0f} ms"
    )


def main() -> None:
    """Measure on a new deployment."""
    processes.prepare()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workdir = Path(folder)
        stub = stack.enter_context(processes.stub_judge(workdir))
        postgres = stack.enter_context(processes.postgres(workdir))
        redis = stack.enter_context(processes.redis(workdir))
        bench = Bench(workdir, stub, postgres, redis, peers=None, machine={})
        service = stack.enter_context(bench.service())
        parts = {
            "service": service,
            "PostgreSQL": postgres,
            "client": Process("", os.getpid()),
            "judge": stub,
        }
        stub.configure(Settings(latency_s=OVERHEAD_LATENCY_S))
        print("computing + waiting for a core, milliseconds a request; load", os.getloadavg()[0])
        for name, way in (
            ("one after the other", one_after_the_other),
            (f"{RATE_PER_S:.0f} a second", at_random),
        ):
            asyncio.run(way(service.url, asyncio.run(bodies_of(service, f"warm {name}", 60))))
            bodies = asyncio.run(bodies_of(service, name, REQUESTS))
            line = measure(parts, lambda: asyncio.run(way(service.url, bodies)), REQUESTS)  # noqa: B023
            print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    main()
