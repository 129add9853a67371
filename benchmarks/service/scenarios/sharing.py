"""Nothing is judged twice: identical requests at once, in one process and over two."""

import asyncio
import contextlib

from service.bench import SMALL, Bench
from service.load_client import Accuracy, Scorer, score_at_once
from service.results_table import Row
from service.stub_judge import Settings
from service.workload import Batch, make_batch

FIGURE = "identical requests at once"
GOAL = "one judge call per distinct response"
SAME, CLIENTS_A_PROCESS = 16, 2


def sharing(bench: Bench) -> list[Row]:
    """Measure 16 identical requests to one process; two processes with two clients each."""
    with bench.service() as service:
        rows = [_row(bench, "one process", [service.url] * SAME)]
    for redis in (True, False):
        database = bench.fresh_database()
        with (
            bench.service(database=database, redis=redis) as one,
            bench.service(database=database, redis=redis) as other,
        ):
            rows.append(
                _row(
                    bench,
                    f"2 processes × {CLIENTS_A_PROCESS} clients, "
                    f"{'Redis' if redis else 'no Redis'}",
                    [one.url, other.url] * CLIENTS_A_PROCESS,
                )
            )
    return rows


def _row(bench: Bench, where: str, urls: list[str]) -> Row:
    batch = make_batch(SMALL, f"sharing, {where}")
    bench.stub.configure(Settings(latency_s=0.05))
    accuracy, errors = asyncio.run(_send(urls, batch))
    seen = bench.stub.stats()
    distinct = SMALL.answers
    unscored = accuracy.rollouts - accuracy.scored
    sound = not (errors or unscored or accuracy.wrong)
    flaws = (
        ""
        if sound
        else f"; {len(errors)} requests failed, {unscored} unscored, {accuracy.wrong} wrong"
    )
    return Row(
        FIGURE,
        f"{len(urls)} × {SMALL}, {where}",
        GOAL,
        f"{seen['calls']} calls for {distinct} distinct responses, {accuracy.rollouts} "
        f"answered{flaws}",
        seen["calls"] == distinct and sound,
        {"calls": seen["calls"], "distinct": distinct, "errors": [repr(error) for error in errors]},
    )


async def _send(urls: list[str], batch: Batch) -> tuple[Accuracy, list[BaseException]]:
    accuracy, errors = Accuracy(), []
    async with contextlib.AsyncExitStack() as stack:
        scorers = [await stack.enter_async_context(Scorer(url)) for url in urls]
        await scorers[0].prepare(batch.tasks)
        for scorer in scorers[1:]:
            scorer.share_rubrics(scorers[0])
        for timed in await score_at_once(scorers, batch, step=1):
            if isinstance(timed, BaseException):
                errors.append(timed)
            else:
                accuracy.add(batch, timed.batch)
    return accuracy, errors
