"""The demo from start to end: service, rubrics, evaluation, training, evaluation, report."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from markscheme.client import Client
from markscheme.errors import MarkschemeError
from markscheme.schema import Rubric
from markscheme_train.allocator import keep_freed_memory
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.demo.data import DemoPrompt, load_prompts
from markscheme_train.demo.evaluate import MAX_NEW_TOKENS, Evaluation, evaluate, induce_rubrics
from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.result import Change, DemoResult, print_result
from markscheme_train.demo.service import running_service
from markscheme_train.demo.words import known_words
from markscheme_train.progress import LiveTable
from markscheme_train.run_folder import config_fingerprint, has_run
from markscheme_train.run_report import RunReport
from markscheme_train.step_log import StepRecord, read_records
from markscheme_train.training import STEPS_FILE, silence_libraries, train

INDUCTION_SEED = 1_000
EVALUATION_SEED = 2_000
PROMPTS = "demo-prompts.jsonl"
RUN = "run"
SERVICE = "service"
"""The service's data: `markscheme serve` shows the run afterwards."""
BEFORE = "before.json"
"""The measurement before training: a resumed demo reads it."""
REPORT = "report.html"
SUMMARY = "summary.json"
"""Written last: a demo with one is finished."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What may be chosen; the rest is fixed so that runs can be compared."""

    workdir: Path
    steps: int = 20
    seed: int = 0
    samples: int = 12
    held_out_samples: int = 8


def run_demo(settings: DemoSettings, console: Console, *, url: str | None = None) -> DemoResult:
    """Run the demo, or resume it, and write the run's page to a file.

    Raises `TrainError`.

    Args:
        settings: What may be chosen.
        console: Where progress is printed.
        url: A running service; default: one is started.
    """
    prepare_torch()
    console.print("Preparing the model (fetched and converted once) …")
    directory = ensure_model(settings.workdir / "smollm2")
    started = time.perf_counter()
    trained, held_out = load_prompts()
    out = settings.workdir / "demo"
    config = demo_config(
        settings,
        out / RUN,
        model=directory,
        data=write_prompts(trained, settings.workdir / PROMPTS),
    )
    remove_other_run(out, config)
    model, tokenizer = load_student(directory)
    known = known_words(
        tokenizer, [text for p in trained + held_out for text in (p.prompt, *p.teacher_responses)]
    )
    with running_service(out / SERVICE) if url is None else nullcontext(url) as address:
        client = Client(address, api_key=os.environ.get("MARKSCHEME_API_KEY"))
        console.print(
            f"Rubric service: {address}. Inducing one rubric for each of "
            f"{len(trained + held_out)} prompts …"
        )
        rubrics = induce_rubrics(
            client, model, tokenizer, trained + held_out, seed=settings.seed + INDUCTION_SEED
        )

        def measure(model: Any) -> tuple[Evaluation, Evaluation]:
            split = len(trained)
            options: dict[str, Any] = {"seed": settings.seed + EVALUATION_SEED, "known": known}
            return (
                evaluate(
                    client,
                    model,
                    tokenizer,
                    trained,
                    rubrics[:split],
                    per_prompt=settings.samples,
                    **options,
                ),
                evaluate(
                    client,
                    model,
                    tokenizer,
                    held_out,
                    rubrics[split:],
                    per_prompt=settings.held_out_samples,
                    **options,
                ),
            )

        before = read_before(out / BEFORE, rubrics)
        if before is None:
            console.print("Measuring the student before training …")
            before = measure(model)
            write_before(out / BEFORE, before)
        # Freed before the trainer loads its own.
        del model
        live = LiveTable(console, title="training")
        report = RunReport(
            client,
            config,
            on_url=live.show_url,
            on_findings=live.show_findings,
            on_warning=live.warn,
        )

        def show(record: StepRecord) -> None:
            report.add(record)
            live.show(record)

        with report, live:
            finished = train(
                config,
                client,
                resume=has_run(out / RUN),
                on_start=report.start,
                on_record=show,
                on_wait=live.wait,
            )
        console.print("Measuring it again …")
        after = measure(load_student(finished)[0])
        result = DemoResult(
            trained=Change(before[0], after[0]),
            held_out=Change(before[1], after[1]),
            records=read_records(finished / STEPS_FILE),
            seconds=time.perf_counter() - started,
        )
        print_result(result, console)
        try:
            client.put_run(report.run_id, facts=report.facts | result.facts())
            (out / REPORT).write_text(client.run_report(report.run_id), encoding="utf-8")
            console.print(f"report:  {out / REPORT}", soft_wrap=True)
        except MarkschemeError as error:
            console.print(f"no report: {error}", style="red", markup=False, soft_wrap=True)
        client.close()
    (out / SUMMARY).write_text(json.dumps(result.summary(), indent=2) + "\n")
    console.print(f"summary: {out / SUMMARY}", soft_wrap=True)
    if url is None:
        console.print(
            f"pages:   MARKSCHEME_HOME={out / SERVICE} markscheme serve",
            highlight=False,
            soft_wrap=True,
        )
    return result


