"""DeepSpeed: weights that ZeRO 3 has taken apart, and a step that is looked at before it is taken.

DeepSpeed is imported only where it runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Size, Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import TrainerCallback

from markscheme_train.errors import diverged
from markscheme_train.hidden_states import transformers_model
from markscheme_train.model_checks import check_output_head
from markscheme_train.sharding import is_zero3_run

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


class ZeroShards:
    """Weights under ZeRO 3: each is flat, cut into equal parts, the last one padded.

    A part without its padding is what `Shard(0)` gives each process of a flat distributed tensor.

    Args:
        engine: Returns the DeepSpeed engine, once there is one.
    """

    def __init__(self, engine: Callable[[], Any]) -> None:
        self._engine = engine

    def held(self, weight: Any) -> Tensor:
        """Return the part of a weight that is computed with, in the same memory."""
        return _without_padding(weight, weight.ds_tensor)

    def stepped(self, weight: Any) -> Tensor:
        """Return the part of a weight that the optimiser steps, in fp32."""
        from deepspeed.utils import safe_get_local_fp32_param

        return _without_padding(weight, safe_get_local_fp32_param(weight))

    def distributed(self, weight: Any, part: Tensor) -> Tensor:
        """Return a distributed tensor of which this process holds `part`, cut as the weight is."""
        return DTensor.from_local(
            part,
            init_device_mesh(part.device.type, (distributed.get_world_size(),)),
            [Shard(0)],
            shape=Size([weight.ds_numel]),
            stride=(1,),
        )

    def whole(self, weight: Any, tensor: Any) -> Tensor:
        """Gather a distributed tensor, in the weight's shape. A collective."""
        whole: Tensor = tensor.full_tensor().view(weight.ds_shape)
        return whole

    def release(self) -> None:
        """Drop gathered weights: ZeRO keeps small ones whole, and those that it has prefetched."""
        self._engine().optimizer.empty_partition_cache()

    def put(self, held: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Copy values into parts, and wait: ZeRO gathers on a stream that does not."""
        from deepspeed.accelerator import get_accelerator

        torch._foreach_copy_(list(held), list(values))
        if not get_accelerator().resolves_data_dependency():
            get_accelerator().current_stream().synchronize()


class GuardedEngine(DeepSpeedEngineWrapper):  # type: ignore[misc]
    """Steps as accelerate's wrapper does, unless the step must not be taken.

    Both step inside the backward pass: whoever looks at the gradients afterwards is too late.

    Args:
        engine: The DeepSpeed engine.
        teaches: Returns whether the current optimiser step has any token to learn from; the same
            in all processes.
        step: Returns the number of the current step.
    """

    def __init__(
        self, engine: Any, *, teaches: Callable[[], bool], step: Callable[[], int]
    ) -> None:
        super().__init__(engine)
        self._teaches, self._step = teaches, step

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Run the backward pass and, at its end, the optimiser step.

        Without anything to learn from it runs neither: momentum and weight decay move weights even
        on gradients of zero. The learning rate goes on as it does without DeepSpeed.

        Raises `Diverged` in all processes if gradients of one are not finite.
        """
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        if not self._teaches():
            if sync_gradients:
                self.engine._global_grad_norm = 0.0  # else the log repeats the last step's
                if self.engine.lr_scheduler is not None:
                    self.engine.lr_scheduler.step()
            return
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            # fp16: DeepSpeed skips a step that overflowed and retries on a smaller scale.
            if not self.engine.fp16_enabled() and self.engine.optimizer.has_overflow():
                raise diverged(self._step())
            self.engine.step()


class GuardDeepSpeed(TrainerCallback):  # type: ignore[misc]
    """Puts the guards around DeepSpeed's step, once a trainer has made its engine."""

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the guards, and check the output head if it was in shards until now."""
        trainer = self._trainer
        trainer.accelerator.deepspeed_engine_wrapped = GuardedEngine(
            trainer.accelerator.deepspeed_engine_wrapped.engine,
            teaches=lambda: trainer.teaches(trainer._step),
            step=lambda: trainer.state.global_step + 1,
        )
        if is_zero3_run(args):
            check_output_head(trainer)
            gather_for_gradient(transformers_model(trainer.model).get_output_embeddings())


def gather_for_gradient(head: nn.Module) -> None:
    """Have the output head's weights whole when their gradient is stored, under ZeRO 3.

    The gradient is a sum, of TRL's fused head and of the divergence, and torch copies it into new
    memory of the weight's size. DeepSpeed drops the weight between the two, and TRL gathers it only
    while it computes its part: without this the size is 0. Gathering is a collective.
    """

    def gather(weight: Any, _gradient: Tensor) -> None:
        weight.all_gather()

    for weight in head.parameters():
        if weight.requires_grad:
            weight.register_hook(partial(gather, weight))  # type: ignore[no-untyped-call]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gather all weights that ZeRO 3 has taken apart. What is written into them is not kept."""
    apart = [weight for weight in model.parameters() if hasattr(weight, "ds_tensor")]
    if not apart:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(apart):
        yield


def _without_padding(weight: Any, part: Tensor) -> Tensor:
    start = part.numel() * distributed.get_rank()
    kept: Tensor = part[: max(0, min(part.numel(), weight.ds_numel - start))]
    return kept
