"""Print how long each answer about a run takes: `python -m runs.routes [DATABASE_URL]`.

Without a URL, a new SQLite file and then a new PostgreSQL, whose role row-level security holds. A
database must be new: two runs of 1,000 steps, 4 groups of 8 rollouts each and 12 criteria are
written to it. A request passes the whole application, from its middleware to the bytes of the
answer, but no network. The best of five of each answer:

- `unread`: nobody has read the run before.
- `cold`: others have; then a group of the last step changed, and a process asks that has just
  begun. Its code is warm, since it has answered the same about another run.
- `changed`: the process has read the run itself, and then a group changed.
- `same`: nothing has changed since the process has read the run.

The cost of a run is cached for 2 s: `changed` and `same` do not read it again.

Wall milliseconds, and in brackets CPU milliseconds of the process, which do not hold PostgreSQL's.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvloop

from markscheme_server import logs
from markscheme_server.app import create_app
from markscheme_server.cli.server import tune_garbage_collector
from markscheme_server.config import Settings
from markscheme_server.domain.caller import DEFAULT_TEAM
from markscheme_server.store.engine.database import team_scope
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.store import Store
from markscheme_server.store.tables import assignments, run_blocks, runs
from runs.seed import RunSize, seed_run
from service.processes import postgres

TIMES = 5
TEAM = team_scope(DEFAULT_TEAM)
ROUTES = {
    "runs": "/v1/runs",
    "run": "/v1/runs/{run}",
    "steps": "/v1/runs/{run}/steps",
    "criteria": "/v1/runs/{run}/criteria",
    "findings": "/v1/runs/{run}/findings",
    "compare": "/v1/runs:compare?runs={run},{run}-again",
    "groups": "/v1/runs/{run}/groups",
    "groups by spread": "/v1/runs/{run}/groups?sort=spread",
    "group": "/v1/groups/{group}",
    "rubric's health": "/v1/rubrics/{rubric}/health",
    "judges' report": "/v1/judges/report",
}
Times = tuple[float, float]


class Service:
    """An application that answers requests of one process, without a network."""

    def __init__(self, app: Any, state: Any) -> None:
        self._app, self._state = app, state

    async def get(self, address: str) -> Times:
        """Return the wall and the CPU milliseconds of an answer."""
        path, _, query = address.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1:8321")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8321),
            "state": dict(self._state),
        }
        sent: list[Any] = []
        asked = False

        async def receive() -> Any:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()  # the client stays
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        wall, cpu = time.perf_counter(), time.process_time()
        await self._app(scope, receive, send)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if sent[0]["status"] != 200:
            raise RuntimeError(f"{address}: {sent}")
        return 1000 * wall, 1000 * cpu


@asynccontextmanager
async def process(settings: Settings, address: str) -> AsyncIterator[Service]:
    """Yield a process that has just begun, and whose code has answered `address` twice."""
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        service = Service(app, state)
        for _ in range(2):
            await service.get(address)
        yield service


async def touch(store: Store, run_id: str, group: str) -> None:
    """Let a group of the run have changed now."""
    a, r, at = assignments.c, runs.c, now()
    async with store.database.writing(TEAM) as connection:
        await connection.execute(
            sa.update(assignments).where(a.id == group).values(scored_at=at.timestamp())
        )
        await connection.execute(sa.update(runs).where(r.id == run_id).values(changed_at=at))


async def forget(store: Store, run_id: str) -> None:
    """Drop what readers have stored of a run."""
    async with store.database.writing(TEAM) as connection:
        await connection.execute(sa.delete(run_blocks).where(run_blocks.c.run_id == run_id))


async def measure(name: str, url: str) -> None:
    """Write runs to the database and print the times."""
    settings = Settings(_env_file=None, database_url=url)
    await migrate.prepare(settings.sqlalchemy_url)
    store = Store(settings.sqlalchemy_url)
    groups = await seed_run(store, DEFAULT_TEAM, "run", RunSize())
    await seed_run(store, DEFAULT_TEAM, "run-again", RunSize(), seed=2, like="run")
    # Others, the newest: a list of one has it alone.
    small = RunSize(steps=60, prompts=20)
    await seed_run(store, DEFAULT_TEAM, "other-again", small, seed=4, like="other")
    other = await seed_run(store, DEFAULT_TEAM, "other", small, seed=3)
    await settle(store, url)
    tune_garbage_collector()  # as the service does
    a = assignments.c
    async with store.database.reading(TEAM) as connection:
        rows = await connection.execute(
            sa.select(a.id, a.rubric_id).where(a.id.in_([other[-1], groups[-1]]))
        )
        of_group = {row.id: row.rubric_id for row in rows}
    print(f"{name:18}{'unread':>14}{'cold':>14}{'changed':>14}{'same':>14}")
    for answer, route in ROUTES.items():
        of_other = route.format(run="other", group=other[-1], rubric=of_group[other[-1]])
        if answer == "runs":
            of_other += "?limit=1"
        asked = route.format(run="run", group=groups[-1], rubric=of_group[groups[-1]])
        times: list[list[Times]] = []
        for _ in range(TIMES):
            await forget(store, "run")
            async with process(settings, of_other) as service:
                row = [await service.get(asked)]
                await service.get("/v1/runs/run")  # stores its blocks, whatever was asked before
            await touch(store, "run", groups[-1])
            async with process(settings, of_other) as service:
                row.append(await service.get(asked))
                await touch(store, "run", groups[-1])
                row.append(await service.get(asked))
                row.append(await service.get(asked))
            times.append(row)
        cells = "".join(f"{_best(column):>14}" for column in zip(*times, strict=True))
        print(f"{answer:18}{cells}", flush=True)
    await store.close()


async def settle(store: Store, url: str) -> None:
    """Bring the planner's statistics up to date, as a server does by itself."""
    if url.startswith("postgresql"):
        async with store.database.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.execute("VACUUM ANALYZE")


def _best(times: Any) -> str:
    wall, cpu = (min(each) for each in zip(*times, strict=True))
    return f"{wall:.0f} ({cpu:.0f})"


def main() -> None:
    """Run it."""
    logs.configure("warning")
    if len(sys.argv) > 1:
        uvloop.run(measure("given database", sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure("SQLite", f"sqlite:///{Path(folder, 'runs.db')}"))
        with postgres(Path(folder)) as server:
            server.server.psql("CREATE ROLE markscheme LOGIN")
            url = sa.make_url(server.fresh("runs")).set(username="markscheme")
            server.server.psql("ALTER DATABASE runs OWNER TO markscheme")
            uvloop.run(measure("PostgreSQL", url.render_as_string(hide_password=False)))


if __name__ == "__main__":
    main()
