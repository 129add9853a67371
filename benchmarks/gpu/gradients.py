"""Gradients of one recorded batch: the GPU's, in fp32 and bf16, against the CPU's in fp32.

    python -m gpu.gradients --out FILE [--small]

The CPU takes our forward pass and the GPU TRL's fused head, so this compares both ways as well.
Without a GPU the fused head runs on the CPU.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from gpu.part import Goal, Part, run_part
from gpu.shapes import MIDDLE, TINY, question, recorded, save_model
from markscheme_train.training import silence_libraries
from training.worker import OURS, ROWS, assemble, shared

BOUNDS = {"fp32": 1e-4, "bf16": 5e-2}
"""Maximum relative error of all gradients together, by precision."""
PEERS = {"grpo": "TRL GRPO", "sdpo": "TRL SDPO"}
"""Trainers of TRL with the same objective here (rollouts of one length).

What a precision costs depends on the objective: SDPO takes the difference of two similar
distributions, at the student's likeliest tokens, and rounding decides which of two about as likely
is the last of them. So their error is the measure.
"""
BESIDE_PEERS = (("grpo", "bf16"), ("sdpo", "fp32"), ("sdpo", "bf16"))
PEER_AT_MOST = 1.1
TABLE = "Gradients against the CPU's in fp32"
Gradients = dict[str, Tensor]


class TakeGradients(TrainerCallback):  # type: ignore[misc]
    """Copies the gradients of the first step to the CPU before the optimiser uses them."""

    def __init__(self) -> None:
        self.found: Gradients = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copy the gradients."""
        self.found = {
            name: parameter.grad.detach().float().cpu().clone()
            for name, parameter in kwargs["model"].named_parameters()
            if parameter.grad is not None
        }


def run(part: Part, directory: Path, small: bool) -> None:
    """Measure and write the part."""
    silence_libraries()
    shape, length = (TINY, 24) if small else (MIDDLE, 256)
    gpu = torch.cuda.is_available()
    name = "GPU" if gpu else "CPU by the GPU's path"
    goals = {}
    for method in OURS:
        for precision, bound in BOUNDS.items():
            goal = f"{method}, {name} in {precision}: relative error"
            if (method, precision) in BESIDE_PEERS:
                goal, bound = f"{goal} / {PEERS[method]}'s", PEER_AT_MOST
            goals[method, precision] = Goal(goal, at_most=bound)
    part.expect(*goals.values())
    part.note(f"{shape}; {ROWS} recorded rollouts of {length} tokens, no activation checkpointing.")
    model = directory / "model"
    tokenizer = save_model(shape, model)

    def of(arm: str, **options: Any) -> Gradients:
        rollouts = recorded(shape, length)
        return gradients(arm, model, tokenizer, rollouts, directory / "run", **options)

    for method in OURS:
        reference = of(method, cpu=True, bf16=False, fused=False)
        for precision in BOUNDS:
            errors = []
            for arm in (method, *([PEERS[method]] if method in PEERS else [])):
                found = of(arm, cpu=not gpu, bf16=precision == "bf16", fused=True)
                error, worst, where = compare(found, reference)
                errors.append(error)
                part.row(TABLE, trainer=arm, precision=precision, relative_error=error,
                         of_the_worst_weight=worst, which=where)  # fmt: skip
            beside = errors[-1] if (method, precision) in BESIDE_PEERS else 1.0
            part.measured(goals[method, precision].name, errors[0] / beside)


def gradients(
    arm: str,
    model: Path,
    tokenizer: Any,
    rollouts: list[list[int]],
    out: Path,
    *,
    cpu: bool,
    bf16: bool,
    fused: bool,
) -> Gradients:
    """Return the gradients of one step, unclipped; `fused` uses TRL's head, also on a CPU."""
    settings = {
        **shared(len(rollouts[0]), 1, str(out)),
        "use_cpu": cpu,
        "bf16": bf16,
        "max_grad_norm": 0.0,
        "activation_checkpointing": False,
    }
    trainer = assemble(arm, model, tokenizer, question(), rollouts, settings)
    if fused and arm in OURS:
        trainer.plain_device = "none"
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    taken = TakeGradients()
    trainer.add_callback(taken)
    trainer.train()
    return taken.found


def compare(found: Gradients, reference: Gradients) -> tuple[float, float, str]:
    """Return the relative error over all weights, the largest of one weight, and its name."""
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
