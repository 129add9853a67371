"""`markscheme prune`: remove old rows, with a preview, a question and a progress bar."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server.cli.common import (
    EnvFile,
    age_option,
    fail,
    read_settings,
    require_database,
)
from markscheme_server.config import Settings
from markscheme_server.store.engine.database import Database, create_engine
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance.prune import Pruner


def prune(
    older_than: Annotated[
        str, typer.Option(help="Remove rows that are older: 90d, 12h, 6w (days, hours, weeks).")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum",
            help="SQLite: rewrite the file afterwards so that it shrinks. Needs its size in free "
            "disk space, and blocks writers meanwhile.",
        ),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Remove old rollouts, verdicts and judge calls.

    Removes rollouts, assignments, verdicts, judge calls, answers stored under idempotency keys,
    and texts and prompts that nothing refers to any more. Keeps rubrics with their lineage,
    inductions, teacher responses and usage, which is summed by day, run and rubric.

    The service may keep running. A step that is sent again after its verdicts were removed is
    judged and paid again, and a group whose assignment was removed gets its rubric as if it were
    new. PostgreSQL reuses the space by itself.
    """
    age = age_option("--older-than", older_than)
    settings = read_settings()
    if not (yes or dry_run or sys.stdin.isatty()):
        fail(
            "there is no terminal to ask at: add --yes to remove, or --dry-run to see what would "
            "be removed"
        )
    require_database(settings)
    confirm = None if yes else lambda: typer.confirm("remove it?")
    try:
        done = asyncio.run(
            _prune(
                settings, Console(), older_than=age, dry_run=dry_run, vacuum=vacuum, confirm=confirm
            )
        )
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(
            f"pruning stopped ({type(error).__name__}). What was removed stays removed; run it "
            "again to continue. Check MARKSCHEME_DATABASE_URL, and that 'markscheme migrate' was "
            "run on it"
        )
    except KeyboardInterrupt:
        fail("stopped. What was removed stays removed; run it again to continue", 130)
    if not done:
        fail("nothing was removed")


async def _prune(
    settings: Settings,
    console: Console,
    *,
    older_than: timedelta,
    dry_run: bool,
    vacuum: bool,
    confirm: Callable[[], bool] | None,
) -> bool:
    """Count, ask, remove. Returns False when `confirm` says no; `None` does not ask."""
    database = Database(create_engine(settings.sqlalchemy_url))
    sqlite = database.engine.dialect.name == "sqlite"
    before = now() - older_than
    try:
        if dry_run or confirm is not None:
            counts = await _run(Pruner(database, before, dry=True), console, "counting")
            _show(console, f"to be removed, as of {before:%Y-%m-%d %H:%M} UTC", counts)
        if dry_run:
            return True
        if confirm is not None and not confirm():
            return False
        removed = await _run(Pruner(database, before, dry=False), console, "removing")
        _show(console, "removed", removed)
        if sqlite and vacuum:
            await Pruner(database, before, dry=True).vacuum()
        elif sqlite and removed.total():
            console.print(
                "the file keeps its size and its free space is reused; --vacuum shrinks it",
                markup=False,
            )
    finally:
        await database.close()
    return True


async def _run(pruner: Pruner, console: Console, doing: str) -> Counter[str]:
    removed: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(doing, total=await pruner.total())
        async for batch in pruner.run():
            removed.update(batch.deleted)
            progress.update(bar, advance=batch.scanned, description=f"{doing} {batch.table}")
    return removed


def _show(console: Console, title: str, counts: Mapping[str, int]) -> None:
    console.print(f"{title}:", markup=False)
    for table, rows in counts.items():
        console.print(f"{rows:>12,}  {table}", markup=False)
