"""Training methods beside each other on small tasks whose self-teacher knows more than its student.

    python -m training.methods [--only copy/srpo …] [--seeds 5] [--workers 1] [--quick] [--large]

Every run goes through the unchanged `MarkschemeTrainer` and `RubricReward`. Its judge is a function
in this process that knows the right answers (`training.graders`): a service would decide the same
by a check, and only take longer. A finished run is appended to `runs.jsonl` in the work folder and
never run again. At the end, also after Ctrl-C, the report is written from all that there is.
"""

import argparse
import fnmatch
import json
import logging
import multiprocessing
import signal
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import TrainerCallback

from markscheme.jsonl import read_lines
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.data import Example
from markscheme_train.reward import RubricReward
from markscheme_train.step_log import StepRecord, StepRecorder
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import build_trainer, silence_libraries
from training.arms import LARGE, ROLLOUTS, SMALL, Arm
from training.graders import Grader
from training.summary import report
from training.tasks import (
    ID,
    LENGTH,
    MAX_TOKENS,
    TASKS,
    Task,
    pretrain,
    reprompt_in_task_words,
    success_rate,
    tokenizer,
)

BLOCK = 10
"""Steps that a stored metric is the mean of; the teacher's gain is measured as often."""
QUICK_STEPS = 4


@dataclass(frozen=True)
class Run:
    """One training to do.

    `pretraining` is the number of steps of the task's model before it.
    """

    arm: Arm
    learning_rate: float
    seed: int
    steps: int
    pretraining: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other runs."""
        return (self.arm.task, self.arm.name, self.learning_rate, self.seed, self.steps)


def main() -> None:
    """Run what is missing and write the report."""
    parser = argparse.ArgumentParser(prog="python -m training.methods")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="TASK/ARM", help="with * for any letters"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--large", action="store_true", help="the task of 2 million weights")
    parser.add_argument("--workdir", type=Path, default=Path("build/methods"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    workdir, out = arguments.workdir, arguments.out
    if arguments.quick:
        workdir = out = workdir / "quick"
    workdir.mkdir(parents=True, exist_ok=True)
    groups = LARGE if arguments.large else SMALL
    arms = [arm for group in groups.values() for arm in group]
    wanted = [
        run
        for run in planned(arms, range(arguments.seeds), quick=arguments.quick)
        if any(
            fnmatch.fnmatch(f"{run.arm.task}/{run.arm.name}", pattern) for pattern in arguments.only
        )
    ]
    if not wanted:
        parser.error(
            "no arm is named so; there is " + ", ".join(f"{a.task}/{a.name}" for a in arms)
        )
    console = Console()
    try:
        with process_pool(arguments.workers) as pool:
            carry_out(wanted, workdir, pool, arguments.workers, console)
    except KeyboardInterrupt:
        console.print("Stopped. Run it again to go on.")
    tasks = {arm.task for arm in arms}
    report(
        [result for result in stored(workdir) if result["task"] in tasks],
        [
            json.loads(file.read_text())
            for file in sorted(workdir.glob("model-*.json"))
            if file.stem.removeprefix("model-") in tasks
        ],
        groups,
        out / ("methods-large" if arguments.large else "methods"),
        console,
    )


def planned(arms: Sequence[Arm], seeds: Iterable[int], *, quick: bool) -> list[Run]:
    """Return all runs, seed by seed: whatever is finished first is a comparison already."""
    return [
        Run(
            arm,
            rate,
            seed,
            QUICK_STEPS if quick else arm.steps,
            20 if quick else TASKS[arm.task].steps,
        )
        for seed in ([0] if quick else seeds)
        for arm in arms
        for rate in (arm.rates[:1] if quick else arm.rates)
    ]


def stored(workdir: Path) -> list[dict[str, Any]]:
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
    runs: Sequence[Run], workdir: Path, pool: Executor, workers: int, console: Console
) -> None:
    """Do the runs that are not stored yet, and store each when it is finished."""
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
        bar = progress.add_task("pre-training", total=len(runs), completed=len(runs) - len(missing))

        def keep(result: Mapping[str, Any]) -> None:
            store(workdir, result)
            progress.update(bar, advance=1, description=line(result))

        pretraining = dict.fromkeys((run.arm.task, run.pretraining) for run in missing)
        list(pool.map(partial(ensure_model, workdir), *zip(*pretraining, strict=True)))
        waiting, running = iter(missing), set[Future[dict[str, Any]]]()
        try:
            while True:
                for run in islice(waiting, workers - len(running)):
                    running.add(pool.submit(carried_out, run, workdir))
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
    last = statistics.fmean(result["curve"][-BLOCK:])
    return (
        f"{result['task']}/{result['arm']} {result['learning_rate']:g} seed {result['seed']}: "
        f"{last:.2f}"
    )


def ensure_model(workdir: Path, name: str, steps: int) -> None:
    """Pre-train a task's model and measure it, unless that is done."""
    task, file = TASKS[name], workdir / f"model-{name}.json"
    if file.is_file():
        return
    started = time.perf_counter()
    model = pretrain(task, steps)
    seconds = time.perf_counter() - started
    torch.save(model.state_dict(), file.with_suffix(".pt"))
    file.write_text(
        json.dumps(
            {
                "task": name,
                "weights": sum(weight.numel() for weight in model.parameters()),
                "pretraining_steps": steps,
                "pretraining_s": round(seconds, 1),
                **abilities(model, task),
            }
        )
    )


