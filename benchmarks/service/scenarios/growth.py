"""Database growth: megabytes per 1,000 training steps, extrapolated from a short run."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from service.bench import SMALL, Bench
from service.load_client import Scorer
from service.results_table import Row
from service.stub_judge import Settings
from service.workload import ANSWER_WORDS, make_batch

FIGURE = "growth of the database"
STEPS, QUICK_STEPS = 30, 6


def growth(bench: Bench) -> list[Row]:
    """Measure steps of new prompts, rubrics and answers: nothing is shared, an upper bound."""
    database = bench.fresh_database()
    name = urlsplit(database).path.removeprefix("/")
    file = bench.workdir / "growth.db"
    return [
        _row(bench, "PostgreSQL", database, lambda: postgres_bytes(bench, name)),
        _row(bench, "SQLite", f"sqlite+aiosqlite:///{file}", lambda: sqlite_bytes(file)),
    ]


def _row(bench: Bench, store: str, url: str, size: Callable[[], int]) -> Row:
    steps = QUICK_STEPS if bench.quick else STEPS
    sizes = []
    for first, last in ((0, steps // 3), (steps // 3, steps)):
        with bench.service(database=url) as service:
            asyncio.run(_train(bench, service.url, store, range(first, last)))
        sizes.append(size())
    mb_per_1000 = (sizes[1] - sizes[0]) / (steps - steps // 3) * 1000 / 1e6
    bytes_a_verdict = mb_per_1000 * 1000 / SMALL.verdicts
    return Row(
        FIGURE,
        f"{steps} steps of {SMALL}, {ANSWER_WORDS} words an answer, {store}",
        "stated, in MB per 1,000 steps",
        f"{mb_per_1000:,.0f} MB per 1,000 steps ({bytes_a_verdict:,.0f} bytes a verdict with its "
        "share of texts and calls; extrapolated)",
        values={"mb_per_1000_steps": mb_per_1000, "sizes_bytes": sizes},
    )


async def _train(bench: Bench, url: str, store: str, steps: range) -> None:
    bench.stub.configure(Settings(latency_s=0.005))
    async with Scorer(url) as scorer:
        for step in steps:
            batch = make_batch(SMALL, f"growth, {store}, {step}")
            await scorer.prepare(batch.tasks)
            await scorer.score(batch, step=step)


def postgres_bytes(bench: Bench, name: str) -> int:
    """Return a database's size after a vacuum, indexes included."""
    server = bench.postgres.server
    server.psql(f"\\c {name}\nVACUUM")
    printed = server.psql(f"\\pset format unaligned\n\\t on\nSELECT pg_database_size('{name}')")
    return int(printed.split()[-1])


def sqlite_bytes(file: Path) -> int:
    """Return the size of the file and its log, after the service has ended."""
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))
