"""A run of several processes whose `rollout_func` ends groups one after another."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from markscheme.integrations.processes import current_process_group
from markscheme_train.config import build_config
from markscheme_train.data import Example, as_dataset
from markscheme_train.reward import RubricReward
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import load_model, silence_libraries
from train.tiny import ScriptedClient

EOS = 1


def main(settings: Path, out: Path) -> None:
    """Write the weights, and for each process the ids of the groups of each request."""
    given = json.loads(settings.read_text())
    one_by_one, size = given.pop("one_by_one"), given["num_generations"]
    silence_libraries()
    config = build_config(given)
    model, tokenizer = load_model(config)
    client = ScriptedClient(lambda place, rollout: len(rollout.text) % 7 / 7)
    rank = config.process_index

    def rollouts(prompts: list[Any], trainer: MarkschemeTrainer) -> dict[str, Any]:
        ids = [[7 + 5 * rank + 3 * row, *[9] * (row % 3), EOS] for row in range(len(prompts))]
        for first in range(0, len(prompts), size) if one_by_one else ():
            group = slice(first, first + size)
            trainer.start_group(first, prompts[group], ids[group])
        prompt_ids = tokenizer(prompts)["input_ids"]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

    trainer = MarkschemeTrainer(
        model,
        RubricReward(client, num_generations=size, run_id="run", eos_token_ids=[EOS]),
        config,
        train_dataset=as_dataset([Example(prompt=f"w{n}") for n in range(8)], chat=False),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )
    trainer.train()
    asked = [[group.id for group in call["groups"]] for call in client.calls]
    everyone = current_process_group().gather([asked])
    if rank == 0:
        save_file(trainer.accelerator.unwrap_model(trainer.model).state_dict(), out)
        out.with_suffix(".json").write_text(json.dumps(everyone))
