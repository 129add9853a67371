"""Print how long the list of rubrics takes: `python -m runs.rubrics [DATABASE_URL]`.

Without a URL, a new SQLite file. The database must be new: 100,000 rubrics are written to it. Most
are the team's own; it also sees some that are shared with it and some of the organisation. For
each search, the best and the worst of five in milliseconds, from the search to the page's HTML.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import prompt_key
from markscheme_server.pages import render
from markscheme_server.pages.render import Frame
from markscheme_server.scoring.rubric_library import RubricLibrary
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.database import team_scope
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.rubrics import Search
from markscheme_server.store.store import Store
from markscheme_server.store.tables import prompts, rubrics, shares
from runs.seed import make_criteria

RUBRICS, BATCH, RUNS = 100_000, 5_000, 5
TEAM = Caller("red", frozenset({"read"}))
SEARCHES = {
    "first page": Search(limit=50),
    "middle": Search(limit=50, after="rub_050000"),
    "live": Search(limit=50, retired=False),
    "retired": Search(limit=50, retired=True),
    "a tag": Search(limit=50, tags=("tag7",)),
    "rare words": Search(limit=50, text="colour 4321"),
    "common words": Search(limit=50, text="name colour"),
    "no match": Search(limit=50, text="nowhere"),
}


def rows(start: int, at: Any) -> Iterator[dict[str, Any]]:
    """Make rubrics: of 100, 90 the team's, 5 shared with it, 2 of the organisation, 3 unseen."""
    criteria = [
        {"id": c.id, "text": c.text, "points": c.points, "category": c.category}
        for c in make_criteria(6)
    ]
    for number in range(start, start + BATCH):
        kind = number % 100
        messages = [{"role": "user", "content": f"Name colour {number}."}]
        yield {
            "id": f"rub_{number:06}",
            "team": "red" if kind < 90 else "blue",
            "messages": messages,
            "prompt_key": prompt_key(messages),
            "version": 1,
            "content_hash": f"{number:064}",
            "criteria": criteria,
            "origin": "imported",
            "tags": [f"tag{number % 1000}"],
            "provenance": {},
            "metadata": {},
            "visibility": "organisation" if kind in (95, 96) else "private",
            "retired_at": at if number % 1000 == 0 else None,
            "created_at": at + timedelta(seconds=number),
            "searched": f"Name colour {number}. " + " ".join(c["text"] for c in criteria),
        }


async def fill(store: Store) -> None:
    """Write the rubrics."""
    at = now() - timedelta(days=30)
    vector = store.database.search_vector(sa.bindparam("searched", type_=sa.Text))
    for start in range(0, RUBRICS, BATCH):
        made = list(rows(start, at))
        shared = [
            {"rubric_id": row["id"], "team": "red", "owner": "blue"}
            for row in made
            if int(row["id"][4:]) % 100 in range(90, 95)
        ]
        async with store.database.writing(team_scope("red", "blue")) as connection:
            await connection.execute(
                prompts.insert(),
                [
                    {"key": r["prompt_key"], "messages": r["messages"], "created_at": at}
                    for r in made
                ],
            )
            fields = [{k: v for k, v in row.items() if k != "messages"} for row in made]
            await connection.execute(rubrics.insert().values(words=vector), fields)
            await connection.execute(shares.insert(), shared)


async def measure(url: str) -> None:
    """Write the rubrics and print the times."""
    settings = Settings(_env_file=None, database_url=url)
    await migrate.prepare(settings.sqlalchemy_url)
    store = Store(settings.sqlalchemy_url)
    for team in ("red", "blue"):
        await store.teams.create(team, Actor())
    await fill(store)
    unused: Any = None
    library = RubricLibrary(store.rubrics, unused, unused, unused, unused)
    print(f"{'search':14}{'rubrics':>8}{'best':>8}{'worst':>8}")
    for name, search in SEARCHES.items():
        times = []
        for _ in range(RUNS):
            begun = time.perf_counter()
            found = await library.list_rubrics(TEAM, search)
            html(found.data, found.quality, found.has_more)
            times.append((time.perf_counter() - begun) * 1000)
        print(f"{name:14}{len(found.data):8}{min(times):8.1f}{max(times):8.1f}", flush=True)
    await store.close()


def html(found: Any, quality: Any, more: bool) -> str:
    """Return the page."""
    return render.page(
        "rubrics.html",
        Frame(caller=TEAM),
        rubrics=found,
        quality=quality,
        has_more=more,
        text="",
        tag="",
        retired="",
    )


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(folder, 'rubrics.db')}"
        asyncio.run(measure(url))


if __name__ == "__main__":
    main()
