"""Train on recorded rollouts, with ``torchrun`` or plain Python; write weights and facts."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor

from markscheme.integrations.processes import current_process_group
from markscheme_train.config import build_config
from markscheme_train.data import Example, as_dataset
from markscheme_train.reward import RubricReward
from markscheme_train.self_teacher import SELF_TEACHER_ADAPTER, STUDENT_ADAPTER
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import load_model, silence_libraries
from train.tiny import ScriptedClient

EOS = 1
REWARDS = [1.0, 0.0, 0.25, 0.6, 0.9, 0.1, 0.0, 0.7]
"""By place in the group."""


def recorded(batch: int, row: int) -> list[int]:
    """Return the tokens of this row (numbered across processes) in this batch."""
    generator = torch.Generator().manual_seed(1000 * batch + row)
    length = int(torch.randint(2, 6, (), generator=generator))
    return [*torch.randint(2, 64, (length,), generator=generator).tolist(), EOS]


class Recorded(MarkschemeTrainer):
    """Generates nothing: it says what was recorded. With `samples` it generates, and notes it."""

    samples = False
    rollouts: list[list[int]]
    dies_saving: int | None = None

    def _generate_single_turn(self, prompt_ids: Any, *more: Any, **named: Any) -> Any:
        if self.samples:
            made = super()._generate_single_turn(prompt_ids, *more, **named)
            self.rollouts = made[0]
            return made
        first = self.accelerator.process_index * len(prompt_ids)
        batch = self.state.global_step + 1
        return [recorded(batch, first + i) for i in range(len(prompt_ids))], None

    def student_weights(self) -> dict[str, Any]:
        """Return the student's weights, gathered by all processes."""
        weights = self.accelerator.unwrap_model(self.model_wrapped).state_dict()
        return {name: whole(value) for name, value in weights.items()}

    def teacher_weights(self) -> dict[str, Any]:
        """Return the self-teacher's weights, gathered by all processes; without one none."""
        if self.distillation is None:
            return {}
        weights = self.distillation.self_teacher.weights()
        return {name: whole(value) for name, value in weights.items()}

    def _save_rng_state(self, output_dir: str) -> None:
        if self.state.global_step == self.dies_saving:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


def whole(weight: Any) -> Any:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def main(settings: Path, out: Path, made: type[Recorded] = Recorded) -> None:
    given = json.loads(settings.read_text())
    elsewhere = given.pop("rewards_of_other_groups", REWARDS)
    unscored_step = given.pop("unscored_step", None)
    stops, dies_saving = given.pop("greedy_until", None), given.pop("dies_saving", None)
    made.plain_device = given.pop("plain_device", "cpu")
    silence_libraries()
    config = build_config(given)
    model, tokenizer = load_model(config)
    if stops is not None:
        model.generation_config.eos_token_id = stops

    class Client(ScriptedClient):
        def _group(self, group: Any) -> Any:
            rewards = REWARDS if group.id.endswith("p0") else elsewhere
            if trainer.state.global_step + 1 == unscored_step:
                rewards = [None] * len(REWARDS)
            self.script = lambda place, _rollout: rewards[place]
            return super()._group(group)

    client = Client(lambda place, _rollout: None)
    reward = RubricReward(
        client,
        num_generations=config.num_generations,
        run_id="run",
        eos_token_ids=[EOS],
        max_unscored=config.max_unscored,
    )
    examples = [Example(prompt=f"w{i} w{i + 1}") for i in range(4)]
    trainer = made(
        model,
        reward,
        config,
        train_dataset=as_dataset(examples, chat=False),
        processing_class=tokenizer,
    )
    trainer.samples, trainer.dies_saving = stops is not None, dies_saving
    checkpoint = given.get("resume_from_checkpoint")
    trainer.train(resume_from_checkpoint=checkpoint)
    student, teacher = trainer.student_weights(), trainer.teacher_weights()
    # A whole model has the self-teacher's adapter inside.
    names = [name for name in student if f".{SELF_TEACHER_ADAPTER}." in name]
    teacher |= {
        name.replace(SELF_TEACHER_ADAPTER, STUDENT_ADAPTER): student.pop(name) for name in names
    }
    rollouts = gather_object(trainer.rollouts) if trainer.samples else []
    asked = current_process_group().gather(
        [[[group.id for group in call["groups"]] for call in client.calls]]
    )
    if trainer.accelerator.is_main_process:
        torch.save(
            {
                "rollouts": rollouts,
                "student": student,
                "teacher": teacher,
                "asked": asked,
                "processes": trainer.accelerator.num_processes,
                "wrapper": type(trainer.model_wrapped).__name__,
                "norms": {
                    k: v
                    for log in trainer.state.log_history
                    for k, v in log.items()
                    if "gradient_norm" in k
                },
                "metrics": {
                    k: v
                    for log in trainer.state.log_history
                    for k, v in log.items()
                    if "distillation" in k
                },
            },
            out,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
