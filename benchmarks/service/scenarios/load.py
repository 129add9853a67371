"""Under load: 2,000 concurrent judge calls, added latency, and work growing 16-fold."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from markscheme.schema import ScoreBatch
from service.bench import SMALL, Bench
from service.load_client import Accuracy, Scorer, percentile, raw_client
from service.processes import Process, bare_endpoint
from service.results_table import Row, milliseconds
from service.stub_judge import Settings
from service.workload import Work, make_batch

MANY, OVERHEAD, SCALING = (
    "2,000 concurrent judge calls",
    "overhead over the judge at 50 requests/s",
    "work 1× → 16×",
)
MANY_CALLS, MANY_LATENCY_S = 2000, 10.0
"""Long enough for the last call to be sent before the first is answered."""
RATE_PER_S, ARRIVALS, OVERHEAD_LATENCY_S = 50.0, 1500, 0.05
FAST_PER_S = 150.0
P50_MOST_S, P99_MOST_S, COMPUTING_MOST_MS = 0.020, 0.080, 6
GROWTHS, GROWTH_MOST = (1, 4, 16), 1.10
MODES: tuple[tuple[str, dict[str, str]], ...] = (
    ("one criterion a call", {"judge_max_criteria": "1"}),
    ("one call a rollout", {}),
)


def many(bench: Bench) -> list[Row]:
    """Measure one request of 2,000 concurrent calls; a call that times out is unscored."""
    work = Work(MANY_CALLS // (32 if bench.quick else 8), 8, 6)
    with bench.service({"judge_concurrency": str(MANY_CALLS)}) as service:
        accuracy, wall_s = asyncio.run(_many(bench, service, work))
    seen = bench.stub.stats()
    lost = accuracy.rollouts - accuracy.scored
    return [
        Row(
            MANY,
            f"{work}, {MANY_LATENCY_S:.0f} s",
            "0 client-side time-outs",
            f"{lost} unscored ({dict(accuracy.reasons) or 'none'}), {accuracy.wrong} wrong; "
            f"{seen['calls']} calls, at most {seen['most_in_flight']} in flight, {wall_s:.1f} s",
            lost == 0 and accuracy.wrong == 0,
            {
                "unscored": lost,
                "reasons": dict(accuracy.reasons),
                "calls": seen["calls"],
                "most_in_flight": seen["most_in_flight"],
                "wall_s": wall_s,
            },
        )
    ]


async def _many(bench: Bench, service: Process, work: Work) -> tuple[Accuracy, float]:
    accuracy = Accuracy()
    batch = make_batch(work, "many")
    meter = bench.meter(MANY, str(work), service)
    async with Scorer(service.url) as scorer:
        await scorer.prepare(batch.tasks)
        bench.stub.configure(Settings(latency_s=MANY_LATENCY_S))
        with meter.over(work.verdicts):
            timed = await scorer.score(batch)
        accuracy.add(batch, timed.batch)
    meter.close()
    return accuracy, timed.wall_s


def overhead(bench: Bench) -> list[Row]:
    """Measure added latency in an open loop: single rollouts arrive at random, over plain HTTP.

    The same arrivals at a bare endpoint, which only asks the judge, show what client, judge and
    machine add by themselves; then more arrivals a second, still at one worker.
    """
    arrivals = ARRIVALS // 10 if bench.quick else ARRIVALS
    usual = _overhead(bench, arrivals, RATE_PER_S)
    question = bench.stub.stats()["sample"].encode()
    with bare_endpoint(bench.workdir, bench.stub.base_url) as bare:
        questions = [question] * (arrivals + int(RATE_PER_S))
        floor, _ = asyncio.run(arrive(bare.url, questions, RATE_PER_S))
    fast = _overhead(bench, arrivals, FAST_PER_S)
    p50, p99 = percentile(usual.added_s, 0.5), percentile(usual.added_s, 0.99)
    load = f"{arrivals} requests of 1x1x6, {OVERHEAD_LATENCY_S * 1000:.0f} ms"
    return [
        Row(
            OVERHEAD,
            load,
            f"p50 ≤ {milliseconds(P50_MOST_S)}",
            f"p50 {milliseconds(p50)}",
            p50 <= P50_MOST_S,
            {"p50_s": p50},
        ),
        Row(
            OVERHEAD,
            load,
            f"p99 ≤ {milliseconds(P99_MOST_S)}",
            f"p99 {milliseconds(p99)} (most {milliseconds(max(usual.added_s))})",
            p99 <= P99_MOST_S,
            {"p99_s": p99, "added_s": usual.added_s},
        ),
        Row(
            OVERHEAD,
            load,
            f"computing ≤ {COMPUTING_MOST_MS} ms",
            f"{usual.computing_ms:.2f} ms; {usual.queued_ms:.2f} ms more it waited for a core",
            usual.computing_ms <= COMPUTING_MOST_MS,
            {"computing_ms": usual.computing_ms, "queued_ms": usual.queued_ms},
        ),
        Row(
            OVERHEAD,
            "the same at a bare endpoint that only asks the judge",
            "",
            _percentiles(floor),
            values={"added_s": floor},
        ),
        Row(
            f"the same at {FAST_PER_S:.0f} requests/s",
            load,
            "",
            f"{_percentiles(fast.added_s)}; {fast.rate_per_s:.0f} answers/s, "
            f"{fast.computing_ms:.2f} ms of computing",
            values={
                "added_s": fast.added_s,
                "rate_per_s": fast.rate_per_s,
                "computing_ms": fast.computing_ms,
                "queued_ms": fast.queued_ms,
            },
        ),
    ]


def _percentiles(added: Sequence[float]) -> str:
    p50, p99 = percentile(added, 0.5), percentile(added, 0.99)
    return f"p50 {milliseconds(p50)}, p99 {milliseconds(p99)}"


@dataclass(frozen=True)
class _Overhead:
    """Latencies less the judge's; answers a second; the service's time a request."""

    added_s: list[float]
    rate_per_s: float
    computing_ms: float
    queued_ms: float


def _overhead(bench: Bench, arrivals: int, rate_per_s: float) -> _Overhead:
    with bench.service() as service:
        return asyncio.run(_measured(bench, service, arrivals, rate_per_s))


async def _measured(bench: Bench, service: Process, arrivals: int, rate_per_s: float) -> _Overhead:
    tasks = make_batch(SMALL, "overhead").tasks
    meter = bench.meter(OVERHEAD, f"1x1x6, {rate_per_s:.0f}/s", service)
    async with Scorer(service.url) as scorer:
        await scorer.prepare(tasks)
        batches = [
            make_batch(Work(1, 1, 6), f"overhead, {n}", (tasks[n % len(tasks)],))
            for n in range(arrivals + int(rate_per_s))
        ]
        bodies = [scorer.body(batch, step=n) for n, batch in enumerate(batches)]
        bench.stub.configure(Settings(latency_s=OVERHEAD_LATENCY_S))
        queued_s, started = service.queued_s(), time.perf_counter()
        with meter.over(6 * len(batches)):
            added, answers = await arrive(service.url, bodies, rate_per_s)
        wall_s, queued_s = time.perf_counter() - started, service.queued_s() - queued_s
    meter.close()
    accuracy = Accuracy()
    for batch, answer in zip(batches, answers, strict=True):
        accuracy.add(batch, ScoreBatch.model_validate_json(answer))
    if accuracy.wrong or accuracy.scored < accuracy.rollouts:
        raise RuntimeError(
            f"overhead: {accuracy.wrong} wrong, {accuracy.rollouts - accuracy.scored} unscored"
        )
    each_ms = 1000 / len(batches)
    return _Overhead(
        added,
        len(batches) / wall_s,
        bench.spent[-1].cpu_s["service"] * each_ms,
        queued_s * each_ms,
    )


async def arrive(
    url: str, bodies: Sequence[bytes], rate_per_s: float
) -> tuple[list[float], list[bytes]]:
    """Post bodies at random times.

    Returns the seconds from planned arrival to answer, less the stub's, without the first second's,
    which warms up; and all answers.
    """
    loop, rng = asyncio.get_running_loop(), random.Random("arrivals")
    answers: list[bytes] = [b""] * len(bodies)
    async with raw_client(url) as http:

        async def one(n: int, due: float) -> float:
            await asyncio.sleep(max(0.0, due - loop.time()))
            answers[n] = (
                (await http.post("/v1/scores", content=bodies[n])).raise_for_status().content
            )
            return loop.time() - due - OVERHEAD_LATENCY_S

        due = loop.time() + 0.2
        pending = []
        for n in range(len(bodies)):
            due += rng.expovariate(rate_per_s)
            pending.append(asyncio.create_task(one(n, due)))
        added = await asyncio.gather(*pending)
    return added[int(rate_per_s) :], answers


def scaling(bench: Bench) -> list[Row]:
    """Measure the same step with 4 and 16 times the prompts: verdicts must not cost more."""
    rows = []
    growths = GROWTHS[:2] if bench.quick else GROWTHS
    for mode, settings in MODES:
        with bench.service(settings) as service:
            per_verdict = [
                asyncio.run(_per_verdict(bench, service, growth, mode)) for growth in growths
            ]
        ratio = per_verdict[-1] / per_verdict[0]
        walls = ", ".join(
            f"{growth}×: {1e6 * s:.0f} µs" for growth, s in zip(growths, per_verdict, strict=True)
        )
        rows.append(
            Row(
                SCALING,
                f"{SMALL} × {growths[-1]}, 50 ms, {mode}",
                "wall per verdict within 10 %",
                f"{ratio:.2f} × ({walls})",
                ratio <= GROWTH_MOST,
                {"ratio": ratio, "per_verdict_s": dict(zip(growths, per_verdict, strict=True))},
            )
        )
    return rows


async def _per_verdict(bench: Bench, service: Process, growth: int, mode: str) -> float:
    work = Work(SMALL.prompts * growth, SMALL.rollouts, SMALL.criteria)
    meter = bench.meter(SCALING, f"{work}, {mode}", service)
    name = f"scaling, {growth}, {mode}"
    walls = []
    async with Scorer(service.url) as scorer:
        first = make_batch(work, name)
        warm_up = make_batch(SMALL, f"{name}, warm-up")
        await scorer.prepare([*first.tasks, *warm_up.tasks])
        bench.stub.configure(Settings(latency_s=0.05))
        await scorer.score(warm_up)
        for n in range(max(1, bench.repeats if growth == 1 else bench.repeats // 2 + 1)):
            batch = make_batch(work, f"{name}, {n}", first.tasks)
            with meter.over(work.verdicts):
                timed = await scorer.score(batch)
            if timed.batch.counts.unscored:
                raise RuntimeError(f"{timed.batch.counts.unscored} unscored in the scaling figure")
            walls.append(timed.wall_s)
    meter.close()
    return statistics.median(walls) / work.verdicts
