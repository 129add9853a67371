"""SRPO against a local service: a training like `markscheme train`, resumed halfway.

    python -m gpu.service_run --out FILE [--small]

Model and task are those of `training.tasks`; the service holds a rubric for each prompt, which its
builtin judge decides by code. Rollouts are sampled by transformers.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu.part import Goal, Part, run_part
from markscheme import Client
from markscheme.schema import Criterion
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.demo.service import running_service
from markscheme_train.step_log import StepRecord
from markscheme_train.training import silence_libraries, train
from training.tasks import MAX_TOKENS, copy_task, pretrain, reprompt_in_task_words, save

SERVE = (
    sys.executable,
    "-c",
    "import typer; from markscheme_server.cli.serve import serve; typer.run(serve)",
    "--port",
    "0",
)
"""`markscheme serve` where the project is on the path but not installed."""
PHASES = ("rollout", "scoring", "teacher", "update")
PROMPTS_A_STEP, ROLLOUTS = 8, 8
UNSCORED, GAIN = "rollouts without a reward", "success of the last steps minus that of the first"


@dataclass(frozen=True)
class Plan:
    """Size of the run. `ends` is how many steps are averaged at either end."""

    pretraining: int
    steps: int
    ends: int


FULL, SMALL = Plan(300, 50, 10), Plan(150, 6, 2)


def run(part: Part, directory: Path, small: bool) -> None:
    """Train, resume and write the part."""
    silence_libraries()
    plan = SMALL if small else FULL
    device = "cuda" if torch.cuda.is_available() else "cpu"
    part.expect(Goal(UNSCORED, at_most=0), Goal(GAIN, at_least=None if small else 0.1))
    task, model = copy_task(), directory / "model"
    started = time.perf_counter()
    save(pretrain(task, plan.pretraining, device), model)
    seconds = time.perf_counter() - started
    part.note(
        f"Llama of 3 layers x 64, pre-trained for {plan.pretraining} steps in {seconds:.1f} s; "
        f"{PROMPTS_A_STEP} prompts x {ROLLOUTS} rollouts a step, preset srpo, learning rate 1e-3. "
        "The run is stopped halfway and resumed from its checkpoint."
    )
    data = directory / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in task.answer_of))
    records: list[StepRecord] = []
    with running_service(directory / "service", command=SERVE) as url, Client(url) as client:
        for prompt, answer in task.answer_of.items():
            client.create_rubric(prompt, [criterion(" ".join(answer))])
        try:
            for steps in (plan.steps // 2, plan.steps):
                config = configured(
                    model, data, directory / "run", steps, save_every=plan.steps // 2
                )
                with reprompt_in_task_words():
                    train(config, client, resume=bool(records), on_record=records.append)
        finally:
            tell(part, records, plan)


def criterion(answer: str) -> Criterion:
    """Return the criterion that the answer is this one, decided by code."""
    return Criterion.model_validate(
        {
            "text": f"The answer is {answer}.",
            "points": 1,
            "check": {"kind": "regex", "pattern": rf"^\s*{answer}\s*$"},
        }
    )


def configured(model: Path, data: Path, out: Path, steps: int, *, save_every: int) -> TrainConfig:
    """Return the preset with what the task needs; default precision and checkpointing."""
    return build_config(
        {
            "model": str(model),
            "data": str(data),
            "output_dir": str(out),
            "preset": "srpo",
            "reuse": "frozen",
            "max_steps": steps,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": PROMPTS_A_STEP * ROLLOUTS,
            "gradient_accumulation_steps": 1,
            "num_generations": ROLLOUTS,
            "max_completion_length": MAX_TOKENS,
            "logging_strategy": "no",
            "save_strategy": "steps",
            "save_steps": save_every,
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": False,
        }
    )


def tell(part: Part, records: Sequence[StepRecord], plan: Plan) -> None:
    """Report the steps that were taken, also where the run broke off."""
    if not records:
        return
    ends = {f"first {plan.ends}": records[: plan.ends], f"last {plan.ends}": records[-plan.ends :]}
    for name, some in ends.items():
        rewards = [record.reward for record in some if record.reward is not None]
        routed = [
            share
            for record in some
            if (share := record.metrics.get("distillation/routed_share")) is not None
        ]
        part.row(
            "SRPO on the copy task",
            steps=name,
            success=mean(rewards),
            to_the_self_teacher=mean(routed),
            **{
                f"{phase}_s": statistics.median(getattr(record, f"{phase}_s") for record in some)
                for phase in PHASES
            },
        )
    part.measured(
        UNSCORED,
        sum(record.unscored for record in records),
        f"of {sum(r.rollouts for r in records)}",
    )
    if len(records) == plan.steps:
        first, last = ([r.reward for r in some if r.reward is not None] for some in ends.values())
        part.measured(
            GAIN, statistics.fmean(last) - statistics.fmean(first) if first and last else None
        )
    if torch.cuda.is_available():
        part.note(f"Peak of allocated memory: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB.")


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or `None` of nothing."""
    return statistics.fmean(values) if values else None


if __name__ == "__main__":
    run_part("gpu.service_run", run)
