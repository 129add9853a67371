"""Train on recorded rollouts under DeepSpeed, over gloo, on a CPU."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from markscheme_train import training
from markscheme_train.config import build_config
from markscheme_train.errors import Diverged
from train import recorded_run
from train.recorded_run import Recorded
from train.tiny import ScriptedClient


class ZeroRecorded(Recorded):
    """Trained by DeepSpeed, which gathers weights in a way of its own."""

    def student_weights(self) -> dict[str, Any]:
        # Only the first process gets them, in the precision that is computed with.
        weights: dict[str, Any] = self.accelerator.get_state_dict(self.model_wrapped) or {}
        return weights

    def teacher_weights(self) -> dict[str, Any]:
        shapes = {
            name: getattr(weight, "ds_shape", weight.shape)
            for name, weight in self.model.named_parameters()
        }
        return {
            name: value.view(shapes.get(name, value.shape))
            for name, value in super().teacher_weights().items()
        }


class Broken(ZeroRecorded):
    """The second process gets gradients that are not finite; each keeps what it has then."""

    out: Path

    def _compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(*args, **kwargs)
        return loss * torch.inf if self.accelerator.process_index == 1 else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except Diverged:
            torch.save(self.student_weights(), f"{self.out}-{self.accelerator.process_index}")
            os._exit(0)  # gloo's threads may outlive their group, and an ordinary exit then aborts


def launched(settings: Path) -> None:
    """Set what `accelerate launch` sets for the file ``deepspeed.json`` beside the settings."""
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(settings.with_name("deepspeed.json")),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    }


def main(settings: Path, out: Path, made: type[Recorded] = ZeroRecorded) -> None:
    launched(settings)
    recorded_run.main(settings, out, made)
    os._exit(0)  # gloo's threads may outlive their group, and an ordinary exit then aborts


def diverge(settings: Path, out: Path) -> None:
    """Write the weights with which each process stopped."""
    Broken.out = out
    main(settings, out, Broken)


def command(settings: Path, resume: bool) -> None:
    """Run what `markscheme train` runs."""
    launched(settings)
    rewards = [1.0, 0.0, 0.25, 0.6]
    training.train(
        build_config(json.loads(settings.read_text())),
        ScriptedClient(lambda place, _rollout: rewards[place]),
        resume=resume,
        on_record=lambda record: None,
    )
    os._exit(0)  # gloo's threads may outlive their group, and an ordinary exit then aborts
