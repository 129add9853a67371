"""TRL's own trainer with the rubric's reward, in one process or several."""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from markscheme.integrations.trl import AsyncRubricReward, RubricReward, Together
from train.tiny import ScriptedClient, tiny_model, tiny_tokenizer

REWARDS = [0.8, 0.8, None, 0.8]
"""By place in the group."""


def brevity(completions: Any, **_columns: Any) -> list[float]:
    return [0.5] * len(completions)


async def politeness(completions: Any, **_columns: Any) -> list[float]:
    return [0.25] * len(completions)


class Shown(GRPOTrainer):
    """Keeps the advantages of its last batch."""

    advantages: tuple[float, ...] = ()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        self.advantages = tuple(batch["advantages"].tolist())
        return batch


def train(
    output: Path, rows: int, *, together: bool = False, **settings: Any
) -> tuple[Shown, ScriptedClient]:
    """Take a step with several reward functions and `rows` rollouts on this process.

    `together`: as one async function, with an async reward among them.
    """
    client = ScriptedClient(lambda place, rollout: REWARDS[place])
    kind = AsyncRubricReward if together else RubricReward
    reward = kind(client, num_generations=4, run_id="plain")
    data = Dataset.from_list([{"prompt": f"w{i} w{i + 1}"} for i in range(4)])
    trainer = Shown(
        tiny_model(),
        reward_funcs=[Together([brevity, reward, politeness], weights=[2, 1, 1])]
        if together
        else [reward, reward.where_scored(brevity)],
        args=GRPOConfig(
            output_dir=str(output),
            num_generations=4,
            per_device_train_batch_size=rows,
            max_completion_length=4,
            max_steps=1,
            scale_rewards="none",
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer, client


def main(directory: Path, together: bool) -> None:
    """Train with two rollouts on this process and write what it asked and learnt from."""
    trainer, client = train(directory / "out", rows=2, together=together)
    facts = {
        "groups": [[len(g.rollouts) for g in made["groups"]] for made in client.calls],
        "unscored": trainer.state.log_history[0]["rubric/unscored_rate"],
        "advantages": trainer.advantages,
    }
    (directory / f"facts-{os.environ['RANK']}.json").write_text(json.dumps(facts))
