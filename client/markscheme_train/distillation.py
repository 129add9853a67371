"""Losses over the whole vocabulary, computed a chunk of positions at a time.

Hidden states are small, logits are not: 2,048 positions over 151,000 tokens take 1.2 GB in fp32.
Here logits live for one chunk; the teacher's without a gradient, the student's recomputed in the
backward pass. Reductions are in fp32 (fp64 for fp64 states). Shapes: N positions, d dimensions, V
tokens. No positions are one empty chunk, so that their result is part of the graph too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from markscheme_train.losses import generalized_jsd, with_tail

Head = Callable[[Tensor], Tensor]
"""Maps hidden states [N, d] to logits [N, V]."""
CHUNK = 1024
"""Positions per chunk: with 151,000 tokens their logits take 620 MB in fp32.

Smaller chunks leave a GPU waiting for launches; `benchmarks/gpu/run.sh` measures several. In half
precision the chunks' gradients of the head are summed in it: a test bounds what 64 chunks add to
the rounding of one, without a bias. Sums in fp32 would cast the head, and its gradient, anew for
each chunk.
"""


@torch.no_grad()
def entropies(
    hidden: Tensor, head: Head, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """Return the entropy in nats [N] of each position's distribution: `log Z - Σ p z`."""
    parts = []
    for states in torch.split(hidden, chunk):
        entropy, _ = _entropies_and_normalisers(head(states), temperature)
        parts.append(entropy)
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
        logits = head(states)
        if not cached:  # filled by the forward pass; recomputation in the backward pass reuses it
            cached += _entropies_and_normalisers(logits, temperature)
        entropy, normaliser = cached
        found = _log_probs_at(logits, ids.unsqueeze(-1), normaliser, temperature)
        return found.squeeze(-1), entropy

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

    def part(states: Tensor, teacher_states: Tensor, cached: list[Tensor]) -> Tensor:
        logits = student_head(states)
        if top_k is None or top_k >= logits.shape[-1]:
            with torch.no_grad():
                teacher_logits = _scaled(teacher_head(teacher_states), temperature)
                teacher_log_probs = teacher_logits.log_softmax(-1)
            student_log_probs = _scaled(logits, temperature).log_softmax(-1)
            return generalized_jsd(student_log_probs, teacher_log_probs, alpha=alpha)
        if not cached:  # filled by the forward pass; recomputation in the backward pass reuses it
            with torch.no_grad():
                top = logits.topk(top_k, dim=-1).indices
                cached += [top, _log_normalisers(logits, temperature)]
                seen = teacher_head(teacher_states)
                normaliser = _log_normalisers(seen, temperature)
                cached.append(with_tail(_log_probs_at(seen, top, normaliser, temperature)))
        top, normaliser, teacher_log_probs = cached
        student_log_probs = with_tail(_log_probs_at(logits, top, normaliser, temperature))
        return generalized_jsd(student_log_probs, teacher_log_probs, alpha=alpha)

    parts = [
        checkpoint(part, states, teacher_states, [], use_reentrant=False)
        for states, teacher_states in zip(
            torch.split(student, chunk), torch.split(teacher, chunk), strict=True
        )
    ]
    return torch.cat(parts)


class _LogProbsAt(torch.autograd.Function):
    """Log-probabilities of some tokens, whose backward pass takes one array of logits in fp32.

    Autograd would save the logits in fp32, and add up the gradients of two operations in more
    arrays of that size.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, normaliser: Tensor, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(logits, tokens, normaliser)
        ctx.temperature = temperature
        return _scaled(logits.gather(-1, tokens), temperature) - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, tokens, normaliser = ctx.saved_tensors
        # d log p(i) / d z(j) = ([i = j] - p(j)) / temperature
        found = _scaled_copy(logits, ctx.temperature).sub_(normaliser).exp_()
        found.mul_(-gradient.sum(-1, keepdim=True)).scatter_add_(-1, tokens, gradient)
        return found.div_(ctx.temperature).to(logits.dtype), None, None, None


def _log_probs_at(logits: Tensor, tokens: Tensor, normaliser: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities [N, K] of `tokens` [N, K]; `normaliser` is `_log_normalisers`'s."""
    apply: Callable[..., Tensor] = _LogProbsAt.apply
    return apply(logits, tokens, normaliser, temperature)


@torch.no_grad()
def _log_normalisers(logits: Tensor, temperature: float) -> Tensor:
    """Return `log Σ exp(z / temperature)` [N, 1] in one array of the logits' shape."""
    shifted, largest = _shifted(logits, temperature)
    return shifted.exp_().sum(-1, keepdim=True).log_().add_(largest)


@torch.no_grad()
def _entropies_and_normalisers(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return entropies [N] and `_log_normalisers` [N, 1] in two arrays of the logits' shape."""
    shifted, largest = _shifted(logits, temperature)
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    mean = weights.mul_(shifted).sum(-1, keepdim=True) / total
    return (total.log() - mean).squeeze(-1), total.log() + largest


def _shifted(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return scaled logits [N, V] minus each position's largest one [N, 1], and that one."""
    scaled = _scaled_copy(logits, temperature)
    largest = scaled.amax(-1, keepdim=True)
    return scaled.sub_(largest), largest


def _scaled_copy(logits: Tensor, temperature: float) -> Tensor:
    """Return `_scaled` as a tensor that may be changed in place."""
    precise = logits.detach().to(_precision(logits), copy=True)
    return precise if temperature == 1.0 else precise.div_(temperature)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    precise = logits.to(_precision(logits))
    return precise if temperature == 1.0 else precise / temperature


def _precision(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