def abilities(model: Any, task: Task) -> dict[str, float]:
    """Return success rates: on the prompts trained on, also after a right answer, and others."""
    rows = slice(0, task.trained)
    samples = max(2, 512 // task.trained)
    rates = {
        "alone": success_rate(model, task, rows, samples=samples),
        "shown_the_answer": success_rate(model, task, rows, shown=True, samples=samples),
    }
    if task.held_out:
        held_out = slice(len(task.prompts) - task.held_out, None)
        rates["held_out"] = success_rate(model, task, held_out, samples=samples)
    return rates


@dataclass(frozen=True)
class Trained:
    """A finished training.

    `successes` are the shares of right answers, batch by batch. `teacher_gains` are those of
    `TeacherGains`, empty where they were not measured.
    """

    model: Any
    successes: Sequence[float]
    records: Sequence[StepRecord]
    teacher_gains: Sequence[float]
    seconds: float


def train(run: Run, workdir: Path, *, measure_gains: bool = False) -> Trained:
    """Train the pre-trained model of a run's task as the run says."""
    task = TASKS[run.arm.task]
    model = pretrain(task, 0)
    model.load_state_dict(torch.load(workdir / f"model-{task.name}.pt", weights_only=True))
    grader = Grader(task, run.arm.scale, run.seed)
    records: list[StepRecord] = []
    with TemporaryDirectory() as folder:
        reward = RubricReward(
            grader, num_generations=ROLLOUTS, run_id="trial", eos_token_ids=[ID["<eos>"]]
        )
        trainer = build_trainer(
            configured(run, Path(folder)),
            model,
            tokenizer(),
            [Example(prompt=prompt) for prompt in task.answer_of],
            reward,
        )
        gains = TeacherGains(trainer, task)
        if measure_gains:
            trainer.add_callback(gains)
        trainer.add_callback(StepRecorder(trainer, Path(folder) / "steps.jsonl", records.append))
        started = time.perf_counter()
        with reprompt_in_task_words():
            trainer.train()
        seconds = time.perf_counter() - started
    return Trained(model, grader.successes, records, gains.values, seconds)


def carried_out(run: Run, workdir: Path) -> dict[str, Any]:
    """Train as planned; return the result as it is stored."""
    done = train(run, workdir, measure_gains=True)
    return {
        "task": run.arm.task,
        "arm": run.arm.name,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "steps": run.steps,
        "prompts_a_step": run.arm.prompts,
        "seconds": round(done.seconds, 1),
        "curve": [round(share, 4) for share in done.successes],
        "teacher_gain_on_answers": done.teacher_gains,
        "after": abilities(done.model, TASKS[run.arm.task]),
        "metrics": in_blocks([record.metrics for record in done.records]),
    }


def configured(run: Run, out: Path) -> TrainConfig:
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
            "max_completion_length": MAX_TOKENS,
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


class TeacherGains(TrainerCallback):  # type: ignore[misc]
    """Measures the self-teacher at the first step and after each block of steps.

    `values` are, per token and in nats, the log-probability that the self-teacher gives the right
    answer after it has read it, minus the student's, which has not.
    """

    def __init__(self, trainer: MarkschemeTrainer, task: Task) -> None:
        self._trainer, self.values = trainer, list[float]()
        rows = slice(0, min(64, task.trained))
        prompts, answers = task.prompts[rows], task.answers[rows]
        edge = torch.full_like(prompts[:, :1], ID["demo"])
        self._alone = torch.cat([prompts, answers], 1)
        self._shown = torch.cat(
            [prompts, edge, answers, torch.full_like(edge, ID["now"]), answers], 1
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, if it is time."""
        distillation = self._trainer.distillation
        if distillation is None or (state.global_step % BLOCK and state.global_step != 1):
            return
        teacher, student = distillation.self_teacher, self._trainer.model
        with evaluating(student), torch.no_grad():
            alone = student(input_ids=self._alone, attention_mask=torch.ones_like(self._alone))
            own = log_probs(alone.logits[:, -LENGTH - 1 : -1], self._alone[:, -LENGTH:])
            states = teacher.states(self._shown, torch.ones_like(self._shown), LENGTH)
            shown = log_probs(teacher.head(states), self._shown[:, -LENGTH:])
        self.values.append(round(float((shown - own).mean()), 4))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Turn dropout off for a while."""
    training = model.training
    model.eval()
    yield
    model.train(training)


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities [B, T] of tokens under logits [B, T, V]."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def in_blocks(steps: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """Return each metric's means over blocks of ten steps; `None` where it was not known."""

    def mean(name: str, block: Sequence[Mapping[str, float | None]]) -> float | None:
        known = [value for step in block if (value := step.get(name)) is not None]
        return float(f"{statistics.fmean(known):.4g}") if known else None

    blocks = [steps[start : start + BLOCK] for start in range(0, len(steps), BLOCK)]
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: [mean(name, block) for block in blocks] for name in names}


if __name__ == "__main__":
    main()
