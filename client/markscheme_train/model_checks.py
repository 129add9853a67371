"""Checks of a model and its settings before training, raised while nothing is lost yet."""

from typing import TYPE_CHECKING

import torch

from markscheme_train.errors import ConfigError, ModelError
from markscheme_train.hidden_states import last_states, output_head, transformers_model
from markscheme_train.sharding import check_shards, is_zero3_run

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

MIN_MOVED_SHARE = 0.5
"""Share of half-precision weights that a step of the learning rate must move."""
HEAD_TOLERANCE = 1e-2
"""Error of the logits that rounding in half precision explains, as a share of the largest."""


def check_trainer(trainer: "MarkschemeTrainer") -> None:
    """Raise `ConfigError` or `ModelError` for what could not be trained, once TRL has set up."""
    args = trainer.args
    if args.max_resampling_rounds and (trainer.tools or trainer.rollout_func):
        raise ConfigError("max_resampling_rounds must be 0 with tools or a rollout_func")
    if args.reward_lag and trainer.tools:
        raise ConfigError("reward_lag must be 0 with tools")
    check_steps_move_weights(trainer)
    # ZeRO 3 has taken the head apart: `GuardDeepSpeed` checks it once there is an engine.
    if not is_zero3_run(args):
        check_output_head(trainer)
    check_shards(trainer)


@torch.no_grad()
def check_steps_move_weights(trainer: "MarkschemeTrainer") -> None:
    """Raise `ConfigError` if an Adam step of the learning rate is lost in the weights' precision.

    Adam moves a weight by about the learning rate. A step below half the spacing of numbers at the
    weight is rounded away; at least half of the weights must move. DeepSpeed and FSDP keep fp32
    weights of their own.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    rate, moved, count = trainer.args.learning_rate, 0, 0
    for weight in trainer.model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            # In the weight's own precision, as the optimiser computes it.
            moved += int((weight - rate != weight).sum())
            count += weight.numel()
    if moved < MIN_MOVED_SHARE * count:
        raise ConfigError(
            f"at `learning_rate` {rate:g} a step moves {moved / count:.0%} of the weights, which "
            "are in half precision: the others round it away. Leave `dtype` out of "
            "`model_init_kwargs` (fp32 weights, computed in bf16 with `bf16: true`), train an "
            "adapter (`lora_rank`), or raise the learning rate"
        )


@torch.no_grad()
def check_output_head(trainer: "MarkschemeTrainer") -> None:
    """Raise `ModelError` unless `output_head` makes the model's own logits, on two tokens.

    Nothing is checked where TRL alone makes logits.
    """
    if trainer.args.method == "grpo" and trainer.accelerator.device.type != trainer.plain_device:
        return
    model = transformers_model(trainer.model)
    # Two: the state of a padding token may be 0, which every factor leaves at 0.
    tokens = torch.arange(2, device=model.device).unsqueeze(0)
    training = model.training
    model.eval()
    with last_states(model) as seen:
        logits = model(input_ids=tokens, use_cache=False).logits.float()
    model.train(training)
    error = (output_head(model)(seen[0]).float() - logits).abs().max()
    if error > HEAD_TOLERANCE * logits.abs().max():
        raise ModelError(
            f"{type(model).__name__} does more to its logits than its output layer, and what is "
            f"not known (they differ by {error:.3g}): it cannot be trained here"
        )
