"""`markscheme serve`: check what can be checked before a port is opened, then serve."""

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console

from markscheme_server import logs
from markscheme_server.cli.common import (
    EnvFile,
    fail,
    migrate_database,
    read_settings,
    run_on_database,
)
from markscheme_server.config import Settings
from markscheme_server.judge_settings import BUILTIN

LOOPBACK = ("127.0.0.1", "::1", "localhost")


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
        typer.Option(min=1, help="Worker processes. Default: MARKSCHEME_WORKERS, else 1."),
    ] = None,
    log_level: Annotated[
        logs.Level,
        typer.Option(envvar="MARKSCHEME_LOG_LEVEL", help="Lowest level to log, on stderr."),
    ] = "info",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="First ask each judge which structured output it enforces, as doctor does. The "
            "result is stored for seven days.",
        ),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Run the service.

    Settings are MARKSCHEME_* variables, in the environment or in a file: see
    docs/configuration.md.
    """
    # Before the imports below: libraries that log must find logging configured.
    logs.configure(log_level)
    from markscheme_server.cli import server

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
        from markscheme_server.cli.diagnosis import probe_judges

        asyncio.run(probe_judges(settings, Console(stderr=True)))
    settings = _check_keys(settings, host)
    try:
        listener = server.listen(host, port)
    except OSError as error:
        said = str(error.strerror).partition(" (while")[0]  # the rest is the address again
        fail(f"cannot listen on {host}:{port}: {said}; choose another with --host or --port")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"

    def announce() -> None:
        typer.echo("\n".join([f"listening on {address}", *_describe_judges(settings)]))

    if settings.workers == 1:
        server.run_one(settings, listener, announce)
        return
    try:
        server.run_workers(settings, log_level, listener, announce)
    except server.StartFailed:
        fail("a worker could not start; the log above says why")


def _check_keys(settings: Settings, host: str) -> Settings:
    """Refuse to listen where anyone could call, and require a key beyond loopback."""
    has_keys = settings.api_key is not None or _has_team_keys(settings)
    if has_keys and settings.api_key is None and settings.key_pepper is None:
        fail(
            "this database has API keys, and they cannot be recognised without the pepper that "
            "they were created under: set MARKSCHEME_KEY_PEPPER"
        )
    if host in LOOPBACK:
        return settings
    if not has_keys:
        fail(
            f"refusing to listen on {host} without a key: create one ('markscheme keys create', "
            "with MARKSCHEME_KEY_PEPPER set) or set MARKSCHEME_API_KEY, or listen on 127.0.0.1"
        )
    # Also if the database were exchanged for one without keys while the service runs.
    return settings.model_copy(update={"require_api_key": True})


def _has_team_keys(settings: Settings) -> bool:
    from markscheme_server.store.engine.database import Database, create_engine
    from markscheme_server.store.teams import TeamStore

    async def run() -> bool:
        database = Database(create_engine(settings.sqlalchemy_url))
        try:
            return await TeamStore(database).any_key()
        finally:
            await database.close()

    return run_on_database(run())


def _describe_judges(settings: Settings) -> list[str]:
    """Say who judges, in one line for each judge that has a role."""
    roles_of: dict[str, list[str]] = {}
    for role, name in settings.roles.items():
        roles_of.setdefault(name, []).append(role)
    lines = []
    for name, roles in roles_of.items():
        what = "judge" if len(roles_of) == 1 else roles[0]
        if name == BUILTIN:
            lines.append(
                f"{what}: builtin (rules, not a language model: it decides criteria that carry a "
                "check)"
            )
        else:
            judge = settings.judges[name]
            lines.append(f"{what}: {name}, {judge.model} at {judge.origin}")
    return lines
