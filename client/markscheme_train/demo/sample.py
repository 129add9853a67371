"""Batched sampling from a causal model, for evaluation; the trainer samples by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled response. `truncated` means that it hit the token limit."""

    text: str
    truncated: bool
    tokens: int


def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    per_prompt: int,
    max_new_tokens: int,
    seed: int,
    rows: int = 64,
    temperature: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> list[list[Sample]]:
    """Sample `per_prompt` responses to each prompt, in the order of `prompts`.

    Prompts of similar length share a batch of about `rows` rows, which saves padding. The global
    generator is seeded for the call and restored afterwards.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Texts of one user message each.
        per_prompt: Responses a prompt.
        max_new_tokens: Token limit of a response.
        seed: Seed of the call.
        rows: Rows of a batch.
        temperature: Divides the logits.
        progress: Called with the responses that each batch added.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    step = max(1, rows // per_prompt)
    answers: list[list[Sample]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(order), step):
            part = order[start : start + step]
            samples = _sample_batch(
                model,
                tokenizer,
                [prompts[i] for i in part],
                per_prompt=per_prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            for place, i in enumerate(part):
                answers[i] = samples[place * per_prompt : (place + 1) * per_prompt]
            if progress is not None:
                progress(len(samples))
    model.train(was_training)
    return answers


def _sample_batch(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    *,
    per_prompt: int,
    max_new_tokens: int,
    temperature: float,
) -> list[Sample]:
    """Sample with a cache that each prompt fills once; `generate` fills it for every response.

    That saves a quarter of the time on a CPU. Finished rows run on until all have ended.
    """
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    batch = tokenizer(
        chats, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    )
    mask = batch["attention_mask"]
    output = model(
        input_ids=batch["input_ids"], attention_mask=mask, use_cache=True, logits_to_keep=1
    )
    cache, logits = (
        output.past_key_values,
        output.logits[:, -1].repeat_interleave(per_prompt, dim=0),
    )
    cache.batch_repeat_interleave(per_prompt)
    mask = mask.repeat_interleave(per_prompt, dim=0)
    drawn: list[torch.Tensor] = []
    while True:
        drawn.append(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1))
        ended = (torch.cat(drawn, dim=1) == tokenizer.eos_token_id).any(dim=1)
        if len(drawn) == max_new_tokens or bool(ended.all()):
            return [_decode(tokenizer, row) for row in torch.cat(drawn, dim=1).tolist()]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits = model(
            input_ids=drawn[-1], attention_mask=mask, past_key_values=cache, use_cache=True
        ).logits[:, -1]


def _decode(tokenizer: Any, ids: list[int]) -> Sample:
    ended = tokenizer.eos_token_id in ids
    kept = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
    return Sample(
        text=tokenizer.decode(kept, skip_special_tokens=True), truncated=not ended, tokens=len(kept)
    )
