"""The demo from start to end: service, rubrics, evaluation, training, evaluation, report."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from markscheme.client import Client
from markscheme_train.allocator import keep_freed_memory
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.data import Example
from markscheme_train.demo.data import DemoPrompt, load_prompts
from markscheme_train.demo.evaluate import MAX_NEW_TOKENS, Evaluation, Inducer, evaluate, induce_rubrics
from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.report import write_report
from markscheme_train.demo.result import Change, DemoResult, print_result
from markscheme_train.demo.service import running_service
from markscheme_train.demo.words import known_words
from markscheme_train.live import LiveTable
from markscheme_train.reward import RubricReward
from markscheme_train.steps import StepRecord, StepRecorder
from markscheme_train.training import build_trainer, eos_token_ids, quieten

INDUCTION_SEED = 1_000
EVALUATION_SEED = 2_000


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What may be chosen; the rest is fixed so that two runs can be compared."""

    room: Path
    steps: int = 20
    seed: int = 0
    samples: int = 12
    held_out_samples: int = 8


def run_demo(settings: DemoSettings, console: Console) -> DemoResult:
    """Run the demo and print where its report is. Raises :class:`markscheme_train.errors.TrainError`."""
    prepare_torch()
    console.print("Preparing the model (fetched and converted once) …")
    directory = ensure_model(settings.room / "smollm2")
    out = fresh_directory(settings.room / "demo")
    started = time.perf_counter()
    trained, held_out = load_prompts()
    model, tokenizer = load_student(directory)
    known = known_words(tokenizer, [text for p in trained + held_out for text in (p.prompt, *p.teacher_responses)])
    with running_service(out / "service") as url:
        client = Client(url)
        console.print(f"Rubric service: {url}. Inducing one rubric for each of {len(trained + held_out)} prompts …")
        rubrics = induce_rubrics(client, model, tokenizer, trained + held_out, seed=settings.seed + INDUCTION_SEED)

        def measure() -> tuple[Evaluation, Evaluation]:
            split = len(trained)
            options: dict[str, Any] = {"seed": settings.seed + EVALUATION_SEED, "known": known}
            return (evaluate(client, model, tokenizer, trained, rubrics[:split], per_prompt=settings.samples,
                             **options),
                    evaluate(client, model, tokenizer, held_out, rubrics[split:],
                             per_prompt=settings.held_out_samples, **options))

        console.print("Measuring the student before training …")
        before = measure()
        records: list[StepRecord] = []
        with LiveTable(console, title="training") as live:

            def keep_and_show(record: StepRecord) -> None:
                records.append(record)
                live.show(record)

            train_student(model, tokenizer, client, trained, settings, out / "run", on_record=keep_and_show)
        console.print("Measuring it again …")
        after = measure()
        client.close()
    result = DemoResult(trained=Change(before[0], after[0]), held_out=Change(before[1], after[1]), records=records,
                        seconds=time.perf_counter() - started)
    (out / "summary.json").write_text(json.dumps(result.summary(), indent=2) + "\n")
    write_report(result, out / "report.html")
    print_result(result, console)
    console.print(f"report:  {out / 'report.html'}\nsummary: {out / 'summary.json'}", soft_wrap=True)
    return result


def prepare_torch() -> None:
    """One thread for each core this process may use, its memory kept, and a quiet terminal."""
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    quieten()


def load_student(directory: Path) -> tuple[Any, Any]:
    """The student in full precision, and its tokenizer."""
    return (AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
            AutoTokenizer.from_pretrained(directory))


def train_student(model: Any, tokenizer: Any, client: Inducer, prompts: list[DemoPrompt], settings: DemoSettings,
                  out: Path, *, on_record: Callable[[StepRecord], None],
                  reward_class: type[RubricReward] = RubricReward) -> None:
    """Train ``model`` in place with ROPD on the prompts."""
    config = demo_config(settings, out)
    reward = reward_class(client, num_generations=config.num_generations, run_id=f"{out.name}-{settings.seed}",
                          reuse=config.reuse, verify=config.verify,
                          eos_token_ids=eos_token_ids(model, tokenizer))
    examples = [Example(prompt=p.prompt, teacher_responses=p.teacher_responses) for p in prompts]
    trainer = build_trainer(config, model, tokenizer, examples, reward)
    trainer.add_callback(StepRecorder(trainer, out / "steps.jsonl", on_record))
    trainer.train()


def demo_config(settings: DemoSettings, out: Path) -> TrainConfig:
    """Preset ``ropd`` at the scale of two cores: 2 prompts x 8 rollouts of 40 tokens a step.

    The learning rate is thirty times the preset's, which is meant for hundreds of steps on a larger model.
    """
    return build_config({
        "model": "demo", "data": "demo", "output_dir": str(out), "preset": "ropd", "seed": settings.seed,
        "max_steps": settings.steps, "learning_rate": 3e-5, "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1, "num_generations": 8, "max_completion_length": MAX_NEW_TOKENS,
        "use_cpu": True, "bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False,
        "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True,
    })


def fresh_directory(directory: Path) -> Path:
    """An empty directory: what an earlier demo left there is removed."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory


