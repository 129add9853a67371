"""The commands `markscheme train`, `demo` and `demo-control`.

Torch is imported inside the commands, so that `markscheme --help` stays fast.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from markscheme import requests
from markscheme.client import Client
from markscheme.errors import (
    AuthenticationFailed,
    InvalidArgument,
    InvalidRequest,
    MarkschemeError,
)
from markscheme.protocol import UNAUTHORIZED
from markscheme.vocabulary import ReusePolicy
from markscheme_train.errors import Interrupted, Stopped, TrainError

FAILED = 1
TRY_AGAIN = 75
"""Exit status (EX_TEMPFAIL) of a run that was saved and can be started again with --resume."""
INTERRUPTED = 130


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML file. With --keys a section, or a word to look for."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value pairs that override the file.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Where unset keys take their values from: grpo, ropd, ropd-paper, "
            "sdpo, srpo or srpo-rubric; overrides the file's."
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
    keys: Annotated[
        bool,
        typer.Option(
            "--keys",
            help="List the keys of a section, or those that a word is in, with help, default and "
            "the preset's value, and stop.",
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
    """Train a language model on rubric rewards.

    Needs a running service; its API key is read from MARKSCHEME_API_KEY.

    \b
    Sections of keys, with examples (markscheme train --keys SECTION lists one):
      data        model=Qwen/Qwen3-0.6B data=prompts.jsonl
      rewards     markscheme_url=http://127.0.0.1:8321 reuse=frozen
      method      preset=srpo success_threshold=0.7
      batch       num_generations=8 prompts_per_step=32 max_completion_length=512
      optimiser   max_steps=200 learning_rate=5e-6
      adapter     lora_rank=16 lora_target_modules='[q_proj, v_proj]'
      evaluation  eval_data=held_out.jsonl eval_steps=20 load_best_model_at_end=true
      saving      output_dir=runs/first save_steps=20 save_total_limit=3
      logging     report_to=wandb run_name=first log_completions=true
      vllm        use_vllm=true vllm_mode=colocate
      more        all other keys of TRL and transformers

    Exit status: 0 finished, 1 failed, 75 saved and worth starting again with --resume, 130
    interrupted.
    """  # noqa: D301  # click's mark for lines that stay as they are
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if keys:
        _print_keys(None if config is None else str(config), preset or "ropd")
        return
    if config is None:
        raise typer.BadParameter("name a YAML file, or list the keys with --keys")
    from markscheme_train.config import load_config
    from markscheme_train.plan import plan as make_plan
    from markscheme_train.progress import LiveTable, print_end
    from markscheme_train.run_folder import has_run
    from markscheme_train.run_report import CALL_S, RunReport
    from markscheme_train.step_log import StepRecord
    from markscheme_train.training import silence_libraries
    from markscheme_train.training import train as run

    # Of several processes only rank 0 draws.
    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    silence_libraries()
    stated = [*(overrides or []), *([f"preset={preset}"] if preset else [])]
    try:
        if plan:
            typer.echo(make_plan(config, stated).model_dump_json())
            return
        settings = load_config(config, stated)
        resume = resume or (auto_resume and has_run(Path(settings.output_dir)))
        key = os.environ.get("MARKSCHEME_API_KEY")
        try:
            client = Client(settings.markscheme_url, api_key=key)
        except InvalidArgument as error:
            place = "markscheme_url" if error.param == "base_url" else "MARKSCHEME_API_KEY"
            raise TrainError(f"{place}: {error.message}") from error
        try:
            _check_key(client, key, settings.reuse)
            live = LiveTable(console, title="training")
            report = RunReport(
                client.with_options(timeout=CALL_S, max_retries=0),
                settings,
                on_url=live.show_url,
                on_findings=live.show_findings,
                on_warning=live.warn,
            )

            def show(record: StepRecord) -> None:
                report.add(record)
                live.show(record)

            try:
                with report, live:
                    output = run(
                        settings,
                        client,
                        resume=resume,
                        on_start=report.start,
                        on_record=show,
                        on_evaluation=live.show_evaluation,
                        on_wait=live.wait,
                        on_warning=live.warn,
                    )
            finally:
                print_end(console, report.findings, report.url)
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
    workdir: Annotated[
        Path, typer.Option(help="Where the model, the service's data and the report go.")
    ] = Path("build"),
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps; 5 go once through the prompts.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Seed of training and of evaluation.")] = 0,
    url: Annotated[
        str | None,
        typer.Option(
            help="A running service, whose key is in MARKSCHEME_API_KEY; "
            "default: one is started for the demo."
        ),
    ] = None,
) -> None:
    """Train SmolLM2-135M here on rubric rewards, and report.

    Runs on the CPU, in about ten minutes. If it is stopped, run it again with the same options: it
    continues from its last checkpoint.
    """
    _stay_offline()
    from markscheme_train.demo.run import DemoSettings, run_demo

    try:
        run_demo(DemoSettings(workdir=workdir, steps=steps, seed=seed), Console(), url=url)
    except Interrupted as error:
        why = str(error).partition("\n")[0]
        _fail(f"{why}\nThe demo goes on when it is started again.", TRY_AGAIN)
    except (KeyboardInterrupt, Stopped):
        _fail("stopped, and nothing was left running; started again, the demo goes on", INTERRUPTED)
    except (TrainError, MarkschemeError) as error:
        _fail(str(error))


def control(
    workdir: Annotated[
        Path, typer.Option(help="Where the model and the service's data go.")
    ] = Path("build"),
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = Path(
        "benchmarks/results"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 3,
) -> None:
    """Repeat the demo with true and with shuffled rewards.

    Runs both for several seeds and writes a table: shuffled rewards must not train.
    """
    _stay_offline()
    from markscheme_train.demo.control import run_control

    try:
        run_control(workdir, results, seeds=seeds, console=Console())
    except (TrainError, MarkschemeError) as error:
        _fail(str(error))


def _check_key(client: Client, key: str | None, reuse: ReusePolicy) -> None:
    """Raise `TrainError` before a model is loaded if the key cannot be used for a training.

    It is missing or wrong, or lacks a scope: `score`, and `induce` unless `reuse` is `frozen`. A
    service that is away raises nothing: the run waits for it when it needs rewards.
    """
    try:
        for path in ("/v1/scores", *(["/v1/rubrics:induce"] if reuse != "frozen" else [])):
            # The probe has no content, which is refused only once the key was accepted.
            with suppress(InvalidRequest):
                client._send(requests.probe(path))
    except AuthenticationFailed as error:
        if error.status != UNAUTHORIZED:
            why = f"refuses the key in MARKSCHEME_API_KEY: {error.message}"
        elif key:
            why = f"refuses the key in MARKSCHEME_API_KEY ({error.code})"
        else:
            why = "needs an API key, and MARKSCHEME_API_KEY is not set"
        raise TrainError(
            f"the rubric service at {client.base_url} {why}. Set MARKSCHEME_API_KEY to a key of "
            "your team with the scopes score and induce. No model was loaded"
        ) from error
    except MarkschemeError:
        pass


def _print_keys(word: str | None, preset: str) -> None:
    from markscheme_train.keys import print_keys

    try:
        print_keys(Console(), word, preset)
    except TrainError as error:
        _fail(str(error))


def _stay_offline() -> None:
    """Keep Hugging Face's hub out: pip has fetched everything that the demo needs."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _fail(message: str, code: int = FAILED) -> None:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)
