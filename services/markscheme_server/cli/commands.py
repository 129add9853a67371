"""The server's commands: ``serve``, ``migrate``, ``doctor``, ``prune``."""

import asyncio
import os
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from dotenv import dotenv_values
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server import logs
from markscheme_server.config import BUILTIN, CONFIG_FILE, ENV_FILE, HOME, Settings, withheld

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_chosen: ContextVar[Path | None] = ContextVar("settings file", default=None)

log = structlog.get_logger()


def _choose(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.meta[_chosen.name] = path
    _chosen.set(context.meta.get(_chosen.name))  # a group's, where its command states none
    return path


EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        exists=True,
        dir_okay=False,
        callback=_choose,
        is_eager=True,
        help="Read settings from this file beside the environment; default: .env in MARKSCHEME_HOME.",
    ),
]
"""The option of every command that reads settings; :func:`read_settings` finds what was chosen."""


def serve(
    host: Annotated[
        str, typer.Option(envvar="MARKSCHEME_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(envvar="MARKSCHEME_PORT", min=0, max=65535, help="Port; 0 picks a free one."),
    ] = 8321,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on that port; default: MARKSCHEME_WORKERS, else 1."),
    ] = None,
    log_level: Annotated[
        logs.Level,
        typer.Option(
            envvar="MARKSCHEME_LOG_LEVEL", help="From where on events are logged, to stderr."
        ),
    ] = "info",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="First ask each judge what form of structured output it "
            "enforces, as doctor does; the answer is stored for seven "
            "days.",
        ),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Run the rubric service. Settings are MARKSCHEME_* variables, in the environment or in a file (see the README)."""
    logs.configure(log_level)
    from markscheme_server.cli import server as serving

    if workers is not None:
        os.environ["MARKSCHEME_WORKERS"] = str(workers)
    settings = read_settings()
    try:
        for name in settings.judges:
            settings.key_of(name)
    except ValueError as error:
        fail(str(error))
    migrate_database(settings)
    if probe:
        from markscheme_server.cli.doctor import probe_judges

        asyncio.run(probe_judges(settings, Console(stderr=True)))
    guarded = settings.api_key is not None or _has_keys(settings)
    if guarded and settings.api_key is None and settings.key_pepper is None:
        fail(
            "this database has API keys, and they cannot be told apart without the pepper that they were made under: "
            "set MARKSCHEME_KEY_PEPPER"
        )
    if host not in LOOPBACK and not guarded:
        fail(
            f"refusing to listen on {host} without a key: make one ('markscheme keys create', with "
            "MARKSCHEME_KEY_PEPPER set) or set MARKSCHEME_API_KEY, or listen on 127.0.0.1"
        )
    if host not in LOOPBACK:
        settings = settings.model_copy(
            update={"guarded": True}
        )  # also if its database were exchanged
    try:
        listener = serving.listen(host, port)
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"

    def announce() -> None:
        typer.echo("\n".join([f"listening on {address}", *_judges(settings)]))

    if settings.workers == 1:
        serving.run_one(settings, listener, announce)
        return
    try:
        serving.run_workers(settings, log_level, listener, announce)
    except serving.StartFailed:
        fail("a worker could not start; the log above says why")


def migrate(_env_file: EnvFile = None) -> None:
    """Bring the database to the newest revision, and say which."""
    before, after = migrate_database(read_settings())
    typer.echo(
        f"the database is at revision {after}"
        + (
            ", as it was"
            if before == after
            else f"; it was at {before}"
            if before
            else "; it was empty"
        )
    )


def prune(
    older_than: Annotated[str, typer.Option(help="Remove what is older than this: 90d, 12h, 6w.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum",
            help="SQLite: write the file anew afterwards, so that it shrinks; "
            "takes its size in free disk, and writers wait.",
        ),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Remove what old runs left: rollouts, assignments, verdicts, judge calls, answers under idempotency keys, and
    texts and prompts that nothing refers to any more.

    Rubrics with their lineage, inductions and teacher responses stay, and so do the books: what the judge calls cost
    and what was saved is added up by day, run and rubric. The service may go on running. A step that is
    sent again after its verdicts were removed is not answered from what is stored: it simply pays again, and a group
    whose assignment was removed gets its rubric as if it were new. PostgreSQL uses the room again by itself.
    """
    from markscheme_server.cli.prune import parse_age
    from markscheme_server.cli.prune import prune as run

    try:
        age = parse_age(older_than)
    except ValueError as error:
        fail(f"--older-than {older_than}: {error}")
    settings = read_settings()
    if not (yes or dry_run or sys.stdin.isatty()):
        fail(
            "there is no terminal to ask at: add --yes to remove, or --dry-run to see what would go"
        )
    try:
        done = asyncio.run(
            run(
                settings,
                Console(),
                older_than=age,
                dry_run=dry_run,
                vacuum=vacuum,
                agreed=None if yes else lambda: typer.confirm("remove it?"),
            )
        )
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(
            f"pruning stopped ({type(error).__name__}); what was removed stays so, and running it again goes on. "
            "Check MARKSCHEME_DATABASE_URL, and that 'markscheme migrate' was run on it"
        )
    except KeyboardInterrupt:
        fail("stopped; what was removed stays so, and running it again goes on", 130)
    if not done:
        fail("nothing was removed")


