"""Print what comparing runs takes: `python -m runs.comparison [DATABASE_URL]`.

Without a URL, a new SQLite file. The database must be new: runs of 1,000 steps of 4 groups, 8
rollouts and 12 criteria are written to it, of the same 40 prompts or of the same 4,000. For the
answer and the page's HTML, the best of five: wall milliseconds, CPU milliseconds of this process,
the longest time in CPU milliseconds for which the event loop did nothing else, and the size of the
page in kB. `cold`: of a process that has not read the runs before.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from markscheme import schema
from markscheme_server.cli.server import tune_garbage_collector
from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.pages import comparison, render
from markscheme_server.scoring.run_comparison import RunComparisonService
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.store import Store
from runs.replays import LoopWatch
from runs.seed import RunSize, seed_run

REPEATS = 5
TEAM = Caller("red", frozenset({"read"}))
FAMILIES = {40: 6, 4000: 2}
"""How many runs there are by the number of their prompts."""


def service(store: Store) -> RunComparisonService:
    """Return the service of a process that has just begun."""
    return RunComparisonService(store.runs, store.run_groups, RunHistories(store.runs))


async def measure(url: str) -> None:
    """Write runs to the database and print the figures."""
    settings = Settings(_env_file=None, database_url=url)
    await migrate.prepare(settings.sqlalchemy_url)
    store = Store(settings.sqlalchemy_url)
    await store.teams.create("red", Actor())
    for prompts, count in FAMILIES.items():
        size = RunSize(prompts=prompts)
        await seed_run(store, "red", f"{prompts}-0", size)
        for i in range(1, count):
            await seed_run(store, "red", f"{prompts}-{i}", size, seed=1 + i, like=f"{prompts}-0")
    tune_garbage_collector()  # as the service does
    watch = LoopWatch()
    print(f"{'':34}{'wall ms':>9}{'CPU ms':>9}{'held ms':>9}{'kB':>9}")
    for prompts, most in FAMILIES.items():
        for count in sorted({2, most}):
            names = [f"{prompts}-{i}" for i in range(count)]
            await _timed(store, f"{count} runs, {prompts:,} prompts", names, watch)
    await store.close()


async def _timed(store: Store, title: str, names: list[str], watch: LoopWatch) -> None:
    figures: dict[str, list[tuple[float, float, float]]] = {"cold": [], "": [], "page": []}
    await service(store).compare(TEAM, names)  # stores the blocks of steps
    for _ in range(REPEATS):
        asked = service(store)
        for kind in ("cold", ""):
            watch.longest = 0.0
            wall, cpu = time.perf_counter(), time.process_time()
            found = await asked.compare(TEAM, names, bins=120, limit=30)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            figures[kind].append((wall, cpu, watch.longest))
        wall, cpu = time.perf_counter(), time.process_time()
        html = _html(found)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        figures["page"].append((wall, cpu, cpu))
    for kind, rows in figures.items():
        best = [min(column) * 1e3 for column in zip(*rows, strict=True)]
        size = f"{len(html.encode()) / 1000:9.0f}" if kind == "page" else ""
        print(f"{f'{title} {kind}':34}" + "".join(f"{each:9.1f}" for each in best) + size)


def _html(found: schema.RunComparison) -> str:
    view = comparison.compare_page(found, all_criteria=False, after=None)
    return render.page("compare.html", render.Frame("", "runs", TEAM), **view)


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(folder, 'runs.db')}"
        asyncio.run(measure(url))


if __name__ == "__main__":
    main()
