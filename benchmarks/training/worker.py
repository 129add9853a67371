"""One trainer on recorded rollouts, a step at a time: reads `go`, writes a line of JSON.

    python -m training.worker "srpo" --model build/smollm2 --length 512 --steps 6

Nothing is generated and no judge is asked, so that a step is the trainer's own work: reading the
rollouts, self-teacher, loss, backward pass, optimiser.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from ifeval import load_items
from markscheme.schema import (
    Criterion,
    Group,
    GroupScore,
    RolloutScore,
    RubricRef,
    ScoreBatch,
    ScoreCounts,
    Usage,
)
from markscheme_train.config import PRESETS, build_config
from markscheme_train.reprompt import CLOSING, DEMONSTRATION
from markscheme_train.reward import RubricReward
from markscheme_train.trainer import MarkschemeTrainer

OURS = ("grpo", "sdpo", "srpo")
THEIRS = {"TRL GRPO": "grpo", "TRL SDPO": "sdpo"}
ARMS = (*OURS, *THEIRS)
ROWS = 5
REWARDS = (1.0, 1.0, 1.0, 0.0, 0.0)
"""Two of five failed: SRPO routes 40 %; SDPO teaches all, as each has a successful sibling."""


def prompt() -> str:
    """Return the prompt."""
    return load_items()[0].prompt


def rollouts(tokenizer: Any, length: int) -> list[list[int]]:
    """Return `ROWS` texts of exactly `length` tokens, from GPT-4's responses to other prompts."""
    texts = [item.teacher for item in load_items()[1:]]
    tokens = tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"]
    return [tokens[row * length : (row + 1) * length] for row in range(ROWS)]


def shared(length: int, steps: int, out: str) -> dict[str, Any]:
    """Return the settings of every arm: Markscheme's preset where TRL has the same setting."""
    same = {
        name: PRESETS["grpo"][name]
        for name in (
            "scale_rewards",
            "epsilon",
            "epsilon_high",
            "max_grad_norm",
            "weight_decay",
            "temperature",
            "disable_dropout",
        )
    }
    return {
        **same,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "output_dir": out,
        "max_steps": steps,
        "num_generations": ROWS,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "max_completion_length": length,
        "seed": 0,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def build(arm: str, directory: Path, length: int, steps: int, out: str) -> Any:
    """Build the trainer of an arm."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    question: list[dict[str, str]] = [{"role": "user", "content": prompt()}]
    return assemble(
        arm,
        directory,
        tokenizer,
        question,
        rollouts(tokenizer, length),
        {
            **shared(length, steps, out),
            "bf16": False,
            "use_cpu": True,
            "activation_checkpointing": False,
        },
    )


def assemble(
    arm: str,
    directory: Path,
    tokenizer: Any,
    question: Any,
    recorded: list[list[int]],
    settings: dict[str, Any],
) -> Any:
    """Return the trainer of `arm` on the model in `directory`, with recorded rollouts."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rows = Dataset.from_list([{"prompt": question}])
    if arm in OURS:

        class Ours(MarkschemeTrainer):
            def _generate_single_turn(self, prompt_ids: Any, *_more: Any, **_kwargs: Any) -> Any:
                return recorded, None

        config = build_config(
            {
                **settings,
                "model": "given",
                "data": "given",
                "preset": arm,
                "entropy_beta": 1.0 if arm == "srpo" else 0.0,
            }
        )
        reward = RubricReward(Recorded(), num_generations=ROWS, run_id="bench")
        return Ours(
            model,
            reward,
            config,
            train_dataset=rows.add_column("teacher_responses", [None]),
            processing_class=tokenizer,
        )
    if arm == "TRL GRPO":

        class Theirs(GRPOTrainer):  # type: ignore[misc]
            def _generate_single_turn(self, prompt_ids: Any, *_more: Any, **_kwargs: Any) -> Any:
                return recorded, None

        return Theirs(
            model,
            by_place,
            args=GRPOConfig(**settings, loss_type="dapo", beta=0.0, delta=PRESETS["grpo"]["delta"]),
            train_dataset=rows,
            processing_class=tokenizer,
        )

    class TheirsSdpo(SDPOTrainer):  # type: ignore[misc]
        def _generate_transformers(self, prompt_ids: Any) -> Any:
            return prompt_ids, recorded

    braced = DEMONSTRATION.replace("{}", "{successful_previous_attempt}")
    return TheirsSdpo(
        model,
        by_place,
        args=SDPOConfig(
            **settings,
            distillation_mode="topk_logits",
            distillation_topk=100,
            distillation_alpha=0.5,
            distillation_add_tail=True,
            distillation_is_clip=2.0,
            success_reward_threshold=0.5,
            teacher_model_kind="ema",
            teacher_update_rate=0.05,
            max_prompt_length=None,
            solution_template=f"\n\n{braced}",
            reprompt_template="{prompt}{solution}{feedback}\n\n" + CLOSING,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )


def by_place(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Return the recorded rewards in the order of the rows."""
    return [REWARDS[place % ROWS] for place in range(len(completions))]


class Recorded:
    """A service that gives the recorded rewards."""

    def score(self, groups: Sequence[Group], **_options: Any) -> ScoreBatch:
        """Return the recorded rewards."""
        rubric = RubricRef(
            id="rub_1",
            version=1,
            content_hash="0",
            origin="given",
            criteria=[Criterion(id="c1", text="It is good.", points=1)],
        )
        scored = [
            GroupScore(
                id=group.id,
                status="scored",
                error=None,
                rubric=rubric,
                teacher=None,
                rollouts=[
                    RolloutScore(
                        id=rollout.id,
                        reward=REWARDS[place],
                        status="scored",
                        reason=None,
                        feedback=[],
                        verdicts=[],
                    )
                    for place, rollout in enumerate(group.rollouts)
                ],
            )
            for group in groups
        ]
        return ScoreBatch(
            groups=scored,
            counts=ScoreCounts(rollouts=ROWS, scored=ROWS, unscored=0),
            usage=Usage(judge_calls=0, prompt_tokens=0, completion_tokens=0, cached_verdicts=0),
        )


class OneAtATime(TrainerCallback):  # type: ignore[misc]
    """Waits for `go` before each step and prints its seconds and peak memory."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self._started = self._before = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the command, then start the clock."""
        if sys.stdin.readline().strip() != "go":
            sys.exit(0)
        # Reset the peak (proc(5), clear_refs): it is compared with what stays between steps, which
        # is weights, optimiser and self-teacher.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _memory("VmRSS")
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print what the step took."""
        self._seconds = time.perf_counter() - self._started
        self._peak = _memory("VmHWM") - self._before

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep loss and gradient norm."""
        if logs and "grad_norm" in logs:
            self._say(
                {
                    "seconds": self._seconds,
                    "peak_gib": self._peak / 2**20,
                    "loss": logs["loss"],
                    "grad_norm": logs["grad_norm"],
                }
            )


def _memory(name: str) -> int:
    """Return a figure of /proc in KiB."""
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def main() -> None:
    """Run the trainer."""
    parser = argparse.ArgumentParser(prog="python -m training.worker")
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    output = sys.stdout

    def say(line: Any) -> None:
        print(json.dumps(line), file=output, flush=True)

    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        trainer = build(arguments.arm, arguments.model, arguments.length, arguments.steps, out)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(OneAtATime(say))
        say("ready")
        trainer.train()


if __name__ == "__main__":
    main()
