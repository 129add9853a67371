"""Compute the loss of each optimiser step on a batch in several processes; write what it is of."""

import json
import os
from pathlib import Path

import torch

from markscheme_train.config import build_config
from markscheme_train.data import Example
from markscheme_train.reward import RubricReward
from markscheme_train.training import build_trainer, silence_libraries
from train.tiny import ScriptedClient, tiny_model, tiny_tokenizer

PROMPTS = ["w1 w2 w3", "w4", "w5", "w6 w7"]
REWARDS = [None, 0.5, 0.9, 1.0, None, None, 0.6, 0.7, 1.0, 0.5, 0.6, 0.9, None, 0.8, 0.5, 0.7]


def main(settings: Path, out: Path) -> None:
    silence_libraries()
    answers = iter(REWARDS)
    trainer = build_trainer(
        build_config(json.loads(settings.read_text())),
        tiny_model(),
        tiny_tokenizer(),
        [Example(prompt=p) for p in PROMPTS],
        RubricReward(
            ScriptedClient(lambda place, rollout: next(answers)), num_generations=4, run_id="run"
        ),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rank, size = trainer.accelerator.process_index, len(REWARDS) // 2
    prompts = [prompt for prompt in PROMPTS for _ in range(4)][rank * size : (rank + 1) * size]
    rows = [{"prompt": prompt, "teacher_responses": None} for prompt in prompts]
    found = []
    for step in range(2):
        trainer._step = step
        part = trainer._prepare_inputs(rows)
        loss = trainer._compute_loss(trainer.model, part).detach()
        mask = part["completion_mask"].float()
        sums = trainer.total(
            torch.stack([(part["advantages"].unsqueeze(1) * mask).sum(), mask.sum()])
        )
        # Processes average their gradients.
        found.append(
            {
                "loss": (trainer.total(loss) / trainer.accelerator.num_processes).item(),
                "token_mean": (-sums[0] / sums[1]).item(),
                "tokens": [mask.sum().item(), sums[1].item()],
            }
        )
    if rank == 0:
        out.write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive their group, and an ordinary exit then aborts
