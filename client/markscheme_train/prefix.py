"""Compute completion states with one pass per distinct prompt: on a CPU the main cost of an update.

The rollouts of a group share their prompt. One pass over the distinct prompts fills a key-value
cache, whose rows are copied to the completions; gradients flow back through both. Exact up to
rounding, for models with plain full attention only.
"""

from typing import Any

import torch


def can_share(model: Any) -> bool:
    """Return whether `model` keeps an ordinary key-value cache whose rows can be copied."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(model, "is_activation_checkpointing", False)


def shared_prompt_states(
    backbone: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
) -> torch.Tensor:
    """Return the last hidden states [B, C, d] that predict the last C tokens.

    Args:
        backbone: The model without its head.
        input_ids: Tokens [B, P + C], prompts padded on the left.
        attention_mask: Mask [B, P + C].
        completion_length: C.
    """
    width = input_ids.shape[1] - completion_length
    # Compare tokens and mask together: padding must not make two prompts equal.
    keys = torch.cat([input_ids[:, :width], attention_mask[:, :width].to(input_ids.dtype)], dim=1)
    distinct, place = torch.unique(keys, dim=0, return_inverse=True)
    prompts = backbone(
        input_ids=distinct[:, :width], attention_mask=distinct[:, width:], use_cache=True
    )
    cache = prompts.past_key_values
    cache.batch_select_indices(place)
    # A state predicts the next token: the prompt's last one predicts the first token of the
    # completion, and the state of the completion's last token is not needed.
    completions = backbone(
        input_ids=input_ids[:, width:-1],
        attention_mask=attention_mask[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([prompts.last_hidden_state[place, -1:], completions.last_hidden_state], dim=1)
