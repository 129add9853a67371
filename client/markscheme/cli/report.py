"""``markscheme report``: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from markscheme.cli.output import Url, connect, reported_errors
from markscheme.client import DEFAULT_URL


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write. Default: the run's id and .html."),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a run and its newest groups to one HTML file.

    The file needs neither the service nor the internet.
    """
    with reported_errors(), connect(url) as client:
        html = client.run_report(run)
        path = out if out is not None else Path(run.replace("/", "-") + ".html")
        path.write_text(html, encoding="utf-8")
    typer.echo(str(path))
