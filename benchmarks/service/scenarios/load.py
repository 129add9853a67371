"""Under load: 2,000 concurrent judge calls, added latency, and work growing 16-fold."""

import asyncio
import random
import statistics

from markscheme.schema import ScoreBatch
from service.bench import SMALL, Bench
from service.load_client import Accuracy, Scorer, percentile, raw_client
from service.processes import Process
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
P50_MOST_S, P99_MOST_S = 0.010, 0.060
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
    """Measure added latency in an open loop: single rollouts arrive at random, over plain HTTP."""
    arrivals = ARRIVALS // 10 if bench.quick else ARRIVALS
    with bench.service() as service:
        added = asyncio.run(_overhead(bench, service, arrivals))
    p50, p99 = percentile(added, 0.5), percentile(added, 0.99)
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
            f"p99 {milliseconds(p99)} (most {milliseconds(max(added))})",
            p99 <= P99_MOST_S,
            {"p99_s": p99, "added_s": added},
        ),
    ]


async def _overhead(bench: Bench, service: Process, arrivals: int) -> list[float]:
    """Return latency from planned arrival to answer, less the stub's; the first second warms up."""
    tasks = make_batch(SMALL, "overhead").tasks
    rng = random.Random("arrivals")
    meter = bench.meter(OVERHEAD, "1x1x6", service)
    loop = asyncio.get_running_loop()
    warm_up = int(RATE_PER_S)
    async with Scorer(service.url) as scorer, raw_client(service.url) as http:
        await scorer.prepare(tasks)
        batches = [
            make_batch(Work(1, 1, 6), f"overhead, {n}", (tasks[n % len(tasks)],))
            for n in range(arrivals + warm_up)
        ]
        bodies = [scorer.body(batch, step=n) for n, batch in enumerate(batches)]
        answers: list[bytes] = [b""] * len(batches)
        bench.stub.configure(Settings(latency_s=OVERHEAD_LATENCY_S))

        async def one(n: int, due: float) -> float:
            await asyncio.sleep(max(0.0, due - loop.time()))
            answers[n] = (
                (await http.post("/v1/scores", content=bodies[n])).raise_for_status().content
            )
            return loop.time() - due - OVERHEAD_LATENCY_S

        due = loop.time() + 0.2
        pending = []
        with meter.over(6 * len(batches)):
            for n in range(len(batches)):
                due += rng.expovariate(RATE_PER_S)
                pending.append(asyncio.create_task(one(n, due)))
            added = await asyncio.gather(*pending)
    meter.close()
    accuracy = Accuracy()
    for batch, answer in zip(batches, answers, strict=True):
        accuracy.add(batch, ScoreBatch.model_validate_json(answer))
    if accuracy.wrong or accuracy.scored < accuracy.rollouts:
        raise RuntimeError(
            f"overhead: {accuracy.wrong} wrong, {accuracy.rollouts - accuracy.scored} unscored"
        )
    return added[warm_up:]


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
