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
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback

from markscheme_train.hidden_states import evaluating
from markscheme_train.trainer import MarkschemeTrainer
from training import runs
from training.arms import LARGE, SMALL, Arm
from training.graders import judge_of
from training.runs import BLOCK, Result, Run, Trained, as_stored, carry_out, process_pool, stored
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

QUICK_STEPS = 4


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
            carry_out(
                wanted,
                workdir,
                pool,
                arguments.workers,
                console,
                prepare=partial(pretrain_missing, workdir, pool),
                do=carried_out,
            )
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


def pretrain_missing(workdir: Path, pool: Executor, missing: Sequence[Run]) -> None:
    """Pre-train the models of the runs' tasks."""
    pretraining = dict.fromkeys((run.arm.task, run.pretraining) for run in missing)
    list(pool.map(partial(ensure_model, workdir), *zip(*pretraining, strict=True)))


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


def train(
    run: Run,
    workdir: Path,
    callbacks: Callable[[MarkschemeTrainer], Sequence[TrainerCallback]] = lambda trainer: (),
) -> Trained:
    """Train the pre-trained model of a run's task as the run says."""
    task = TASKS[run.arm.task]
    model = pretrain(task, 0)
    model.load_state_dict(torch.load(workdir / f"model-{task.name}.pt", weights_only=True))
    with reprompt_in_task_words():
        return runs.train(
            run,
            model,
            tokenizer(),
            list(task.answer_of),
            judge_of(task),
            max_tokens=MAX_TOKENS,
            callbacks=callbacks,
        )


def carried_out(run: Run, workdir: Path) -> Result:
    """Train as planned; return the result as it is stored."""
    task, gains = TASKS[run.arm.task], list[TeacherGains]()

    def callbacks(trainer: MarkschemeTrainer) -> Sequence[TrainerCallback]:
        gains.append(TeacherGains(trainer, task))
        return gains

    done = train(run, workdir, callbacks)
    return as_stored(run, done) | {
        "teacher_gain_on_answers": gains[0].values,
        "after": abilities(done.model, task),
    }


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


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities [B, T] of tokens under logits [B, T, V]."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


if __name__ == "__main__":
    main()
