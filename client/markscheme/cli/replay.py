"""``markscheme replay``: score the stored rollouts of a run again, and compare."""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from markscheme.cli.output import (
    Json,
    Url,
    connect,
    fail,
    messages,
    progress_bar,
    reported_errors,
    screen,
)
from markscheme.cli.runs import INTERRUPTED, RunId
from markscheme.client import DEFAULT_URL, Client
from markscheme.protocol import ReplayChanges
from markscheme.run_text import replay_url
from markscheme.schema import MeanInterval, Replay, ReplayDetail, ReplayEstimate
from markscheme.vocabulary import Clamp, Thinking, VerifyMode, View

WATCH_S = 2.0
"""Seconds between two looks at a replay."""
LIVE = ("queued", "running", "paused")
CRITERIA_SHOWN = 10
UNKNOWN = "not known"


def replay(
    run_id: RunId,
    rubric: Annotated[
        str | None, typer.Option(metavar="ID", help="Score its prompt's groups under this rubric.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge of the service to score with.")
    ] = None,
    view: Annotated[View | None, typer.Option(help="Part of a trajectory to judge.")] = None,
    verify: Annotated[
        VerifyMode | None, typer.Option(help="Judge rollouts one by one, or a group at once.")
    ] = None,
    thinking: Annotated[
        Thinking, typer.Option(help="Which thoughts are judged: give the run's setting.")
    ] = "auto",
    clamp: Annotated[
        Clamp, typer.Option(help="What becomes of a reward below 0: give the run's setting.")
    ] = "zero",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print its greatest possible cost.")
    ] = False,
    cancel: Annotated[
        str | None, typer.Option(metavar="REPLAY", help="Cancel this replay of the run.")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Score a run's rollouts again and compare.

    Give --rubric, --judge, --view or --verify; the others stay as the run was scored. Without any
    of them the run's replays are listed. The run itself does not change. Ctrl-C leaves the replay
    running.
    """
    changes: ReplayChanges = {
        "rubric_id": rubric,
        "judge": judge,
        "view": view,
        "verify": verify,
        "thinking": thinking,
        "clamp": clamp,
    }
    console = screen()
    with reported_errors(), connect(url) as client:
        if cancel is not None:
            if client.replay(cancel).run_id != run_id:
                fail(f"the replay {cancel} is not one of the run {run_id}")
            console.print(_line(client.cancel_replay(cancel)), soft_wrap=True)
            return
        if not (rubric or judge or view or verify):
            _list(console, client, run_id, as_json=as_json)
            return
        estimate = client.estimate_replay(run_id, **changes)
        if dry_run:
            text = estimate.model_dump_json(indent=2) if as_json else _estimate(estimate)
            console.print(text, soft_wrap=True)
            return
        messages().print(_estimate(estimate), soft_wrap=True)
        begun = client.create_replay(run_id, **changes)
        address = replay_url(client.base_url, begun.id)
        messages().print(address, soft_wrap=True)
        try:
            ended = _follow(client, begun)
        except KeyboardInterrupt:
            messages().print(
                f"The replay goes on. See {address} or 'markscheme replay {run_id}'; "
                f"'markscheme replay {run_id} --cancel {begun.id}' cancels it.",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        if as_json:
            typer.echo(ended.model_dump_json(indent=2))
        else:
            _print(console, ended)
            console.print(address, soft_wrap=True)
        if ended.state != "finished":
            raise typer.Exit(1)


def _follow(client: Client, begun: Replay) -> ReplayDetail:
    """Show progress until the replay is over."""
    with progress_bar("groups", messages()) as bar:
        task = bar.add_task("", total=begun.groups)
        said = None
        while True:
            now = client.replay(begun.id)
            bar.update(task, completed=now.done)
            if now.state not in LIVE:
                return now
            if now.reason != said and now.reason is not None:
                bar.console.print(f"paused: {now.reason}", soft_wrap=True)
            said = now.reason
            time.sleep(WATCH_S)


def _list(console: Console, client: Client, run_id: str, *, as_json: bool) -> None:
    found = client.replays(client.run(run_id).id, limit=100)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    for each in found.data:
        console.print(_line(each), soft_wrap=True)
    if not found.data:
        console.print("No replay yet: give --rubric, --judge, --view or --verify.", soft_wrap=True)
    if found.has_more:
        console.print("there are more than are shown")


def _line(replay: Replay) -> str:
    changed = [
        f"{name} {value}"
        for name, value in (
            ("rubric", replay.rubric_id),
            ("judge", replay.judge),
            ("view", replay.view),
            ("verify", replay.verify),
        )
        if value is not None
    ]
    state = replay.state + (f" ({replay.reason})" if replay.reason else "")
    return (
        f"{replay.id}  {', '.join(changed)}  {replay.done:,} of {replay.groups:,} groups  "
        f"{_cost(replay)}  {state}"
    )


def _estimate(estimate: ReplayEstimate) -> str:
    usd = "a cost that is not known" if estimate.max_usd is None else f"${estimate.max_usd:,.2f}"
    tokens = estimate.prompt_tokens + estimate.completion_tokens
    looked_at = estimate.sampled_groups
    scaled = f" (from {looked_at:,} of the groups)" if looked_at < estimate.groups else ""
    return (
        f"{estimate.groups:,} groups, {estimate.rollouts:,} rollouts: {estimate.calls:,} calls, "
        f"about {tokens:,} tokens, {'about' if scaled else 'at most'} {usd}; "
        f"{estimate.cached_verdicts:,} verdicts are stored already{scaled}"
    )


def _print(console: Console, replay: ReplayDetail) -> None:
    found = replay.comparison
    console.print(_line(replay), soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("reward before", _number(found.before))
    table.add_row("reward after", _number(found.after))
    table.add_row("difference", _interval(found.difference, signed=True))
    table.add_row("rank agreement in groups", _interval(found.rank_agreement))
    table.add_row("advantage changes sign", _interval(found.sign_changes))
    table.add_row("rollouts compared", f"{found.rollouts:,}")
    table.add_row("not known", f"{found.unknown_before:,} before, {found.unknown_after:,} after")
    console.print(table)
    flipped = [each for each in found.criteria if each.lost or each.gained]
    for each in flipped[:CRITERIA_SHOWN]:
        p = UNKNOWN if each.p is None else f"{each.p:.3g}"
        console.print(
            f"−{each.lost:,} +{each.gained:,} of {each.pairs:,} (p {p})  {each.text}",
            soft_wrap=True,
        )
    if flipped[CRITERIA_SHOWN:]:
        console.print(f"{len(flipped) - CRITERIA_SHOWN} more criteria have flips: see the page")


def _cost(replay: Replay) -> str:
    unpriced = f" and {replay.unpriced_calls:,} calls without a price"
    return f"${replay.cost_usd:,.2f}" + (unpriced if replay.unpriced_calls else "")


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _interval(interval: MeanInterval, *, signed: bool = False) -> str:
    value = _number(interval.value, signed=signed)
    if interval.low is None or interval.high is None:
        return value
    low, high = (_number(each, signed=signed) for each in (interval.low, interval.high))
    return f"{value} (95 % interval {low} to {high})"
