"""The commands ``markscheme train`` and ``markscheme demo``: arguments in, exit codes out.

Torch is imported inside the commands, so that ``markscheme --help`` stays quick.
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from markscheme.client import Client
from markscheme.errors import MarkschemeError
from markscheme_train.errors import Interrupted, Stopped, TrainError

FAILED = 1
TRY_AGAIN = 75
"""The status (sysexits' EX_TEMPFAIL) of a run that was saved and may be started again with --resume."""
INTERRUPTED = 130


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; its keys are TrainConfig's fields.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value pairs that beat the file.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Where unset keys take their values from: grpo, ropd, ropd-paper, "
            "sdpo, srpo or srpo-rubric; beats the file's."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Go on if output_dir holds a run, else begin one: "
            "for containers and units that are "
            "restarted.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print the size of the run as JSON, for 'markscheme doctor --train', and stop.",
        ),
    ] = False,
) -> None:
    """Train a causal language model on rubric rewards from a running service."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from markscheme_train.config import load_config
    from markscheme_train.plan import plan as make_plan
    from markscheme_train.progress import LiveTable
    from markscheme_train.training import begun, quieten
    from markscheme_train.training import train as run

    console = Console(
        quiet=os.environ.get("RANK", "0") != "0"
    )  # of several processes the first one shows the run
    quieten()
    stated = [*(overrides or []), *([f"preset={preset}"] if preset else [])]
    try:
        if plan:
            typer.echo(make_plan(config, stated).model_dump_json())
            return
        settings = load_config(config, stated)
        resume = resume or (auto_resume and begun(Path(settings.output_dir)))
        client = Client(settings.markscheme_url, api_key=os.environ.get("MARKSCHEME_API_KEY"))
        try:
            with LiveTable(console, title="training") as live:
                output = run(
                    settings, client, resume=resume, on_record=live.show, on_wait=live.wait
                )
        finally:
            client.close()
    except Interrupted as error:
        _fail(str(error), TRY_AGAIN)
    except Stopped as error:
        _fail(str(error), INTERRUPTED)
    except (TrainError, MarkschemeError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(
            "stopped before the step was finished; go on from the last checkpoint with --resume",
            INTERRUPTED,
        )
    console.print(f"model, checkpoints and steps.jsonl: {output}", markup=False)


def demo(
    room: Annotated[
        Path, typer.Option(help="Where the model, the service's data and the report go.")
    ] = Path("build"),
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps; 5 go once through the prompts.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Seed of training and of evaluation.")] = 0,
    url: Annotated[
        str | None,
        typer.Option(
            help="A running service, asked with the key in MARKSCHEME_API_KEY; "
            "default: one is started for the demo."
        ),
    ] = None,
) -> None:
    """Train SmolLM2-135M on IFEval prompts with rubric rewards, on this machine's processor, and report.

    Stopped in the middle and started again with the same options, it goes on from its last checkpoint.
    """
    _stay_offline()
    from markscheme_train.demo.run import DemoSettings, run_demo

    try:
        run_demo(DemoSettings(room=room, steps=steps, seed=seed), Console(), url=url)
    except Interrupted as error:
        why = str(error).partition("\n")[0]
        _fail(f"{why}\nThe demo goes on when it is started again.", TRY_AGAIN)
    except (KeyboardInterrupt, Stopped):
        _fail("stopped, and nothing was left running; started again, the demo goes on", INTERRUPTED)
    except (TrainError, MarkschemeError) as error:
        _fail(str(error))


def control(
    room: Annotated[Path, typer.Option(help="Where the model and the service's data go.")] = Path(
        "build"
    ),
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = Path(
        "benchmarks/results"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 3,
) -> None:
    """Run the demo's training with true and with shuffled rewards, paired, over several seeds."""
    _stay_offline()
    from markscheme_train.demo.control import run_control

    try:
        run_control(room, results, seeds=seeds, console=Console())
    except (TrainError, MarkschemeError) as error:
        _fail(str(error))


def _stay_offline() -> None:
    """Everything the demo needs is on disk once pip has fetched the model; Hugging Face's hub is never asked."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _fail(message: str, code: int = FAILED) -> None:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
