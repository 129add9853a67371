"""``markscheme usage``: what judging cost, as a table."""

import os
import sys
from datetime import datetime
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from markscheme.cli.app import DEFAULT_URL
from markscheme.client import Client
from markscheme.errors import MarkschemeError
from markscheme.schema import UsageBucket, UsageReport
from markscheme.vocabulary import USAGE_KEYS, UsageKey

_WIDTH = 160


def usage(
    group_by: Annotated[
        str, typer.Option(help=f"Any of {', '.join(USAGE_KEYS)}; with commas.")
    ] = "team",
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="From this day on (UTC).")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Up to the day before this one.")
    ] = None,
    team: Annotated[
        str | None, typer.Option(help="One team's; takes a key with the scope admin.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as it is.")] = False,
    url: Annotated[str, typer.Option(help="The service.", envvar="MARKSCHEME_URL")] = DEFAULT_URL,
) -> None:
    """Show what judging cost and what re-use saved, by team, run, rubric, judge or time."""
    keys = [part.strip() for part in group_by.split(",") if part.strip()]
    console = Console(markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    try:
        if unknown := [key for key in keys if key not in USAGE_KEYS]:
            raise ValueError(
                f"--group-by: there is no {unknown[0]!r}: there are {', '.join(USAGE_KEYS)}"
            )
        with Client(url, api_key=os.environ.get("MARKSCHEME_API_KEY")) as client:
            report = client.usage(
                cast(list[UsageKey], keys),
                since=since.date() if since else None,
                until=until.date() if until else None,
                team=team,
            )
    except (MarkschemeError, ValueError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    console.print(_table(report, keys))
    if report.truncated:
        console.print("there are more rows than are shown; the total counts them all")
    if report.total.unpriced_calls:
        console.print(
            f"{report.total.unpriced_calls} calls went to judges without prices: their cost is not known"
        )


def _table(report: UsageReport, keys: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=bool(keys))
    for i, key in enumerate(keys):
        table.add_column(key, footer="total" if i == 0 else "")
    cells = _cells(report.total)
    for name, cell in cells.items():
        table.add_column(name, justify="right", no_wrap=True, footer=cell)
    for bucket in report.data:
        table.add_row(
            *(str(value) if (value := getattr(bucket, key)) is not None else "-" for key in keys),
            *_cells(bucket).values(),
        )
    if not keys:
        table.add_row(*cells.values())
    return table


def _cells(bucket: UsageBucket) -> dict[str, str]:
    return {
        "calls": f"{bucket.calls:,}",
        "failed": f"{bucket.failed_calls:,}",
        "tokens in": f"{bucket.prompt_tokens:,}",
        "cached": f"{bucket.cached_tokens:,}",
        "out": f"{bucket.completion_tokens:,}",
        "cost USD": f"{bucket.cost_usd:,.4f}",
        "verdicts reused": f"{bucket.cached_verdicts:,}",
        "saved USD": f"{bucket.saved_usd:,.4f}",
    }
