"""Batches of which SRPO routes two rollouts of each prompt to the self-teacher."""

from collections.abc import Callable
from typing import Any

from markscheme.schema import Rollout
from markscheme_train.optimiser_step import count_by_step
from markscheme_train.trainer import MarkschemeTrainer

PROMPTS = ["w1 w2 w3", "w4"]
MIXED = [1.0, 0.0, 0.0, 0.6]
"""The rewards of a prompt's four rollouts."""
Maker = Callable[..., MarkschemeTrainer]
"""Makes a trainer with the preset `srpo`, from a script of rewards and other settings."""


def mixed(place: int, rollout: Rollout) -> float:
    """Return the reward in `MIXED` of a rollout: a script for `ScriptedClient`."""
    return MIXED[place]


def generate(trainer: MarkschemeTrainer) -> dict[str, Any]:
    """Return a generated and scored batch of four rollouts for each of `PROMPTS`."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": prompt, "teacher_responses": None} for prompt in PROMPTS for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    count_by_step(trainer, [batch])
    return batch
