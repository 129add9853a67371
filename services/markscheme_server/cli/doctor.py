"""`markscheme doctor`: check settings, database and judges, and estimate a training's cost."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from markscheme.plan import TrainingPlan
from markscheme_server import logs
from markscheme_server.cli.common import EnvFile, read_settings
from markscheme_server.cli.estimate import CRITERIA, Estimate, Load, UnknownJudge, estimate
from markscheme_server.config import Settings
from markscheme_server.judge_settings import DEFAULT

TRAIN = (sys.executable, "-c", "from markscheme.cli import main; main()", "train")


class PlanError(Exception):
    """The trainer could not tell what a run will ask of the service; the message says why."""


def doctor(
    train: Annotated[
        Path | None,
        typer.Option(
            help="A training configuration: also estimate its judge calls and their cost."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value pairs that override the file of --train.")
    ] = None,
    _env_file: EnvFile = None,
) -> None:
    """Check the settings, the database and each judge.

    Each judge is asked two to four small questions: does it answer correctly, does it write a
    rubric, does it enforce structured output? The last result is stored for seven days, and a
    service that starts within them uses it.

    With --train it also estimates how many judge calls and tokens a training takes, what they
    cost at the judge's prices, and how long they take at its limits.
    """
    from markscheme_server.cli.diagnosis import diagnose

    settings, console = read_settings(), Console()
    logs.configure("error")  # the report says what is learned of endpoints
    passed, seconds = asyncio.run(diagnose(settings, console))
    if train is not None:
        passed = estimate_training(train, overrides or [], settings, seconds, console) and passed
    if not passed:
        raise typer.Exit(1)


def estimate_training(
    config: Path,
    overrides: Sequence[str],
    settings: Settings,
    seconds: Mapping[str, float],
    console: Console,
) -> bool:
    """Print the estimate for a training configuration; false when it cannot be made.

    Args:
        config: The trainer's YAML file.
        overrides: `key=value` pairs that override it.
        settings: Judges, prices and limits.
        seconds: How long one call of a judge takes, for those of which it is known.
        console: Where to print.
    """
    try:
        with console.status(f"reading {config}"):  # loading the trainer takes some seconds
            plan = read_plan(config, overrides)
        estimated = estimate(plan, settings, seconds)
    except (PlanError, UnknownJudge) as error:
        console.print(
            f"FAILED  {config}: {error}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return False
    _show(config, plan, estimated, settings, console)
    return True


def read_plan(config: Path, overrides: Sequence[str]) -> TrainingPlan:
    """Ask `markscheme train --plan`, a process of its own: the server does not import the trainer.

    Raises:
        PlanError: The trainer is not installed, or refuses the configuration.
    """
    done = subprocess.run(
        [*TRAIN, "--plan", "--", str(config), *overrides],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise PlanError(done.stderr.strip() or f"the trainer ended with {done.returncode}")
    try:
        return TrainingPlan.model_validate_json(done.stdout)
    except ValidationError as error:
        raise PlanError("the trainer's plan cannot be read: is it of the same version?") from error


def _show(
    config: Path, plan: TrainingPlan, estimated: Estimate, settings: Settings, console: Console
) -> None:
    def line(words: str) -> None:
        console.print(words, markup=False, highlight=False, soft_wrap=True)

    line(
        f"\n{config}: {plan.steps:,} steps, {plan.groups:,} groups of {plan.rollouts_per_group} = "
        f"{plan.rollouts:,} rollouts, over {plan.prompts:,} prompts; reuse {plan.reuse}, verify "
        f"{plan.verify}"
    )
    if plan.evaluation_rollouts:
        line(f"evaluations: {plan.evaluation_rollouts:,} rollouts more, without new rubrics")
    if not any(load.calls for load in (*estimated.loads, *estimated.shadow)):
        line("no judge calls, and nothing to pay: the builtin judge is rules")
        return
    console.print(_table(estimated))
    if estimated.shadow:
        line("second judge and re-asks are paid apart: no reward depends on them or waits for them")
    for name in estimated.unpriced:
        line(
            f"no prices for {name}: set price_input and price_output of its table in "
            "markscheme.toml"
            + (" (or MARKSCHEME_JUDGE_PRICE_INPUT and _OUTPUT)" if name == DEFAULT else "")
            + ", in USD per million tokens"
        )
    for wait in estimated.waits:
        line(f"{wait.judge}: at least {_duration(wait.hours)} at {wait.limit}")
    line("assumes")
    for assumption in _assumptions(plan, settings):
        line(f"  {assumption}")


def _table(estimated: Estimate) -> Table:
    table = Table("role", "judge", box=None, pad_edge=False)
    for heading in ("calls", "prompt tokens", "reply tokens", "cost USD"):
        table.add_column(heading, justify="right")

    def add(load: Load) -> None:
        table.add_row(
            load.role,
            load.judge,
            f"{load.calls:,}",
            f"{load.prompt_tokens:,}",
            f"{load.completion_tokens:,}",
            "?" if load.cost is None else f"{load.cost:,.2f}",
        )

    for load in estimated.loads:
        add(load)
    table.add_row(
        "both",
        "",
        f"{sum(load.calls for load in estimated.loads):,}",
        f"{sum(load.prompt_tokens for load in estimated.loads):,}",
        f"{sum(load.completion_tokens for load in estimated.loads):,}",
        "?" if estimated.cost is None else f"{estimated.cost:,.2f}",
    )
    for load in estimated.shadow:
        add(load)
    return table


def _assumptions(plan: TrainingPlan, settings: Settings) -> list[str]:
    renewed = {
        "always_new": "a new rubric each time a prompt is visited",
        "frozen": "no rubric is induced",
        "if_fresh": f"a rubric serves {settings.reuse_max_uses} groups (fewer when it no longer "
        "separates them)",
    }[plan.reuse]
    return [
        "one training process: with several, multiply",
        f"prompts of {plan.prompt_characters:,} characters, {plan.teacher_responses} teacher "
        f"responses of {plan.teacher_characters:,}, as in the data; 4 characters a token",
        f"responses of {plan.response_tokens:,} tokens: the most there may be",
        f"{CRITERIA} criteria a rubric; {renewed}",
        "no retries, no thinking tokens, no prefix caching; criteria with a check and stored "
        "verdicts are not deducted",
        "every call takes as long as the test call above",
    ]


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.0f} min"
