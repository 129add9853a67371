"""The server's commands: ``serve``, ``migrate``, ``doctor``."""

import asyncio
import socket
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from markscheme_server.config import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8321,
) -> None:
    """Run the rubric service. Settings come from MARKSCHEME_* variables or a .env file (see the README)."""
    import uvicorn

    from markscheme_server.app import create_app

    settings = _settings()
    if host not in LOOPBACK and settings.api_key is None:
        _fail(f"refusing to listen on {host} without a key: set MARKSCHEME_API_KEY, or listen on 127.0.0.1")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        _fail(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port")
    shown = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                typer.echo(f"listening on http://{shown}:{listener.getsockname()[1]}")
                typer.echo(f"judge: {settings.judge_kind}" + (
                    " (rules, not a language model: it decides criteria that carry a check)"
                    if settings.judge_kind == "builtin" else f" {settings.judge_model} at {settings.judge_origin}"))

    config = uvicorn.Config(create_app(settings), log_level="warning", access_log=False, timeout_graceful_shutdown=25,
                            server_header=False, h11_max_incomplete_event_size=64 * 1024)
    Server(config).run(sockets=[listener])


def migrate() -> None:
    """Bring the database to the newest revision, and say which."""
    from markscheme_server.store.store import Store

    async def run() -> None:
        store = Store(_settings().sqlalchemy_url)
        await store.database.migrate()
        await store.database.close()

    asyncio.run(run())
    typer.echo("the database is up to date")


def doctor() -> None:
    """Check the settings, the database and the judge: does it answer, and does structured output work?"""
    from markscheme_server.doctor import diagnose

    if not asyncio.run(diagnose(_settings(), Console())):
        raise typer.Exit(1)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        name = place if place.startswith(("MARKSCHEME_", "OPENAI_")) else f"MARKSCHEME_{place.upper()}"
        message = str(first["msg"]).removeprefix("Value error, ")
        _fail(f"{name}: {message}" if place else message)


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