def doctor(
    train: Annotated[
        Path | None,
        typer.Option(
            help="A training configuration: also estimate what its judge will be "
            "asked and cost, before it is run."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value pairs that beat that file.")
    ] = None,
    _env_file: EnvFile = None,
) -> None:
    """Check the settings, the database and each judge: does it answer, and right; does it write a rubric; does it
    enforce structured output?

    Each judge is asked two to four small questions. What form of structured output it enforces is stored for seven
    days, and a service that starts in that time begins with it. With --train it also says how many judge calls and
    tokens a training will take, what they cost at the judge's prices, and how long at its limits.
    """
    from markscheme_server.cli.doctor import diagnose, estimate_training

    settings, console = read_settings(), Console()
    logs.configure("error")  # what is learnt of endpoints is in the report
    passed, seconds = asyncio.run(diagnose(settings, console))
    if train is not None:
        passed = estimate_training(train, overrides or [], settings, seconds, console) and passed
    if not passed:
        raise typer.Exit(1)


def migrate_database(settings: Settings) -> tuple[str | None, str | None]:
    """Migrate the database; its revision before and after."""
    from alembic.util import CommandError

    from markscheme_server.store.maintenance.migrate import OtherDatabase, prepare

    try:
        return asyncio.run(prepare(settings.sqlalchemy_url, settings.sqlalchemy_migration_url))
    except CommandError:
        fail(
            "the database is at a revision that this version does not know: a newer one has migrated it. Run that "
            "one, or restore a backup made with this one"
        )
    except OtherDatabase:
        fail(
            "MARKSCHEME_MIGRATION_URL and MARKSCHEME_DATABASE_URL must name one database, as two roles: what was "
            "migrated is not what the service would use"
        )
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(
            f"the database could not be migrated ({type(error).__name__}); check MARKSCHEME_DATABASE_URL"
            + (" and MARKSCHEME_MIGRATION_URL" if settings.migration_url else "")
        )


def _has_keys(settings: Settings) -> bool:
    """Whether a key was ever made for this database."""
    from markscheme_server.store.engine.database import Database, create_engine
    from markscheme_server.store.teams import TeamStore

    async def run() -> bool:
        database = Database(create_engine(settings.sqlalchemy_url))
        try:
            return await TeamStore(database).any_key()
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(f"the database did not answer ({type(error).__name__}); check MARKSCHEME_DATABASE_URL")


def _judges(settings: Settings) -> list[str]:
    """What a person who starts the service should know of its judges, a line a judge."""
    lines: dict[str, list[str]] = {}
    for role, name in settings.roles.items():
        lines.setdefault(name, []).append(role)
    shown = []
    for name, roles in lines.items():
        what = "judge" if len(lines) == 1 else roles[0]
        if name == BUILTIN:
            shown.append(
                f"{what}: builtin (rules, not a language model: it decides criteria that carry a check)"
            )
        else:
            judge = settings.judges[name]
            shown.append(f"{what}: {name}, {judge.model} at {judge.origin}")
    return shown


def read_settings() -> Settings:
    """The settings of the environment and of the settings file; the log says which file that is, and of a file in
    the working directory that it is not read."""
    if not structlog.is_configured():
        logs.configure()
    file = _settings_file()
    try:
        settings = Settings(_env_file=file)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        name = (
            place if place.startswith(("MARKSCHEME_", "OPENAI_")) else f"MARKSCHEME_{place.upper()}"
        )
        message = str(first["msg"]).removeprefix("Value error, ")
        fail(f"{name}: {message}" if place else message)
    _say_what_was_read(file, settings)
    if settings.database_url is None:
        from markscheme_server.store.engine.database import tighten

        tighten(settings.home.expanduser(), 0o700)
    return settings


def _settings_file() -> Path | None:
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    found = Path(os.environ.get("MARKSCHEME_HOME") or HOME).expanduser() / ENV_FILE
    return found if found.is_file() else None


def _say_what_was_read(file: Path | None, settings: Settings) -> None:
    read = [each.resolve() for each in (file, settings.file) if each is not None]
    for each in read:
        log.info("settings_read", file=str(each))
    if file is not None:
        for names, where in zip(
            withheld(os.environ, dotenv_values(file)), ("environment", str(file)), strict=True
        ):
            for name in names:
                log.warning(
                    "key_not_used",
                    key=name,
                    of=where,
                    why="the URL that it would be sent to is stated elsewhere: put both in one place",
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


def fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
