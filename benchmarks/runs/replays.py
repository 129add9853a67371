"""Print what replays of a long run take: `python -m runs.replays [DATABASE_URL]`.

Without a URL, a new SQLite file. The database must be new: a run of 8,000 groups of 8 rollouts and
6 criteria is written to it. For the estimate, the start, and the comparison of a replay that is
done: wall milliseconds, CPU milliseconds of this process, the longest time in CPU milliseconds for
which the event loop did nothing else, and by how many MB the memory grew at most. Needs Linux.
"""

import asyncio
import random
import sys
import tempfile
import time
from asyncio.events import Handle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from markscheme import schema
from markscheme_server.app import create_app
from markscheme_server.cli.server import tune_garbage_collector
from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.replay import ReplayedRollout
from markscheme_server.scoring.replays import ReplayService
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.database import team_scope
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.replays import GroupResult
from markscheme_server.store.store import Store
from markscheme_server.store.tables import replay_groups, replays, rollouts
from runs.seed import RunSize, seed_run

FLIPPED = {"0": "1", "1": "0", "?": "?"}
SIZE = RunSize(steps=2000, criteria=6)
TEAM = Caller("red", frozenset({"read", "score"}))
REQUEST = schema.ReplayRequest(run_id="run", judge="strong")
JUDGE = """[judges.strong]
model = "strong"
base_url = "http://127.0.0.1:9/v1"
price_input = 1.0
price_output = 2.0
"""


class LoopWatch:
    """Notes the longest time for which one callback kept the event loop, in CPU seconds."""

    longest = 0.0

    def __init__(self) -> None:
        run = Handle._run

        def timed(handle: Handle) -> None:
            begun = time.thread_time()
            run(handle)
            self.longest = max(self.longest, time.thread_time() - begun)

        Handle._run = timed  # type: ignore[method-assign]


def peak_mb() -> float:
    """Return the most memory that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Let the peak be what this process has now."""
    Path("/proc/self/clear_refs").write_text("5")


async def finish(store: Store, replay_id: str) -> None:
    """Store a result for each group of a replay: two in a hundred verdicts are different."""
    rng = random.Random(1)
    g, r = replay_groups.c, rollouts.c
    async with store.database.writing(team_scope("red")) as connection:
        rows = await connection.execute(
            sa.select(g.number, r.reward, r.verdicts)
            .join(rollouts, r.assignment_id == g.assignment_id)
            .where(g.replay_id == replay_id)
        )
        before: dict[int, list[ReplayedRollout]] = {}
        for number, reward, said in rows:
            after = "".join(FLIPPED[v] if rng.random() < 0.02 else v for v in said)
            changed = None if reward is None else max(0.0, reward - 0.1 * (after != said))
            before.setdefault(number, []).append(ReplayedRollout(reward, changed, said, after))
        rubric = (await connection.execute(sa.text("SELECT id FROM rubrics"))).scalar_one()
        await connection.execute(
            sa.update(replay_groups)
            .where(g.replay_id == replay_id, g.number == sa.bindparam("place"))
            .values(result=sa.bindparam("made"), cached_verdicts=0, saved_usd=0.0),
            [
                {"place": number, "made": GroupResult(rubric, rubric, each).dump()}
                for number, each in before.items()
            ],
        )
        await connection.execute(
            sa.update(replays).where(replays.c.id == replay_id).values(state="finished")
        )


async def measure(settings: Settings) -> None:
    """Write a run to the database and print the figures."""
    await migrate.prepare(settings.sqlalchemy_url)
    store = Store(settings.sqlalchemy_url)
    await store.teams.create("red", Actor())
    await seed_run(store, "red", "run", SIZE)
    tune_garbage_collector()  # as the service does
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        assert state is not None
        service: ReplayService = state["services"].replays
        await service._worker.aclose(0)  # no judge is there that it could ask
        watch = LoopWatch()

        async def timed(name: str, ask: Callable[[], Awaitable[Any]]) -> Any:
            watch.longest = 0.0
            forget_peak()
            before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
            answer = await ask()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            grown, longest = peak_mb() - before, watch.longest
            print(
                f"{name:12}{wall * 1e3:9.0f}{cpu * 1e3:9.0f}{longest * 1e3:9.0f}{grown:9.0f}",
                flush=True,
            )
            return answer

        print(f"{'':12}{'wall ms':>9}{'CPU ms':>9}{'held ms':>9}{'MB':>9}")
        await timed("estimate", lambda: service.estimate(TEAM, REQUEST))
        begun = await timed("begin", lambda: service.begin(TEAM, REQUEST))
        await finish(store, begun.id)
        found = await timed("comparison", lambda: service.replay(TEAM, begun.id))
        assert found.comparison.rollouts > 0
        await timed("again", lambda: service.replay(TEAM, begun.id))
    await store.close()


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as folder:
        judges = Path(folder, "markscheme.toml")
        judges.write_text(JUDGE)
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(folder, 'runs.db')}"
        asyncio.run(measure(Settings(_env_file=None, database_url=url, config=judges)))


if __name__ == "__main__":
    main()
