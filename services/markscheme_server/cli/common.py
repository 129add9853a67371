"""What the server's commands share: settings, the database, tables, and how a command fails."""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import structlog
import typer
from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server import logs
from markscheme_server.config import CONFIG_FILE, ENV_FILE, HOME, Settings, unused_keys, variable_of
from markscheme_server.errors import ServiceError

if TYPE_CHECKING:
    from markscheme_server.store.store import Store

T = TypeVar("T")
_AGE = re.compile(r"([1-9]\d{0,4})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
NO_DATABASE = (
    "'markscheme migrate' creates it, and so does 'markscheme serve'. If the service uses another "
    "one, give this command the service's MARKSCHEME_HOME, MARKSCHEME_DATABASE_URL or --env-file"
)
"""What to do where a command finds no database."""
_env_file: ContextVar[Path | None] = ContextVar("settings file", default=None)

log = structlog.get_logger()


def _remember_env_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.meta[_env_file.name] = path
    # A command without the option has the one of its group: `teams --env-file FILE list`.
    _env_file.set(context.meta.get(_env_file.name))
    return path


EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        exists=True,
        dir_okay=False,
        callback=_remember_env_file,
        is_eager=True,
        help="Read settings from this file and the environment. Default: .env in MARKSCHEME_HOME.",
    ),
]
"""The option of every command that reads settings; `read_settings` uses the file."""


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command: the message on stderr, the exit status `code`."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def read_settings() -> Settings:
    """Read the settings, and log which files they come from and which files were ignored."""
    if not structlog.is_configured():
        logs.configure()
    file = _settings_file()
    try:
        settings = Settings(_env_file=file)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        variable = variable_of(first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        fail(f"{variable}: {message}" if variable else message)
    except SettingsError as error:
        # A judge has a variable for each of its fields, and none for all of it.
        field = re.search(r'"(\w+)"', str(error))
        name = f"MARKSCHEME_{field[1].upper()}" if field else "a variable"
        fail(f"{name} is not known; docs/configuration.md has those of a judge and a teacher")
    except UnicodeDecodeError:
        fail(f"{file} is not UTF-8")
    except ValueError as error:  # of a file that holds a secret
        fail(str(error))
    _log_files(file, settings)
    if settings.database_url is None:
        # The default database lies in this folder, so that its permissions are ours to set.
        from markscheme_server.store.engine.database import tighten_permissions

        tighten_permissions(settings.home.expanduser(), 0o700)
    return settings


def _settings_file() -> Path | None:
    stated = _env_file.get()
    if stated is not None:
        return stated
    found = Path(os.environ.get("MARKSCHEME_HOME") or HOME).expanduser() / ENV_FILE
    return found if found.is_file() else None


def _log_files(file: Path | None, settings: Settings) -> None:
    read = [each.resolve() for each in (file, settings.file) if each is not None]
    for each in read:
        log.info("settings_read", file=str(each))
    if file is not None:
        ignored = unused_keys(os.environ, dotenv_values(file))
        for names, place in zip(ignored, ("environment", str(file)), strict=True):
            for name in names:
                log.warning(
                    "key_not_used",
                    key=name,
                    of=place,
                    why="the URL it would be sent to is set elsewhere: put both in one place",
                )
    for name, hint in (
        (ENV_FILE, "name it with --env-file"),
        (CONFIG_FILE, "name it in MARKSCHEME_CONFIG"),
    ):
        here = Path(name).resolve()
        if here.is_file() and here not in read:
            log.warning(
                "settings_not_read", file=str(here), hint=f"{hint}, or move it into MARKSCHEME_HOME"
            )


def migrate_database(settings: Settings) -> tuple[str | None, str | None]:
    """Migrate the database; return its revision before and after."""
    from alembic.util import CommandError

    from markscheme_server.store.maintenance.migrate import OtherDatabase, prepare

    try:
        return asyncio.run(prepare(settings.sqlalchemy_url, settings.sqlalchemy_migration_url))
    except CommandError:
        fail(
            "the database is at a revision that this version does not know: a newer one has "
            "migrated it. Run that one, or restore a backup made with this one"
        )
    except OtherDatabase:
        fail(
            "MARKSCHEME_MIGRATION_URL and MARKSCHEME_DATABASE_URL must name one database, as two "
            "roles: what was migrated is not what the service would use"
        )
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(
            f"the database could not be migrated ({type(error).__name__}); check "
            "MARKSCHEME_DATABASE_URL"
            + (" and MARKSCHEME_MIGRATION_URL" if settings.migration_url else "")
        )


def name_database(settings: Settings) -> str:
    """Return the database's file, or its URL without the password."""
    url = make_url(settings.sqlalchemy_url)
    if settings.is_sqlite:
        return str(Path(url.database or "").absolute())
    shown = url.set(drivername=url.get_backend_name(), query={})
    return shown.render_as_string()


def require_database(settings: Settings) -> None:
    """Say on stderr which database the command opens; end it where there is none.

    Only `migrate` and `serve` create one: a command that made one in passing would answer from an
    empty database that nobody meant.
    """
    from markscheme_server.store.engine.database import DatabaseMissing
    from markscheme_server.store.maintenance.migrate import find_revision

    name = name_database(settings)
    try:
        revision = run_on_database(find_revision(settings.sqlalchemy_url))
    except DatabaseMissing:
        fail(f"there is no database {name}: {NO_DATABASE}")
    if revision is None:
        fail(f"the database {name} has no tables of Markscheme: {NO_DATABASE}")
    typer.echo(f"database: {name}", err=True)


def run_with_store(work: "Callable[[Store, Settings], Awaitable[T]]") -> T:
    """Migrate the database of the settings, which must exist; return what `work` does with it."""
    from markscheme_server.store.store import Store

    settings = read_settings()
    logs.configure("warning")
    require_database(settings)
    before, after = migrate_database(settings)
    if before != after:
        typer.echo(f"note: it was at revision {before} and is at {after} now", err=True)

    async def run() -> T:
        store = Store(settings.sqlalchemy_url)
        try:
            return await work(store, settings)
        finally:
            await store.close()

    try:
        return run_on_database(run())
    except ServiceError as error:
        fail(error.message)


def run_on_database(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` does; end the command when the database does not answer.

    Raises `DatabaseMissing` for a SQLite file that does not exist.
    """
    from markscheme_server.store.engine.database import DatabaseMissing

    try:
        return asyncio.run(work)
    except DatabaseMissing:
        raise
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(f"the database did not answer ({type(error).__name__}); check MARKSCHEME_DATABASE_URL")


def parse_age(text: str) -> timedelta:
    """Read `90d`, `12h` or `6w`.

    Raises:
        ValueError: The text is none of these.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise ValueError("give an age such as 90d, 12h or 6w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def age_option(option: str, text: str) -> timedelta:
    """Read the age that an option states, or end the command."""
    try:
        return parse_age(text)
    except ValueError as error:
        fail(f"{option} {text}: {error}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: int) -> None:
    """Print a table on stdout; the first `whole` columns are never folded or cut."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        numeric = column.endswith("USD") or column == "rpm"
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=number < whole, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    # To a file or a pipe a row is one line, whatever its length.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
