"""Losses over the whole vocabulary, computed a chunk of positions at a time.

Hidden states are small, logits are not: 2,048 positions over 151,000 tokens take 1.2 GB in fp32.
Here logits live for one chunk; the teacher's without a gradient, the student's recomputed in the
backward pass. Reductions are in fp32 (fp64 for fp64 states). Shapes: N positions, d dimensions, V
tokens.
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
    found = []
    for states in torch.split(hidden, chunk):
        logits = _scaled(head(states), temperature)
        normaliser = logits.logsumexp(-1)
        found.append(normaliser - ((logits - normaliser.unsqueeze(-1)).exp() * logits).sum(-1))
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=_precision(hidden))


def token_log_probs(
    hidden: Tensor, tokens: Tensor, head: Head, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N] of `tokens` [N], and entropies [N] without a gradient.

    Args:
        hidden: States [N, d].
        tokens: Token ids [N].
        head: Maps states to logits.
        temperature: Divides the logits.
        chunk: Positions per chunk.
    """

    def part(states: Tensor, ids: Tensor, known: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = _scaled(head(states), temperature)
        if not known:  # filled by the forward pass; recomputation in the backward pass reuses it
            with torch.no_grad():
                known.append(entropies(logits, lambda kept: kept))
        return _log_probs_at(logits, ids.unsqueeze(-1)).squeeze(-1), known[0]

    if not len(hidden):
        nothing = hidden.new_zeros(0, dtype=_precision(hidden))
        return nothing, nothing
    found = [
        checkpoint(part, states, ids, [], use_reentrant=False)
        for states, ids in zip(torch.split(hidden, chunk), torch.split(tokens, chunk), strict=True)
    ]
    return torch.cat([log_probs for log_probs, _ in found]), torch.cat(
        [entropy for _, entropy in found]
    )


def divergences(
    student: Tensor,
    teacher: Tensor,
    student_head: Head,
    teacher_head: Head,
    *,
    alpha: float,
    top_k: int | None,
    temperature: float = 1.0,
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

    def part(states: Tensor, others: Tensor, support: list[tuple[Tensor, Tensor]]) -> Tensor:
        own = _scaled(student_head(states), temperature)
        if top_k is None or top_k >= own.shape[-1]:
            with torch.no_grad():
                other = _scaled(teacher_head(others), temperature).log_softmax(-1)
            return generalized_jsd(own.log_softmax(-1), other, alpha=alpha)
        if not support:  # filled by the forward pass; recomputation reuses it
            with torch.no_grad():
                likeliest = own.topk(top_k, dim=-1).indices
                support.append(
                    (
                        likeliest,
                        with_tail(
                            _log_probs_at(_scaled(teacher_head(others), temperature), likeliest)
                        ),
                    )
                )
        likeliest, other = support[0]
        return generalized_jsd(with_tail(_log_probs_at(own, likeliest)), other, alpha=alpha)

    found = [
        checkpoint(part, states, others, [], use_reentrant=False)
        for states, others in zip(
            torch.split(student, chunk), torch.split(teacher, chunk), strict=True
        )
    ]
    return (
        torch.cat(found)
        if found
        else student.new_zeros(0, dtype=_precision(student)) + 0 * student.sum()
    )


def _log_probs_at(logits: Tensor, indices: Tensor) -> Tensor:
    return logits.gather(-1, indices) - logits.logsumexp(-1, keepdim=True)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    precise = logits.to(_precision(logits))
    return precise if temperature == 1.0 else precise / temperature


def _precision(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
