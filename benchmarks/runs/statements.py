"""Print the computing for one small read on PostgreSQL: `python -m runs.statements`.

CPU milliseconds of this process for a look at 6 verdicts in a transaction of its own, by
SQLAlchemy's connection (`Database.reading`) and by the driver (`Database.read`), in turns.
"""

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa
import uvloop

from markscheme_server.store.engine.database import Database, create_engine, team_scope
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.tables import verdicts
from service.processes import postgres

READS, TURNS = 500, 3
RED = team_scope("red")


async def measure(url: str) -> None:
    """Print the computing by each way, in turns."""
    await migrate.prepare(url, url)
    database = Database(create_engine(url))
    keys = {"keys": database.keys(f"k{number}" for number in range(6))}
    query = sa.select(verdicts.c.key, verdicts.c.met, verdicts.c.cost_usd).where(
        database.in_keys(verdicts.c.key, "keys")
    )

    async def by_connection() -> None:
        async with database.reading(RED) as connection:
            (await connection.execute(query, keys)).all()

    async def by_driver() -> None:
        await database.read(RED, query, keys)

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "Database.reading": by_connection,
        "Database.read": by_driver,
    }
    for name, way in [*ways.items()] * TURNS:
        await way()
        before = time.process_time()
        for _ in range(READS):
            await way()
        print(f"{name:17} {1000 * (time.process_time() - before) / READS:.3f} ms", flush=True)
    await database.close()


def main() -> None:
    """Measure on a new PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as server:
        uvloop.run(measure(server.fresh("statements").replace("://", "+asyncpg://", 1)))


if __name__ == "__main__":
    main()
