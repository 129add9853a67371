"""Warm: every verdict is stored. One worker, with a key to check and every table in place.

Measured with plain httpx: in the SDK validating the answer would dominate. The SDK's figure is
beside it.
"""

import asyncio
import time

from markscheme.schema import ScoreBatch
from service.bench import LARGE, SMALL, Bench
from service.load_client import Accuracy, Scorer, percentile, raw_client
from service.peer_results import best_cache
from service.processes import Process
from service.results_table import Row, milliseconds
from service.stub_judge import Settings
from service.workload import Work, make_batch

FIGURE = "warm, all verdicts stored, one worker"
VERDICTS_PER_S, TIMES_AUTORUBRIC = 25_000, 5.0
REQUESTS, QUICK_REQUESTS = 100, 20


def warm(bench: Bench) -> list[Row]:
    """Measure the same batch repeatedly: verdicts a second, p99, and autorubric's cache."""
    work = SMALL if bench.quick else LARGE
    with bench.service() as service:
        raw, sdk, calls, accuracy = asyncio.run(_measure(bench, service, work))
    median, p99 = percentile(raw, 0.5), percentile(raw, 0.99)
    per_s = work.verdicts / median
    sound = calls == 0 and accuracy.wrong == 0 and accuracy.scored == accuracy.rollouts
    unscored = accuracy.rollouts - accuracy.scored
    flaws = "" if sound else f"; {calls} judge calls, {accuracy.wrong} wrong, {unscored} unscored"
    rows = [
        Row(
            FIGURE,
            str(work),
            f"≥ {VERDICTS_PER_S:,} verdicts/s",
            f"{per_s:,.0f} verdicts/s (median request {milliseconds(median)}){flaws}",
            per_s >= VERDICTS_PER_S and sound,
            {"verdicts_per_s": per_s, "median_s": median, "walls_s": raw},
        ),
        Row(
            FIGURE,
            str(work),
            "p99 stated",
            f"p99 {milliseconds(p99)} over {len(raw)} requests, one at a time",
            values={"p99_s": p99},
        ),
        Row(
            FIGURE,
            str(work),
            "(for information: through the SDK)",
            f"{work.verdicts / percentile(sdk, 0.5):,.0f} verdicts/s, p99 "
            f"{milliseconds(percentile(sdk, 0.99))}",
            values={"walls_s": sdk},
        ),
    ]
    goal = f"≥ {TIMES_AUTORUBRIC:.0f} × autorubric's in-process cache"
    for peer, wanted in (
        (best_cache(bench.dated_peers(), work), goal),
        (best_cache(bench.dated_peers(), work, default=False), "(for information: in any mode)"),
    ):
        if peer is None:
            return [
                *rows,
                Row(FIGURE, str(work), goal, "autorubric is not measured on this machine"),
            ]
        ratio = per_s / peer.again_per_s
        rows.append(
            Row(
                FIGURE,
                str(work),
                wanted,
                f"{ratio:.1f} × ({peer.name}: {peer.again_per_s:,.0f}/s)",
                ratio >= TIMES_AUTORUBRIC and sound if wanted == goal else None,
                {"ratio": ratio, "peer_verdicts_per_s": peer.again_per_s},
            )
        )
    return rows


async def _measure(
    bench: Bench, service: Process, work: Work
) -> tuple[list[float], list[float], int, Accuracy]:
    """Return wall times of plain requests and of the SDK's, judge calls, and accuracy."""
    batch = make_batch(work, "warm")
    accuracy = Accuracy()
    requests = QUICK_REQUESTS if bench.quick else REQUESTS
    bench.stub.configure(Settings(latency_s=0.005))
    async with Scorer(service.url) as scorer, raw_client(service.url) as http:
        await scorer.prepare(batch.tasks)
        await scorer.score(batch, step=1)
        bench.stub.configure(Settings(latency_s=0.005))
        body = scorer.body(batch, step=1)
        answer = await http.post("/v1/scores", content=body)
        meter = bench.meter(FIGURE, str(work), service)
        raw = []
        with meter.over(requests * work.verdicts):
            for _ in range(requests):
                started = time.perf_counter()
                answer = (await http.post("/v1/scores", content=body)).raise_for_status()
                raw.append(time.perf_counter() - started)
        meter.close()
        accuracy.add(batch, ScoreBatch.model_validate_json(answer.content))
        sdk = [(await scorer.score(batch, step=1)).wall_s for _ in range(max(requests // 4, 10))]
    return raw, sdk, bench.stub.stats()["calls"], accuracy
