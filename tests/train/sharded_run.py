"""Train on recorded rollouts with the weights in shards: FSDP 2 over gloo, on a CPU."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from markscheme_train import training
from markscheme_train.callbacks import StopOnNonFinite
from markscheme_train.config import build_config
from markscheme_train.errors import Diverged
from markscheme_train.sharding import local_part
from markscheme_train.trainer import MarkschemeTrainer
from train import recorded_run
from train.recorded_run import Recorded
from train.tiny import ScriptedClient


class Sharded(MarkschemeTrainer):
    """Sharded by accelerate's own code, which it would leave out on a CPU."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=True,
        )
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if state.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
        self.is_fsdp_enabled = True


class ShardedRecorded(Sharded, Recorded):
    """Generates nothing: it says what was recorded."""


class Broken(ShardedRecorded):
    """Gets a gradient that is not finite, in the second process's part of a weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(StopOnNonFinite(self))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.process_index == 1:
            local_part(next(self.model.parameters()).grad).fill_(torch.inf)
        return loss


def main(settings: Path, out: Path) -> None:
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    recorded_run.main(settings, out, ShardedRecorded)


def command(
    settings: Path, resume: bool, rewards: list[float | None], made: type[Sharded] = Sharded
) -> None:
    """Run what `markscheme train` runs, with these rewards by place in the group."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    training.MarkschemeTrainer = made  # type: ignore[misc]
    training.train(
        build_config(json.loads(settings.read_text())),
        ScriptedClient(lambda place, _rollout: rewards[place]),
        resume=resume,
        on_record=lambda record: None,
    )
    os._exit(0)  # gloo's threads may outlive their group, and an ordinary exit then aborts


def diverge(settings: Path, out: Path) -> None:
    """Write which processes stopped."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        recorded_run.main(settings, out, Broken)
    except Diverged:
        Path(f"{out}-{os.environ['RANK']}").touch()
