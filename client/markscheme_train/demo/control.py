"""The demo's control: the same training with the rewards of each group shuffled.

If the reward rises as much with shuffled rewards, the scores do not teach. Both arms of a seed
start from the same model, see the same prompts in the same order, and are measured by the same
rubrics with the same sampling seed. Each has its own service, so that neither reuses the other's
rubrics.
"""

import platform
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from markscheme.client import Client
from markscheme_train.data import Example
from markscheme_train.demo.data import DemoPrompt, load_prompts
from markscheme_train.demo.evaluate import Evaluation, evaluate, induce_rubrics
from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.run import (
    EVALUATION_SEED,
    INDUCTION_SEED,
    DemoSettings,
    demo_config,
    fresh_directory,
    load_student,
    prepare_torch,
)
from markscheme_train.demo.service import running_service
from markscheme_train.demo.words import known_words
from markscheme_train.reward import RubricReward
from markscheme_train.training import build_trainer, eos_token_ids


class ShuffledReward(RubricReward):
    """Shuffles the known rewards within each group."""

    def __call__(self, **columns: Any) -> list[float | None]:
        """Return the rewards, shuffled within each group."""
        rewards = super().__call__(**columns)
        size = self.num_generations
        for start in range(0, len(rewards), size):
            places = [i for i in range(start, start + size) if rewards[i] is not None]
            shuffled = [rewards[i] for i in places]
            random.Random(f"{self.run_id} {columns['trainer_state'].global_step} {start}").shuffle(
                shuffled
            )
            for place, reward in zip(places, shuffled, strict=True):
                rewards[place] = reward
        return rewards


ARMS: tuple[tuple[str, type[RubricReward]], ...] = (
    ("true", RubricReward),
    ("shuffled", ShuffledReward),
)


@dataclass(frozen=True, slots=True)
class ControlRun:
    """One training with one kind of reward, measured on its training prompts."""

    seed: int
    arm: str
    before: Evaluation
    after: Evaluation
    seconds: float

    @property
    def gain(self) -> float:
        """How much the reward rose."""
        return self.after.reward - self.before.reward


def run_control(workdir: Path, results: Path, *, seeds: int, console: Console) -> Path:
    """Run both arms for seeds 0, 1, …; print each run and return the table's path."""
    prepare_torch()
    directory = ensure_model(workdir / "smollm2")
    out = fresh_directory(workdir / "demo-control")
    trained, _ = load_prompts()
    runs = []
    for seed in range(seeds):
        for arm, reward_class in ARMS:
            settings = DemoSettings(workdir=workdir, seed=seed)
            run = _run_arm(directory, out / f"{arm}-{seed}", trained, settings, arm, reward_class)
            console.print(
                f"seed {seed} {arm:8}  reward {run.before.reward:.3f} → {run.after.reward:.3f}  "
                f"({run.seconds:.0f} s)",
                highlight=False,
            )
            runs.append(run)
    results.mkdir(parents=True, exist_ok=True)
    table = results / f"{datetime.now(UTC):%Y-%m-%d}-demo-control.md"
    table.write_text(render_table(runs, steps=settings.steps), encoding="utf-8")
    console.print(f"table: {table}")
    return table


def _run_arm(
    directory: Path,
    out: Path,
    trained: list[DemoPrompt],
    settings: DemoSettings,
    arm: str,
    reward_class: type[RubricReward],
) -> ControlRun:
    started = time.perf_counter()
    model, tokenizer = load_student(directory)
    known = known_words(
        tokenizer, [text for p in trained for text in (p.prompt, *p.teacher_responses)]
    )
    with running_service(out / "service") as url:
        client = Client(url)
        rubrics = induce_rubrics(
            client, model, tokenizer, trained, seed=settings.seed + INDUCTION_SEED
        )
        measure: dict[str, Any] = {
            "per_prompt": settings.samples,
            "seed": settings.seed + EVALUATION_SEED,
            "known": known,
        }
        before = evaluate(client, model, tokenizer, trained, rubrics, **measure)
        _train(model, tokenizer, client, trained, settings, out, reward_class)
        after = evaluate(client, model, tokenizer, trained, rubrics, **measure)
        client.close()
    return ControlRun(settings.seed, arm, before, after, time.perf_counter() - started)


def _train(
    model: Any,
    tokenizer: Any,
    client: Client,
    prompts: list[DemoPrompt],
    settings: DemoSettings,
    out: Path,
    reward_class: type[RubricReward],
) -> None:
    """Train `model` in place as the demo does, with a reward of this class."""
    config = demo_config(settings, out, model=out, data=out, save_strategy="no")
    reward = reward_class(
        client,
        num_generations=config.num_generations,
        run_id=f"{out.name}-{settings.seed}",
        reuse=config.reuse,
        verify=config.verify,
        eos_token_ids=eos_token_ids(model, tokenizer),
    )
    examples = [
        Example(prompt=p.prompt, teacher_responses=list(p.teacher_responses)) for p in prompts
    ]
    build_trainer(config, model, tokenizer, examples, reward).train()


def render_table(runs: Sequence[ControlRun], *, steps: int) -> str:
    """Return the runs as a dated Markdown page with the machine's description."""
    lines = [
        "# The demo's training with true and with shuffled rewards",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {platform.system()} {platform.machine()}, "
        f"{torch.get_num_threads()} torch threads, torch {torch.__version__} · {steps} steps · "
        "`make demo-control`",
        "",
        "Mean reward on the prompts trained on: fresh samples, one fixed rubric a prompt, ± one "
        "standard error",
        "over samples. Both arms of a seed start alike and differ only in who gets which reward.",
        "",
        "| seed | rewards | before | after | gain | IFEval before | after | tokens before | after "
        "| non-words before | after | unscored | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        b, a = run.before, run.after
        lines.append(
            f"| {run.seed} | {run.arm} | {b.reward:.3f} ± {b.reward_error:.3f} | {a.reward:.3f} ± "
            f"{a.reward_error:.3f} | {run.gain:+.3f} | {b.ifeval:.2f} | {a.ifeval:.2f} | "
            f"{b.tokens:.1f} | {a.tokens:.1f} | {b.non_words:.1%} | {a.non_words:.1%} | "
            f"{b.unscored + a.unscored} | {run.seconds:.0f} |"
        )
    for arm in dict.fromkeys(run.arm for run in runs):
        gains = [run.gain for run in runs if run.arm == arm]
        lines.append(f"| mean | {arm} | | | {sum(gains) / len(gains):+.3f} | | | | | | | | |")
    return "\n".join(lines) + "\n"
