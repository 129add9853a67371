"""Losses over the whole vocabulary, computed a chunk of positions at a time.

Hidden states are small, logits are not: 2,048 positions over 151,000 tokens take 1.2 GB in fp32.
Here logits live for one chunk; the teacher's without a gradient, the student's recomputed in the
backward pass. Reductions are in fp32 (fp64 for fp64 states). Shapes: N positions, d dimensions, V
tokens. No positions are one empty chunk, so that their result is part of the graph too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from markscheme_train.losses import generalized_jsd, with_tail

Head = Callable[[Tensor], Tensor]
"""Maps hidden states [N, d] to logits [N, V]."""
CHUNK = 256
"""Positions per chunk: with 151,000 tokens their logits take 155 MB in fp32."""


@torch.no_grad()
def entropies(
    hidden: Tensor, head: Head, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """Return the entropy in nats [N] of each position's distribution: `log Z - Σ p z`."""
    parts = []
    for states in torch.split(hidden, chunk):
        logits = _scaled(head(states), temperature)
        normaliser = logits.logsumexp(-1)
        parts.append(normaliser - ((logits - normaliser.unsqueeze(-1)).exp() * logits).sum(-1))
    return torch.cat(parts)


def token_log_probs(
    hidden: Tensor, tokens: Tensor, head: Head, *, temperature: float, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N] of `tokens` [N], and entropies [N] without a gradient.

    Args:
        hidden: States [N, d].
        tokens: Token ids [N].
        head: Maps states to logits.
        temperature: Divides the logits.
        chunk: Positions per chunk.
    """

    def part(states: Tensor, ids: Tensor, cached: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = _scaled(head(states), temperature)
        if not cached:  # filled by the forward pass; recomputation in the backward pass reuses it
            with torch.no_grad():
                cached.append(entropies(logits, lambda logits: logits))
        return _log_probs_at(logits, ids.unsqueeze(-1)).squeeze(-1), cached[0]

    parts = [
        # Each chunk has a list of its own, which its forward and its backward pass share.
        checkpoint(part, states, ids, [], use_reentrant=False)
        for states, ids in zip(torch.split(hidden, chunk), torch.split(tokens, chunk), strict=True)
    ]
    return torch.cat([log_probs for log_probs, _ in parts]), torch.cat(
        [entropy for _, entropy in parts]
    )


def divergences(
    student: Tensor,
    teacher: Tensor,
    student_head: Head,
    teacher_head: Head,
    *,
    alpha: float,
    top_k: int | None,
    temperature: float,
    chunk: int = CHUNK,
) -> Tensor:
    """Return the generalised Jensen-Shannon divergence [N] of student and self-teacher.

    Gradients reach the student's states and head.

    Args:
        student: The student's states [N, d].
        teacher: The self-teacher's states [N, d].
        student_head: Maps the student's states to logits.
        teacher_head: Maps the self-teacher's states to logits.
        alpha: See `losses.generalized_jsd`.
        top_k: Compare the student's likeliest tokens and one bucket for all others; `None`: the
            whole vocabulary.
        temperature: Divides both logits.
        chunk: Positions per chunk.
    """

    def part(
        states: Tensor, teacher_states: Tensor, support: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        student_logits = _scaled(student_head(states), temperature)
        if top_k is None or top_k >= student_logits.shape[-1]:
            with torch.no_grad():
                teacher_log_probs = _scaled(teacher_head(teacher_states), temperature).log_softmax(
                    -1
                )
            return generalized_jsd(student_logits.log_softmax(-1), teacher_log_probs, alpha=alpha)
        if not support:  # filled by the forward pass; recomputation reuses it
            with torch.no_grad():
                likeliest = student_logits.topk(top_k, dim=-1).indices
                support.append(
                    (
                        likeliest,
                        with_tail(
                            _log_probs_at(
                                _scaled(teacher_head(teacher_states), temperature), likeliest
                            )
                        ),
                    )
                )
        likeliest, teacher_log_probs = support[0]
        return generalized_jsd(
            with_tail(_log_probs_at(student_logits, likeliest)), teacher_log_probs, alpha=alpha
        )

    parts = [
        checkpoint(part, states, teacher_states, [], use_reentrant=False)
        for states, teacher_states in zip(
            torch.split(student, chunk), torch.split(teacher, chunk), strict=True
        )
    ]
    return torch.cat(parts)


def _log_probs_at(logits: Tensor, indices: Tensor) -> Tensor:
    return logits.gather(-1, indices) - logits.logsumexp(-1, keepdim=True)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    precise = logits.to(_precision(logits))
    return precise if temperature == 1.0 else precise / temperature


def _precision(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
