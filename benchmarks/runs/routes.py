"""Print how long each answer about a run takes: `python -m runs.routes [DATABASE_URL]`.

Without a URL, a new SQLite file. The database must be new: two runs of 1,000 steps of the same
prompts are written to it.
For each answer, the best of five in milliseconds: of a process that has not read the run before
(`cold`), of one that has and the run has changed since (`changed`), and of one that has the run as
it is (`same`).
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from markscheme import schema
from markscheme_server.cli.server import tune_garbage_collector
from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.scoring.run_comparison import RunComparisonService
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.scoring.runs import RunService
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.store import Store
from runs.seed import RunSize, seed_run

RUNS = 5
TEAM = Caller("red", frozenset({"read"}))


class Services:
    """The services of a process that has just begun."""

    def __init__(self, store: Store) -> None:
        histories = RunHistories(store.runs)
        self.runs = RunService(store.runs, store.budgets, histories)
        self.groups = RunGroupService(store.runs, store.run_groups, store.rubrics, histories, [])
        self.comparisons = RunComparisonService(store.runs, store.run_groups, histories)


ANSWERS: dict[str, Callable[[Services], Awaitable[Any]]] = {
    "runs": lambda s: s.runs.runs(TEAM, limit=20, after=None),
    "run": lambda s: s.runs.run(TEAM, "run"),
    "steps": lambda s: s.runs.steps(TEAM, "run"),
    "criteria": lambda s: s.runs.criteria(TEAM, "run"),
    "findings": lambda s: s.runs.findings(TEAM, "run"),
    "compare": lambda s: s.comparisons.compare(TEAM, ["run", "other"]),
    "groups": lambda s: s.groups.groups(TEAM, "run", schema.GroupFilter(sort="spread")),
}


async def measure(url: str) -> None:
    """Write a run to the database and print the times."""
    settings = Settings(_env_file=None, database_url=url)
    await migrate.prepare(settings.sqlalchemy_url)
    store = Store(settings.sqlalchemy_url)
    await store.teams.create("red", Actor())
    await seed_run(store, "red", "run", RunSize())
    await seed_run(store, "red", "other", RunSize(), seed=2, like="run")
    tune_garbage_collector()  # as the service does
    print(f"{'answer':10}{'cold':>8}{'changed':>9}{'same':>8}")
    for name, ask in ANSWERS.items():
        times = []
        for _ in range(RUNS):
            services = Services(store)
            cold = await _timed(ask, services)
            await store.runs.put(Actor("red"), "run", {})
            changed = await _timed(ask, services)
            times.append((cold, changed, await _timed(ask, services)))
        cold, changed, same = (min(column) for column in zip(*times, strict=True))
        print(f"{name:10}{cold:8.1f}{changed:9.1f}{same:8.1f}")
    await store.close()


async def _timed(ask: Callable[[Services], Awaitable[Any]], services: Services) -> float:
    begun = time.perf_counter()
    await ask(services)
    return (time.perf_counter() - begun) * 1000


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(folder, 'runs.db')}"
        asyncio.run(measure(url))


if __name__ == "__main__":
    main()
