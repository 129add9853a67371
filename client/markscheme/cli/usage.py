"""``markscheme usage``: what judging cost, as a table."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from markscheme.cli.output import Json, Url, connect, fail, reported_errors, screen, table_width
from markscheme.client import DEFAULT_URL
from markscheme.schema import UsageBucket, UsageReport
from markscheme.vocabulary import USAGE_KEYS, UsageKey

_REUSED = "re-use"
"""Role and judge of a bucket that counts reused verdicts: no call was made."""


def usage(
    group_by: Annotated[
        str, typer.Option(help=f"Comma-separated: any of {', '.join(USAGE_KEYS)}.")
    ] = "team",
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="First day to count (UTC).",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="Day after the last one to count (UTC).",
        ),
    ] = None,
    team: Annotated[
        str | None, typer.Option(help="Count this team only; needs a key with the scope admin.")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what judging cost and what re-use saved.

    A team sees its own usage; a key with the scope admin sees every team's.
    """
    keys = [part.strip() for part in group_by.split(",") if part.strip()]
    if unknown := [key for key in keys if key not in USAGE_KEYS]:
        fail(f"--group-by: {unknown[0]!r} is not one of {', '.join(USAGE_KEYS)}")
    with reported_errors(), connect(url) as client:
        report = client.usage(
            cast(list[UsageKey], keys),
            since=since.date() if since else None,
            until=until.date() if until else None,
            team=team,
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    console = screen()
    _print_report(console, report, keys)
    if report.truncated:
        console.print("There are more rows than are shown; the total counts them all.")
    if report.total.unpriced_calls:
        console.print(
            f"The cost of {report.total.unpriced_calls} calls is not known: their judges have no "
            "prices, or the calls were never answered."
        )


def _print_report(console: Console, report: UsageReport, keys: Sequence[str]) -> None:
    """Print a table that fits: with all figures, without those that are zero, or line by line."""
    names = list(_figures(report.total))
    nonzero = [
        name
        for name in names
        if name in ("calls", "cost USD")
        or any(_figures(bucket)[name].strip("0.") for bucket in (*report.data, report.total))
    ]
    for shown in (names, nonzero):
        table = _table(report, keys, shown)
        if table_width(console, table) <= console.width:
            console.print(table)
            return
    for bucket in report.data:
        console.print("  ".join(_key_cells(bucket, keys)), soft_wrap=True)
        console.print(Padding(_sentence(bucket), (0, 0, 0, 4)))
    console.print("total", Padding(_sentence(report.total), (0, 0, 0, 4)), sep="\n")


def _table(report: UsageReport, keys: Sequence[str], shown: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=bool(keys))
    for i, key in enumerate(keys):
        table.add_column(key, no_wrap=True, footer="total" if i == 0 else "")
    total = _figures(report.total)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True, footer=total[name])
    for bucket in report.data:
        figures = _figures(bucket)
        table.add_row(*_key_cells(bucket, keys), *(figures[name] for name in shown))
    if not keys:
        table.add_row(*(total[name] for name in shown))
    return table


def _key_cells(bucket: UsageBucket, keys: Sequence[str]) -> list[str]:
    """Return the bucket's value of each key: ``re-use`` where no call was made, else ``-``."""
    saved_only = bucket.calls == 0 and bucket.cached_verdicts > 0
    cells = []
    for key in keys:
        value = getattr(bucket, key)
        missing = _REUSED if saved_only and key in ("role", "judge") else "-"
        cells.append(missing if value is None else str(value))
    return cells


def _figures(bucket: UsageBucket) -> dict[str, str]:
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


def _sentence(bucket: UsageBucket) -> str:
    """Return the figures of a bucket as one line, without those that are zero."""
    parts = [f"{bucket.calls:,} calls"]
    if bucket.failed_calls:
        parts.append(f"{bucket.failed_calls:,} failed")
    if bucket.prompt_tokens or bucket.completion_tokens:
        cached = f" ({bucket.cached_tokens:,} cached)" if bucket.cached_tokens else ""
        parts.append(
            f"tokens {bucket.prompt_tokens:,} in{cached}, {bucket.completion_tokens:,} out"
        )
    parts.append(f"{bucket.cost_usd:,.4f} USD")
    if bucket.cached_verdicts:
        parts.append(f"{bucket.cached_verdicts:,} verdicts reused")
    if bucket.saved_usd:
        parts.append(f"{bucket.saved_usd:,.4f} USD saved")
    return "; ".join(parts)
