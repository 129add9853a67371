"""Gradients of one recorded batch: the GPU's, in fp32 and in bf16, against the CPU's in fp32.

    python -m gpu.gradients --out FILE [--small]

The CPU takes our own forward pass and the GPU TRL's fused head, so this compares the two ways as
well. Without a GPU the fused head runs on the CPU.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from gpu.part import Goal, Part, run_part
from gpu.shapes import MIDDLE, TINY, question, recorded, save_model
from markscheme_train.training import quieten
from training.worker import OURS, ROWS, assemble, shared

AT_MOST = {"fp32": 1e-4, "bf16": 5e-2}
"""Relative error of all gradients together. bf16 keeps 8 bits: it rounds by up to 0.4 %."""
Gradients = dict[str, Tensor]


class TakeGradients(TrainerCallback):  # type: ignore[misc]
    """Copies the gradients of the first step to the CPU before the optimiser sees them."""

    def __init__(self) -> None:
        self.found: Gradients = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = {
            name: parameter.grad.detach().float().cpu().clone()
            for name, parameter in kwargs["model"].named_parameters()
            if parameter.grad is not None
        }


def run(part: Part, directory: Path, small: bool) -> None:
    quieten()
    shape, length = (TINY, 24) if small else (MIDDLE, 256)
    gpu = torch.cuda.is_available()
    name = "GPU" if gpu else "CPU by the GPU's path"
    goals = {
        (method, precision): f"{method}, {name} in {precision}: relative error of the gradients"
        for method in OURS
        for precision in AT_MOST
    }
    part.expect(*(Goal(goal, at_most=AT_MOST[precision]) for (_, precision), goal in goals.items()))
    part.note(f"{shape}; {ROWS} recorded rollouts of {length} tokens, no activation checkpointing.")
    model = directory / "model"
    tokenizer = save_model(shape, model)

    def of(method: str, **options: Any) -> Gradients:
        rollouts = recorded(shape, length)
        return gradients(method, model, tokenizer, rollouts, directory / "run", **options)

    for method in OURS:
        reference = of(method, cpu=True, bf16=False, fused=False)
        for precision in AT_MOST:
            found = of(method, cpu=not gpu, bf16=precision == "bf16", fused=True)
            whole, worst, where = compare(found, reference)
            part.measured(goals[method, precision], whole)
            part.row(
                "Gradients against the CPU's in fp32",
                method=method,
                precision=precision,
                relative_error=whole,
                of_the_worst_weight=worst,
                which=where,
            )


def gradients(
    method: str,
    model: Path,
    tokenizer: Any,
    rollouts: list[list[int]],
    out: Path,
    *,
    cpu: bool,
    bf16: bool,
    fused: bool,
) -> Gradients:
    """The gradients of one step, unclipped. ``fused``: by TRL's head, also on a CPU."""
    settings = {
        **shared(len(rollouts[0]), 1, str(out)),
        "use_cpu": cpu,
        "bf16": bf16,
        "max_grad_norm": 0.0,
        "activation_checkpointing": False,
    }
    trainer = assemble(method, model, tokenizer, question(), rollouts, settings)
    if fused:
        trainer.plain_device = "none"
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    taken = TakeGradients()
    trainer.add_callback(taken)
    trainer.train()
    return taken.found


def compare(found: Gradients, reference: Gradients) -> tuple[float, float, str]:
    """Relative error over all weights, the largest of one weight, and that weight's name."""
    if found.keys() != reference.keys():
        raise ValueError(
            f"gradients of other weights: {sorted(found.keys() ^ reference.keys())[:5]}"
        )
    squares = {
        name: (
            (found[name].double() - right.double()).square().sum().item(),
            right.double().square().sum().item(),
        )
        for name, right in reference.items()
    }
    error, norm = (sum(pair[i] for pair in squares.values()) for i in (0, 1))
    worst, where = max(
        (float((one / two) ** 0.5) if two else float("inf") if one else 0.0, name)
        for name, (one, two) in squares.items()
    )
    return float((error / norm) ** 0.5), worst, where


if __name__ == "__main__":
    run_part("gpu.gradients", run)
