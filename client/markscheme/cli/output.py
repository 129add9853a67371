"""What all commands of the client share: options, connections, consoles and error messages."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from markscheme.client import AsyncClient, Client
from markscheme.errors import InvalidArgument, MarkschemeError
from markscheme.vocabulary import View

API_KEY = "MARKSCHEME_API_KEY"
URL = "MARKSCHEME_URL"
EPILOG = (
    f"Environment: {URL} is the service's address. {API_KEY} is your team's API key; "
    "a service without keys needs none."
)
"""The end of the help of every command that talks to the service."""
PIPE_WIDTH = 160
"""Columns of a table that is written to a file or a pipe."""

DATA_HELP = (
    "A .jsonl, .json, .csv or .parquet file, a folder of one kind of them, or a split on the hub "
    "(org/name:split)."
)
"""What the argument DATA of every command takes."""

PromptColumn = Annotated[str | None, typer.Option(help="Column of the prompts. Default: prompt.")]
TeacherColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the teacher responses: a list, or one text. Default: teacher_responses."
    ),
]
RubricColumn = Annotated[
    str | None, typer.Option(help="Column of the rubric ids. Default: rubric_id.")
]
ViewOption = Annotated[
    View | None,
    typer.Option(
        "--view",
        help="Part of a trajectory to judge: reply, the last text of the assistant; assistant, "
        "all its texts; full, also tool calls and results. Default: as the rubric or the judge "
        "says.",
    ),
]
Url = Annotated[str, typer.Option(help="Address of the service.", envvar=URL)]
Json = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]


def connect(url: str) -> Client:
    """Return a client for ``url`` that sends the key in ``MARKSCHEME_API_KEY``, if there is one.

    Ends the command if there can be no service at ``url``.
    """
    with _named_option():
        return Client(url)


def connect_async(url: str) -> AsyncClient:
    """Return what `connect` does, for asyncio."""
    with _named_option():
        return AsyncClient(url)


@contextmanager
def _named_option() -> Iterator[None]:
    """End the command for an argument that no client takes, with the name of the option."""
    try:
        yield
    except InvalidArgument as error:
        fail(f"--url (or {URL}): {error.message}" if error.param == "base_url" else str(error))


def screen() -> Console:
    """Return the console for results: plain text, 160 columns unless a width is known."""
    width_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(
        markup=False, emoji=False, highlight=False, width=None if width_known else PIPE_WIDTH
    )


def table_width(console: Console, table: Table) -> int:
    """Return the columns that a table takes when no cell is cut or wrapped."""
    unlimited = console.options.update_width(sys.maxsize)
    return console.measure(table, options=unlimited).maximum


def messages() -> Console:
    """Return the console for messages and progress bars: stderr, plain text."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def progress_bar(title: str, console: Console) -> Progress:
    """Return a progress bar that counts items, such as ``3/8``."""
    return Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def print_error(text: str) -> None:
    """Print an error message to stderr."""
    messages().print(text, style="red", soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    messages().print(text, style="yellow", soft_wrap=True)


def fail(text: str, status: int = 1) -> NoReturn:
    """Print an error message and end the command."""
    print_error(text)
    raise typer.Exit(status)


def describe_error(error: Exception) -> str:
    """Return the message of an error; for a file that cannot be opened, its name and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def reported_errors() -> Iterator[None]:
    """End the command with one sentence when the service, a file or an argument is at fault."""
    try:
        yield
    except (MarkschemeError, ValueError, OSError) as error:
        fail(describe_error(error))
