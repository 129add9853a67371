"""The student's forward pass on a micro-batch, by TRL's fused head or plainly.

On a CPU TRL's fused head projects the prompt's positions too, which is 27 times slower for a tiny
model with a long prompt. There, and under ZeRO 3, only the completion is projected, a chunk at a
time. Shapes: B rows, each a prompt of P tokens and a completion of C; d numbers a hidden state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from markscheme_train.distillation import Head, token_log_probs
from markscheme_train.hidden_states import last_states, output_head, transformers_model
from markscheme_train.prefix import can_share, shared_prompt_states
from markscheme_train.sharding import is_sharded

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


@dataclass(frozen=True, slots=True)
class StudentStates:
    """The student's forward pass.

    Attributes:
        log_probs: Of the sampled tokens [B, C].
        entropies: Of the distributions that they were sampled from [B, C], in nats.
        states: Hidden states [B, C, d].
        head: Maps states to logits.
        hidden: The model's last hidden states as it returned them, one tensor a micro-batch, to
            watch their gradients.
    """

    log_probs: Tensor
    entropies: Tensor
    states: Tensor
    head: Head
    hidden: Sequence[Tensor]


def run_student(
    trainer: "MarkschemeTrainer",
    model: Any,
    inputs: Mapping[str, Any],
    fused: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
) -> tuple[StudentStates, Tensor | None]:
    """Run the student on a micro-batch; also return the experts' auxiliary loss, if any.

    Args:
        trainer: The trainer.
        model: Its model, as it wraps it.
        inputs: A prepared micro-batch.
        fused: TRL's `_get_per_token_logps_and_entropies`.
    """
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    keep = inputs["completion_ids"].shape[1]
    if runs_plainly(trainer, input_ids, trainer.aux_loss_enabled, {}):
        plain = plain_states(
            trainer, model, input_ids, attention_mask, keep, without_gradient=inputs["routed"]
        )
        return plain, None
    inner = transformers_model(trainer.accelerator.unwrap_model(model))
    with last_states(inner) as seen:
        log_probs, entropies, auxiliary = fused(
            model,
            input_ids,
            attention_mask,
            keep,
            compute_entropy=True,
            compute_aux_loss=trainer.aux_loss_enabled,
        )
    # A state predicts the next token, so the window lies one position earlier.
    states = torch.cat([part[:, -keep - 1 : -1] for part in seen])
    return StudentStates(log_probs, entropies, states, output_head(inner), seen), auxiliary


def runs_plainly(
    trainer: "MarkschemeTrainer",
    input_ids: Tensor,
    compute_aux_loss: bool,
    images: Mapping[str, Any],
) -> bool:
    """Return whether `plain_states` runs the student, and not TRL's fused head."""
    # TRL's head alone gives entropies a gradient.
    entropy_is_trained = trainer._entropy_bonus_enabled and torch.is_grad_enabled()
    return (
        input_ids.device.type == trainer.plain_device
        and not compute_aux_loss
        and not entropy_is_trained
        and all(value is None for value in images.values())
    )


def plain_states(
    trainer: "MarkschemeTrainer",
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    keep: int,
    *,
    batch_size: int | None = None,
    without_gradient: Tensor | None = None,
) -> StudentStates:
    """Run the model without its head, and the head on the completions, a chunk at a time.

    Padding counts 0 in log-probabilities and entropies.

    Args:
        trainer: The trainer.
        model: Its model, as it wraps it.
        input_ids: Tokens [B, P + C].
        attention_mask: Mask [B, P + C].
        keep: C.
        batch_size: Rows that run at once; default: all.
        without_gradient: Rows [B] whose log-probabilities need no gradient.
    """
    unwrapped = trainer.accelerator.unwrap_model(model)
    inner = transformers_model(unwrapped)
    every = []
    size = batch_size or len(input_ids)
    # Sharing calls a part of the model, inside the wrapper of DDP, FSDP or DeepSpeed.
    share = (
        trainer.accelerator.num_processes == 1
        and not trainer.is_deepspeed_enabled
        and not is_sharded(unwrapped)
        and keep > 1
        and can_share(model)
    )
    for ids, mask in zip(
        torch.split(input_ids, size), torch.split(attention_mask, size), strict=True
    ):
        if share:
            with trainer.accelerator.autocast():
                every.append(shared_prompt_states(inner.base_model, ids, mask, keep))
        else:
            with last_states(inner) as seen:
                # Only the states are used. `logits_to_keep=0` would ask for all logits.
                model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
            every += [states[:, -keep - 1 : -1] for states in seen]
    states = torch.cat(every)
    head = output_head(inner)
    counted = attention_mask[:, -keep:].bool()
    precise = torch.promote_types(states.dtype, torch.float32)
    log_probs, entropies = (states.new_zeros(counted.shape, dtype=precise) for _ in range(2))
    # Routed rows learn from the divergence alone: their log-probabilities need no graph.
    fixed = torch.zeros_like(counted[:, 0]) if without_gradient is None else without_gradient
    for rows, learning in (
        (counted & ~fixed.unsqueeze(1), True),
        (counted & fixed.unsqueeze(1), False),
    ):
        with (
            torch.set_grad_enabled(learning and torch.is_grad_enabled()),
            trainer.accelerator.autocast(),
        ):
            token_logps, token_entropies = token_log_probs(
                states[rows], input_ids[:, -keep:][rows], head, temperature=trainer.temperature
            )
        log_probs[rows] = token_logps.to(log_probs)
        entropies[rows] = token_entropies.to(entropies)
    if not (counted & ~fixed.unsqueeze(1)).any():  # DDP needs a gradient of every weight
        log_probs = log_probs + 0 * head(states[:1, :1]).sum()
    return StudentStates(log_probs, entropies, states, head, every)
