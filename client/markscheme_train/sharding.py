"""Weights in shards, each process holding a part: FSDP 2, and DeepSpeed's ZeRO 3.

What needs DeepSpeed itself is in `zero`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from markscheme_train.errors import ConfigError

if TYPE_CHECKING:
    from markscheme_train.config import TrainConfig
    from markscheme_train.trainer import MarkschemeTrainer


def is_fsdp_run(args: "TrainConfig") -> bool:
    """Return whether accelerate is asked for FSDP, by the configuration or by its launcher."""
    return args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")


def is_zero3_run(args: "TrainConfig") -> bool:
    """Return whether DeepSpeed's ZeRO 3 takes the weights apart."""
    plugin = args.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def weight_sharding(args: "TrainConfig") -> str:
    """Return what shards the weights or the optimiser, in words."""
    if args.deepspeed_plugin is not None:
        return f"sharded by ZeRO {args.deepspeed_plugin.zero_stage}"
    return "sharded by FSDP" if is_fsdp_run(args) else "whole"


def check_shards(trainer: "MarkschemeTrainer") -> None:
    """Raise `ConfigError` if the weights are in shards in a way that is not known here."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if plugin is not None and plugin.zero_stage == 0:
        raise ConfigError("DeepSpeed's zero_stage 0 shards nothing: leave out DeepSpeed, or set 2")
    if (
        plugin is not None
        and plugin.zero_stage == 3
        and not plugin.deepspeed_config["zero_optimization"].get(
            "stage3_gather_16bit_weights_on_model_save"
        )
    ):
        raise ConfigError(
            "ZeRO 3 would save no model: set zero3_save_16bit_model: true, as "
            "examples/accelerate/zero3.yaml does"
        )
    if trainer.args.method == "grpo":
        return
    if is_fsdp_run(trainer.args) and not trainer.is_fsdp_enabled:
        raise ConfigError("accelerate shards no weights on a CPU: leave out FSDP")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError(
            f"method {trainer.args.method} has a self-teacher, which needs FSDP 2, not 1: set "
            "fsdp_version: 2, as examples/accelerate/fsdp2.yaml does"
        )


def is_sharded(module: Any) -> bool:
    """Return whether the module's weights are gathered in its forward pass."""
    return isinstance(module, FSDPModule) or any(map(is_zero3, module.parameters()))


def is_zero3(weight: Any) -> bool:
    """Return whether DeepSpeed's ZeRO 3 has taken the weight apart."""
    return hasattr(weight, "ds_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part that this process holds, in the same memory: of most tensors all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


class Shards(Protocol):
    """How the student's weights lie in parts on the processes."""

    def held(self, weight: Tensor) -> Tensor:
        """Return the part of a weight that is computed with, in the same memory."""

    def stepped(self, weight: Tensor) -> Tensor:
        """Return the part of a weight that the optimiser steps: in fp32 where it has one so."""

    def distributed(self, weight: Tensor, part: Tensor) -> Tensor:
        """Return a distributed tensor of which this process holds `part`, cut as the weight is."""

    def whole(self, weight: Tensor, tensor: Tensor) -> Tensor:
        """Gather a distributed tensor, in the weight's shape. A collective."""

    def release(self) -> None:
        """Drop gathered weights, since their shards change."""

    def put(self, held: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Copy values into parts as `held` returns them, before weights are gathered again."""


class FsdpShards:
    """Weights under FSDP 2, which are distributed tensors themselves."""

    def __init__(self, student: nn.Module) -> None:
        self._student = student

    def held(self, weight: Tensor) -> Tensor:
        """Return the part of a weight that is computed with, in the same memory."""
        return local_part(weight)

    def stepped(self, weight: Tensor) -> Tensor:
        """Return the same: FSDP casts it only when it gathers it."""
        return local_part(weight)

    def distributed(self, weight: Tensor, part: Tensor) -> Tensor:
        """Return a distributed tensor of which this process holds `part`, cut as the weight is."""
        if not isinstance(weight, DTensor):
            return part
        return DTensor.from_local(
            part,
            weight.device_mesh,
            weight.placements,
            shape=weight.shape,
            stride=weight.stride(),
        )

    def whole(self, weight: Tensor, tensor: Tensor) -> Tensor:
        """Gather a distributed tensor. A collective."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def release(self) -> None:
        """Drop gathered weights, which FSDP keeps of some layers, since their shards change."""
        for module in self._student.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def put(self, held: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Copy values into parts; what FSDP gathers next waits for it."""
        torch._foreach_copy_(list(held), list(values))
