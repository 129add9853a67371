"""A training run in a process of its own that kills itself, ``kill -9``, at a named point."""

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer

from markscheme import Client
from markscheme_train import trainer_checkpoint
from markscheme_train.config import build_config
from markscheme_train.reward import RubricReward
from markscheme_train.self_teacher import ModelCopy
from markscheme_train.step_log import StepRecorder
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import silence_libraries, train
from train.forked import context

POINTS: dict[str, tuple[Any, str]] = {
    "before the rollouts": (MarkschemeTrainer, "_generate"),
    "before the question": (RubricReward, "_post"),
    "before the update": (MarkschemeTrainer, "_compute_loss"),
    "before the teacher follows": (ModelCopy, "update"),
    "before the record": (StepRecorder, "on_step_end"),
    "before the checkpoint": (MarkschemeTrainer, "_save_checkpoint"),
    "in mid-checkpoint": (Trainer, "_save_rng_state"),
    "before the checkpoint's move": (trainer_checkpoint, "publish_dir"),
    "before the model is saved": (MarkschemeTrainer, "save_model"),
}
"""Where a run may die: as it enters this function for the given time (1: the first)."""


def main(
    settings: dict[str, Any], url: str, resume: bool, point: str | None, occasion: int
) -> None:
    torch.set_num_threads(1)
    silence_libraries()
    if point is not None:
        owner, name = POINTS[point]
        setattr(owner, name, dying(getattr(owner, name), occasion))
    with Client(url) as client:
        train(build_config(settings), client, resume=resume, on_record=lambda record: None)


def dying(function: Callable[..., Any], occasion: int) -> Callable[..., Any]:
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == occasion:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return called


def run(
    settings: dict[str, Any],
    url: str,
    *,
    resume: bool = False,
    point: str | None = None,
    occasion: int = 1,
    within_s: float = 120,
) -> int | None:
    """Its exit code; killed: ``-9``. Forked from a process that has everything imported already."""
    process = context().Process(target=main, args=(settings, url, resume, point, occasion))
    process.start()
    process.join(within_s)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode
