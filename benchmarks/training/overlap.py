"""How long a training batch waits for the judge, with ours and in TRL's own order.

    python -m training.overlap [--batches 3] [--jobs 4]

Whole runs of TRL's GRPO trainer and of ours, on a tiny model. What takes long on a GPU is replaced
by sleeping: a `rollout_func` ends its 8 groups one after another over 4 s, the log-probabilities of
the sampling policy take 0.6 s and the update 2 s, in two optimiser steps. So no figure here is
about a processor; what is measured is which of these waits overlap. Two judges: one answers each
request after the latency, however many there are; one judges group after group, a whole batch in
the latency. The share is the seconds in which the trainer only waited, over those of the batch.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from gpu.shapes import TINY, save_model
from markscheme.schema import Group, ScoreBatch
from markscheme_train.config import build_config
from markscheme_train.reward import RubricReward
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import silence_libraries
from service.machine import describe, sentence
from service.report import markdown_table, today, write
from training.worker import ROWS, Recorded

GROUPS = 8
ROLLOUTS_S, LOG_PROBS_S, UPDATE_S = 4.0, 0.6, 2.0
STEPS = 2
"""Optimiser steps on a batch: with one TRL computes no log-probabilities of the sampling policy."""
LATENCIES_S = (0.5, 2.0, 8.0)
ARMS = ("TRL", "ours", "ours, group by group", "ours, one batch off")
JUDGES = ("each request", "group after group")


@dataclass(frozen=True)
class Cell:
    """One run: an arm with a judge of one kind and latency."""

    arm: str
    judge: str
    latency_s: float


@dataclass(frozen=True)
class Batch:
    """The seconds of one batch, and those in which the trainer only waited for the judge."""

    seconds: float
    waited: float


class Judge(Recorded):
    """Gives the recorded rewards after a while."""

    def __init__(self, kind: str, latency_s: float) -> None:
        self._latency_s = latency_s
        self._turn = threading.Lock() if kind == "group after group" else None

    def score(self, groups: Sequence[Group], **options: Any) -> ScoreBatch:
        """Return the recorded rewards."""
        if self._turn is None:
            time.sleep(self._latency_s)
        else:
            for _ in groups:
                with self._turn:
                    time.sleep(self._latency_s / GROUPS)
        return super().score(groups, **options)


class Timed:
    """A trainer whose work takes a stated time, and that notes each batch."""

    rubric: RubricReward
    batches: list[Batch]
    _began: float | None = None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.note()
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def note(self) -> None:
        """End a batch, and begin the next."""
        now = time.perf_counter()
        if self._began is not None:
            # One batch off, the first batch has no rewards yet.
            waited = 0.0 if self.rubric.last is None else self.rubric.last.seconds
            self.batches.append(Batch(now - self._began, waited))
        self._began = now

    def _get_per_token_logps_and_entropies(self, *given: Any, **options: Any) -> Any:
        # One batch off, TRL is given those that were computed when the batch was sampled.
        computed = isinstance(self, MarkschemeTrainer) and self.lag.learnt is not None
        if not torch.is_grad_enabled() and not computed:
            time.sleep(LOG_PROBS_S)
        return super()._get_per_token_logps_and_entropies(*given, **options)  # type: ignore[misc]

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        time.sleep(UPDATE_S / STEPS)
        return super()._compute_loss(model, inputs)  # type: ignore[misc]


class Theirs(Timed, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer."""


class Ours(Timed, MarkschemeTrainer):
    """Ours."""


