"""What trials of training methods share: one run, and many that go on where they were stopped.

A finished run is appended to `runs.jsonl` in the work folder and never run again.
"""

import json
import logging
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from markscheme.jsonl import read_lines
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.data import Example
from markscheme_train.reward import RubricReward
from markscheme_train.step_log import StepRecord, StepRecorder
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import build_trainer, eos_token_ids, silence_libraries
from training.arms import ROLLOUTS, Arm
from training.graders import Grader, Judge

BLOCK = 10
"""Steps that a stored metric is the mean of."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training to do.

    `pretraining` is the number of steps of the task's model before it.
    """

    arm: Arm
    learning_rate: float
    seed: int
    steps: int
    pretraining: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other runs."""
        return (self.arm.task, self.arm.name, self.learning_rate, self.seed, self.steps)


@dataclass(frozen=True)
class Trained:
    """A finished training.

    `successes` are the shares of right answers, batch by batch.
    """

    trainer: MarkschemeTrainer
    successes: Sequence[float]
    records: Sequence[StepRecord]
    seconds: float

    @property
    def model(self) -> Any:
        """The trained model."""
        return self.trainer.model


def train(
    run: Run,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    judge: Judge,
    *,
    max_tokens: int,
    callbacks: Callable[[MarkschemeTrainer], Sequence[TrainerCallback]] = lambda trainer: (),
) -> Trained:
    """Train a model as a run says, in place.

    Args:
        run: The run.
        model: The model.
        tokenizer: Its tokenizer.
        prompts: What it is trained on.
        judge: Knows what is right.
        max_tokens: Length limit of a rollout.
        callbacks: Makes further callbacks.
    """
    grader = Grader(judge, run.arm.scale, run.seed)
    records: list[StepRecord] = []
    with TemporaryDirectory() as folder:
        reward = RubricReward(
            grader,
            num_generations=ROLLOUTS,
            run_id="trial",
            eos_token_ids=eos_token_ids(model, tokenizer),
        )
        trainer = build_trainer(
            configured(run, Path(folder), max_tokens),
            model,
            tokenizer,
            [Example(prompt=prompt) for prompt in prompts],
            reward,
        )
        for callback in callbacks(trainer):
            trainer.add_callback(callback)
        trainer.add_callback(StepRecorder(trainer, Path(folder) / "steps.jsonl", records.append))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return Trained(trainer, grader.successes, records, seconds)


def configured(run: Run, out: Path, max_tokens: int) -> TrainConfig:
    """Return the preset at the scale of the task: one update a batch, a constant rate."""
    return build_config(
        {
            "model": "given",
            "data": "given",
            "output_dir": str(out),
            "preset": run.arm.preset,
            "seed": run.seed,
            "max_steps": run.steps,
            "learning_rate": run.learning_rate,
            "warmup_steps": 0,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": ROLLOUTS * run.arm.prompts,
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 1,
            "num_generations": ROLLOUTS,
            "max_completion_length": max_tokens,
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            **run.arm.settings,
        }
    )


def as_stored(run: Run, done: Trained | None) -> Result:
    """Return what is stored of every finished run; `None`: it has no step."""
    return {
        "task": run.arm.task,
        "arm": run.arm.name,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "steps": run.steps,
        "prompts_a_step": run.arm.prompts,
        "seconds": round(done.seconds, 1) if done else 0.0,
        "curve": [round(share, 4) for share in done.successes] if done else [],
        "metrics": in_blocks([record.metrics for record in done.records]) if done else {},
    }


def stored(workdir: Path) -> list[Result]:
    """Return the finished runs."""
    file = workdir / "runs.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in read_lines(file, complete_only=True)]


def store(workdir: Path, result: Mapping[str, Any]) -> None:
    """Append a finished run, in place of half a line that a killed process has left."""
    with (workdir / "runs.jsonl").open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(result).encode() + b"\n")


def process_pool(workers: int) -> Executor:
    """Return processes that Ctrl-C does not reach: they finish what they have begun."""
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=prepare_process,
    )


def prepare_process() -> None:
    """Make this a process of the pool: silent, on one thread, out of the reach of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    silence_libraries()
    # What the collapse guard finds is in the metrics.
    logging.getLogger("markscheme_train").setLevel(logging.ERROR)


def carry_out(
    runs: Sequence[Run],
    workdir: Path,
    pool: Executor,
    workers: int,
    console: Console,
    *,
    prepare: Callable[[Sequence[Run]], None],
    do: Callable[[Run, Path], Result],
) -> None:
    """Do the runs that are not stored yet, and store each when it is finished.

    Args:
        runs: The runs.
        workdir: The work folder.
        pool: Where they run.
        workers: How many at a time.
        console: Where progress is printed.
        prepare: Called before, with the runs that are not stored.
        do: Does a run, in the pool.
    """
    finished = {
        (r["task"], r["arm"], r["learning_rate"], r["seed"], r["steps"]) for r in stored(workdir)
    }
    missing = [run for run in runs if run.key not in finished]
    if not missing:
        return
    columns = (
        TextColumn("{task.description:44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(
            "preparing the model", total=len(runs), completed=len(runs) - len(missing)
        )

        def keep(result: Mapping[str, Any]) -> None:
            store(workdir, result)
            progress.update(bar, advance=1, description=line(result))

        prepare(missing)
        waiting, running = iter(missing), set[Future[Result]]()
        try:
            while True:
                for run in islice(waiting, workers - len(running)):
                    running.add(pool.submit(do, run, workdir))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    keep(future.result())
        except KeyboardInterrupt:
            progress.update(bar, description="finishing what is running")
            for future in running:
                keep(future.result())
            raise


def line(result: Mapping[str, Any]) -> str:
    """Return a result in a few words."""
    name = f"{result['task']}/{result['arm']} {result['learning_rate']:g} seed {result['seed']}"
    last = result["curve"][-BLOCK:]
    return f"{name}: {statistics.fmean(last):.2f}" if last else name


def in_blocks(steps: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """Return each metric's means over blocks of ten steps; `None` where it was not known."""

    def mean(name: str, block: Sequence[Mapping[str, float | None]]) -> float | None:
        known = [value for step in block if (value := step.get(name)) is not None]
        return float(f"{statistics.fmean(known):.4g}") if known else None

    blocks = [steps[start : start + BLOCK] for start in range(0, len(steps), BLOCK)]
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: [mean(name, block) for block in blocks] for name in names}
