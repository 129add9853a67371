"""A model's last hidden states, and the head that makes logits of them.

Works with adapters and with weights in shards (FSDP 2, ZeRO 3). Shapes: B rows of T tokens, d
numbers a state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from markscheme_train.sharding import is_sharded, is_zero3


@contextmanager
def last_states(model: Any) -> Iterator[list[Tensor]]:
    """Collect the last hidden states [B, T, d] of each forward pass, with their graph."""
    seen: list[Tensor] = []
    hook = transformers_model(model).base_model.register_forward_hook(
        lambda _module, _inputs, out: seen.append(out[0])
    )
    try:
        yield seen
    finally:
        hook.remove()


def completion_states(model: Any, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
    """Return the states [B, keep, d] that predict the last `keep` of T tokens."""
    if is_sharded(model):
        # Only the root's forward gathers all weights. The head runs too, on one position.
        with last_states(model) as seen:
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                logits_to_keep=1,
                use_cache=False,
            )
        return seen[0][:, -keep - 1 : -1]
    out = transformers_model(model).base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    )
    states: Tensor = out.last_hidden_state[:, -keep - 1 : -1]
    return states


def output_head(
    model: Any, project: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the map from hidden states to logits, scaled and capped as the model family does.

    A head that is in shards is gathered, unless it is whole already: call this in all processes,
    after a forward pass.

    Args:
        model: The model.
        project: Used instead of the model's output layer.
    """
    project = project or _output_layer(model)
    config = model.config.get_text_config()
    # transformers does this in each model's forward, not in the head: Cohere, Falcon-H1, Muse and
    # HyperCLOVA X multiply, Granite and MiniCPM3 divide, Gemma 2 caps.
    factors = (
        getattr(config, name, None)
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
    )
    scale = next((factor for factor in factors if factor is not None), 1.0)
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        scale *= scaling if config.model_type == "hyperclovax" else 1.0 / scaling
    cap = getattr(config, "final_logit_softcapping", None)

    def head(states: Tensor) -> Tensor:
        logits: Tensor = project(states)
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return head


def _output_layer(model: Any) -> Callable[[Tensor], Tensor]:
    layer: Any = model.get_output_embeddings()
    if is_sharded(layer):
        for weight in layer.parameters():
            if is_zero3(weight):
                weight.all_gather()
        # With FSDP its weight is whole from the root's forward pass on. Its hooks belong into that.
        return lambda states: functional.linear(states, layer.weight, layer.bias)
    project: Callable[[Tensor], Tensor] = layer
    return project


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off; restore the mode at the end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def transformers_model(model: Any) -> Any:
    """Return the transformers model that PEFT wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
