"""Train on recorded rollouts, with ``torchrun`` or plain Python; write weights and facts."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from markscheme.integrations.processes import current_process_group
from markscheme_train.config import build_config
from markscheme_train.data import Example, as_dataset
from markscheme_train.reward import RubricReward
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
    """Generates nothing: it says what was recorded."""

    batch = 0

    def _generate_single_turn(
        self, prompt_ids: Any, *_more: Any, **_kwargs: Any
    ) -> tuple[list[list[int]], None]:
        first = self.accelerator.process_index * len(prompt_ids)
        self.batch += 1
        return [recorded(self.batch, first + i) for i in range(len(prompt_ids))], None


def main(settings: Path, out: Path) -> None:
    given = json.loads(settings.read_text())
    only_first = given.pop("only_first_group_fails", False)
    silence_libraries()
    config = build_config(given)
    model, tokenizer = load_model(config)

    def script(place: int, _rollout: Any) -> float:
        return REWARDS[place]

    def successes(place: int, _rollout: Any) -> float:
        return 0.6 + place / 10

    class Client(ScriptedClient):
        def _group(self, group: Any) -> Any:
            self.script = successes if only_first and not group.id.endswith("p0") else script
            return super()._group(group)

    client = Client(script)
    reward = RubricReward(
        client, num_generations=config.num_generations, run_id="run", eos_token_ids=[EOS]
    )
    examples = [Example(prompt=f"w{i} w{i + 1}") for i in range(4)]
    trainer = Recorded(
        model,
        reward,
        config,
        train_dataset=as_dataset(examples, chat=False),
        processing_class=tokenizer,
    )
    trainer.train()
    asked = current_process_group().gather(
        [[[group.id for group in call["groups"]] for call in client.calls]]
    )
    if trainer.accelerator.is_main_process:
        assert trainer.distillation is not None
        torch.save(
            {
                "student": dict(
                    trainer.accelerator.unwrap_model(trainer.model_wrapped).state_dict()
                ),
                "teacher": dict(trainer.distillation.self_teacher.weights()),
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
