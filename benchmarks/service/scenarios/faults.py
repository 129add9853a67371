"""A failing judge costs time, never truth: no wrong number, and nearly all are there."""

import asyncio

from service.bench import SMALL, Bench
from service.load_client import Accuracy, Scorer
from service.processes import Process
from service.results_table import Row
from service.stub_judge import Settings
from service.workload import Work, make_batch

FIGURE = "a judge that fails"
SCORED_SHARE = 0.99
SAMPLE = Work(32, 32, 6)
BATCHES = 15
"""With 2 retries 0.8 % stay unscored by chance; 15,360 rollouts give that share to ± 0.07 %."""


def faults(bench: Bench) -> list[Row]:
    """Measure 20 % of calls answered with 500, and 20 % with useless replies of eight kinds."""
    work, batches = (SMALL, 2) if bench.quick else (SAMPLE, BATCHES)
    rows = []
    for name, settings in (
        ("20 % HTTP 500", Settings(latency_s=0.05, failing=0.2)),
        ("20 % garbage", Settings(latency_s=0.05, garbage=0.2)),
    ):
        with bench.service() as service:
            accuracy, asked = asyncio.run(_measure(bench, service, work, batches, name, settings))
        load = f"{batches} × {work}, {name}"
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in accuracy.reasons.most_common())
            or "none unscored"
        )
        rows += [
            Row(
                FIGURE,
                load,
                "0 wrong numbers",
                f"{accuracy.wrong} wrong of {accuracy.scored}",
                accuracy.wrong == 0,
                {"wrong": accuracy.wrong, "scored": accuracy.scored},
            ),
            Row(
                FIGURE,
                load,
                f"≥ {SCORED_SHARE:.0%} scored",
                f"{accuracy.scored_share:.2%} of {accuracy.rollouts} ({reasons}; "
                f"{asked / accuracy.rollouts:.2f} calls a rollout)",
                accuracy.scored_share >= SCORED_SHARE,
                {
                    "scored_share": accuracy.scored_share,
                    "rollouts": accuracy.rollouts,
                    "calls": asked,
                    "reasons": dict(accuracy.reasons),
                },
            ),
        ]
    return rows


async def _measure(
    bench: Bench, service: Process, work: Work, batches: int, name: str, settings: Settings
) -> tuple[Accuracy, int]:
    accuracy = Accuracy()
    async with Scorer(service.url) as scorer:
        first = make_batch(work, f"faults, {name}")
        await scorer.prepare(first.tasks)
        bench.stub.configure(settings)
        for n in range(batches):
            batch = make_batch(work, f"faults, {name}, {n}", first.tasks)
            accuracy.add(batch, (await scorer.score(batch)).batch)
    return accuracy, bench.stub.stats()["calls"]
