"""Counts of an optimiser step over its micro-batches and all processes, to divide losses by.

TRL counts the tokens of a whole generated batch and divides them by its number of optimiser steps,
which is a token mean only on average.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from markscheme_train.self_distillation import SelfDistillation, student_token_mask

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


def count_by_step(trainer: "MarkschemeTrainer", batches: Sequence[dict[str, Any]]) -> None:
    """Store in each micro-batch the counts of its optimiser step. A collective.

    They are `rows_in_step` (rows with a token to learn from), `num_items_in_batch` (tokens, times
    the number of optimiser steps, by which TRL divides) and `weight_mean` (mean entropy weight).

    Args:
        trainer: The trainer.
        batches: The micro-batches of a generated batch, in order.
    """
    size = trainer.args.gradient_accumulation_steps
    steps = [batches[start : start + size] for start in range(0, len(batches), size)]
    sums = trainer.total(
        torch.stack(
            [
                torch.stack([_sums(trainer.distillation, part) for part in step]).sum(0)
                for step in steps
            ]
        )
    )
    for step, (rows, tokens, weights, weighed) in zip(steps, sums, strict=True):
        for part in step:
            part["rows_in_step"] = rows
            part["num_items_in_batch"] = tokens * len(steps)
            part["weight_mean"] = weights / weighed.clamp(min=1)


def _sums(distillation: SelfDistillation | None, part: Mapping[str, Any]) -> torch.Tensor:
    """Return rows, tokens, sum of entropy weights and number of weights of a micro-batch."""
    mask = student_token_mask(part)
    weights = (
        torch.zeros(2)
        if distillation is None or "routed" not in part
        else distillation.weight_sums(part)
    )
    return torch.stack([mask.any(1).sum(), mask.sum(), *weights.to(mask.device)]).float()