def remove_other_run(out: Path, config: TrainConfig) -> None:
    """Empty `out` unless it holds an unfinished demo with the same configuration."""
    note = out / "demo.json"
    mine = json.dumps(config_fingerprint(config) | {"max_steps": config.max_steps})
    if (out / SUMMARY).is_file() or not note.is_file() or note.read_text() != mine:
        fresh_directory(out)
        note.write_text(mine)


_BOTH_SPLITS = TypeAdapter(tuple[Evaluation, Evaluation])


def read_before(path: Path, rubrics: Sequence[Rubric]) -> tuple[Evaluation, Evaluation] | None:
    """Return the measurement of an unfinished demo, if it was made under these rubrics."""
    try:
        before = _BOTH_SPLITS.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    made_under = [result.rubric.id for split in before for result in split.results]
    return before if made_under == [rubric.id for rubric in rubrics] else None


def write_before(path: Path, before: tuple[Evaluation, Evaluation]) -> None:
    """Write the measurement; a killed demo leaves all of it or none."""
    part = path.with_suffix(".part")
    part.write_bytes(_BOTH_SPLITS.dump_json(before))
    part.replace(path)


def prepare_torch() -> None:
    """Use one thread a core, keep freed memory, and silence the libraries."""
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    silence_libraries()


def load_student(directory: Path) -> tuple[Any, Any]:
    """Load the student in full precision, and its tokenizer."""
    return (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
        AutoTokenizer.from_pretrained(directory),
    )


def write_prompts(prompts: list[DemoPrompt], path: Path) -> Path:
    """Write the prompts and their teacher responses as training data."""
    path.write_text(
        "".join(
            json.dumps({"prompt": p.prompt, "teacher_responses": p.teacher_responses}) + "\n"
            for p in prompts
        ),
        encoding="utf-8",
    )
    return path


def demo_config(
    settings: DemoSettings, out: Path, *, model: Path, data: Path, save_strategy: str = "steps"
) -> TrainConfig:
    """Return preset `ropd` at the scale of two cores: 2 prompts x 8 rollouts of 40 tokens.

    The learning rate is thirty times the preset's, which is meant for hundreds of steps on a larger
    model.
    """
    return build_config(
        {
            "model": str(model),
            "data": str(data),
            "output_dir": str(out),
            "preset": "ropd",
            "seed": settings.seed,
            "max_steps": settings.steps,
            "learning_rate": 3e-5,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "num_generations": 8,
            "max_completion_length": MAX_NEW_TOKENS,
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_strategy": "no",
            "save_strategy": save_strategy,
            "save_steps": 5,
            "save_total_limit": 1,
            "disable_tqdm": True,
        }
    )


def fresh_directory(directory: Path) -> Path:
    """Return an empty folder; what an earlier demo left there is removed."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory
