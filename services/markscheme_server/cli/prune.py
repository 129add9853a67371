"""``markscheme prune``: what it shows and asks around :class:`markscheme_server.store.maintenance.prune.Pruner`."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from markscheme_server.config import Settings
from markscheme_server.store.engine.database import Database, create_engine
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance.prune import Pruner

_AGE = re.compile(r"([1-9]\d{0,4})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def parse_age(text: str) -> timedelta:
    """``90d``, ``12h`` or ``6w``. Raises :class:`ValueError`."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise ValueError("give an age such as 90d, 12h or 6w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


async def prune(
    settings: Settings,
    console: Console,
    *,
    older_than: timedelta,
    dry_run: bool,
    vacuum: bool,
    agreed: Callable[[], bool] | None,
) -> bool:
    """Remove, with a progress bar and counts by table. ``agreed`` is asked once it is known what would go; ``None``:
    it need not be. False when the answer was no."""
    database = Database(create_engine(settings.sqlalchemy_url))
    sqlite = database.engine.dialect.name == "sqlite"
    before = now() - older_than
    try:
        if dry_run or agreed is not None:
            _show(
                console,
                f"to be removed, as of {before:%Y-%m-%d %H:%M} UTC",
                await _walk(Pruner(database, before, dry=True), console, "counting"),
            )
        if dry_run:
            return True
        if agreed is not None and not agreed():
            return False
        removed = await _walk(Pruner(database, before, dry=False), console, "removing")
        _show(console, "removed", removed)
        if sqlite and vacuum:
            await Pruner(database, before, dry=True).give_back()
        elif sqlite and removed.total():
            console.print(
                "the file keeps its size and fills the room again; --vacuum shrinks it",
                markup=False,
            )
    finally:
        await database.close()
    return True


async def _walk(pruner: Pruner, console: Console, doing: str) -> Counter[str]:
    removed: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(doing, total=await pruner.total())
        async for window in pruner.run():
            removed.update(window.removed)
            progress.update(bar, advance=window.walked, description=f"{doing} {window.table}")
    return removed


def _show(console: Console, title: str, counts: Mapping[str, int]) -> None:
    console.print(f"{title}:", markup=False)
    for table, rows in counts.items():
        console.print(f"{rows:>12,}  {table}", markup=False)