def run(cell: Cell, batches: int) -> list[Batch]:
    """Train for some batches after one to warm up; return them."""
    silence_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        save_model(TINY, Path(directory))
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        settings: dict[str, Any] = {
            "output_dir": directory,
            "num_generations": ROWS,
            "per_device_train_batch_size": GROUPS * ROWS // STEPS,
            "gradient_accumulation_steps": 1,
            "steps_per_generation": STEPS,
            "max_completion_length": 4,
            "max_steps": STEPS * (1 + batches),
            "scale_rewards": "none",
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "use_cpu": True,
            "bf16": False,
        }
        rows = Dataset.from_list([{"prompt": f"w{n} w{n + 1}"} for n in range(2 * GROUPS)])
        reward = RubricReward(
            Judge(cell.judge, cell.latency_s), num_generations=ROWS, run_id="bench"
        )

        def rollouts(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
            ids = [[10 + row, 1] for row in range(len(prompts))]
            for first in range(0, len(prompts), ROWS):
                time.sleep(ROLLOUTS_S / GROUPS)
                if cell.arm == "ours, group by group":
                    group = slice(first, first + ROWS)
                    trainer.start_group(first, prompts[group], ids[group])
            prompt_ids = tokenizer(list(prompts))["input_ids"]
            return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

        common = {"processing_class": tokenizer, "train_dataset": rows, "rollout_func": rollouts}
        trainer: Any
        if cell.arm == "TRL":
            args = GRPOConfig(**settings, loss_type="dapo", beta=0.0)
            trainer = Theirs(model, reward, args=args, **common)
        else:
            settings["reward_lag"] = int(cell.arm == "ours, one batch off")
            config = build_config({**settings, "model": "given", "data": "given", "preset": "grpo"})
            trainer = Ours(model, reward, config, **common)
        trainer.remove_callback(PrinterCallback)
        trainer.rubric, trainer.batches = reward, []
        trainer.train()
        trainer.note()
        return trainer.batches[1:]  # type: ignore[no-any-return]


def share(batches: Sequence[Batch]) -> float:
    """Return the share of the batches' time in which the trainer only waited."""
    return sum(batch.waited for batch in batches) / sum(batch.seconds for batch in batches)


def table(judge: str, found: Mapping[Cell, Sequence[Batch]]) -> list[str]:
    """Return the table of one kind of judge."""
    rows = []
    for latency_s in LATENCIES_S:
        row = [f"{latency_s:g} s"]
        for arm in ARMS:
            batches = found[Cell(arm, judge, latency_s)]
            seconds = statistics.mean(batch.seconds for batch in batches)
            row.append(f"{share(batches):.0%} of {seconds:.1f} s")
        rows.append(tuple(row))
    return markdown_table(("latency", *ARMS), rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m training.overlap")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time; they mostly sleep")
    arguments = parser.parse_args()
    console = Console(width=160)
    machine = describe(("markscheme", "torch", "transformers", "trl"))
    cells = [Cell(arm, judge, s) for judge in JUDGES for s in LATENCIES_S for arm in ARMS]
    with ProcessPoolExecutor(
        arguments.jobs, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        runs = pool.map(run, cells, [arguments.batches] * len(cells))
        found = dict(zip(cells, runs, strict=True))
    lines = [
        f"# The share of a batch in which the trainer waits for the judge, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        f"Command: `make bench-overlap`. {arguments.batches} batches of {GROUPS} groups x {ROWS} "
        f"after one to warm up, {arguments.jobs} runs at a time. Durations are simulated by "
        f"sleeping: a `rollout_func` ends its groups one after another over {ROLLOUTS_S:g} s, "
        f"log-probabilities of the sampling policy {LOG_PROBS_S:g} s, update {UPDATE_S:g} s in "
        f"{STEPS} optimiser steps. TRL's order asks for rewards after the log-probabilities; ours "
        "posts all groups before them; group by group each is posted when it is generated "
        "(`start_group`); in these three what is learnt is the same. One batch off "
        "(`reward_lag: 1`) learns from a batch while the next one is generated and judged.",
    ]
    titles = (
        "A judge that answers each request after the latency:",
        "A judge that judges group after group, a batch in the latency:",
    )
    for title, judge in zip(titles, JUDGES, strict=True):
        lines += ["", title, "", *table(judge, found)]
    console.print("\n".join(lines))
    data = {
        "date": today(),
        "machine": machine,
        "runs": [
            {**asdict(cell), "batches": [asdict(batch) for batch in batches]}
            for cell, batches in found.items()
        ],
    }
    for path in write(Path(f"benchmarks/results/overlap-{today()}"), "\n".join(lines) + "\n", data):
        console.print(f"written: {path}")


if __name__ == "__main__":
    main()
