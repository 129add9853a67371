"""What a training step shows of a collapse: repetition, diversity, gains and gradient norms.

Shapes: B rows of C response tokens.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

NGRAM = 4
"""Tokens of an n-gram."""
_MULTIPLIER = 6364136223846793005
"""Of Knuth's MMIX generator: odd, so that multiplication modulo 2^64 loses nothing."""


def repetition_sums(rollouts: Sequence[Tensor]) -> Tensor:
    """Return `[Σ share of repeated n-grams, rollouts that have n-grams]` [2].

    The share of a rollout is that of its n-grams which occurred in it before.

    Args:
        rollouts: Token ids [T] of each rollout.
    """
    repeated = [
        1 - len(torch.unique(hashes)) / len(hashes)
        for hashes in map(_ngrams, rollouts)
        if len(hashes)
    ]
    return torch.tensor([sum(repeated), float(len(repeated))])


def distinct_sums(rollouts: Sequence[Tensor]) -> Tensor:
    """Return `[distinct n-grams, n-grams]` [2] of rollouts of different prompts together.

    Their ratio is distinct-n (Li et al., arXiv 1510.03055): it falls when the responses to
    different prompts grow alike. An n-gram that a rollout repeats counts once, since that is
    repetition. With fewer than two rollouts nothing is compared: `[0, 0]`.
    """
    sets = [torch.unique(_ngrams(ids)) for ids in rollouts]
    sets = [one for one in sets if len(one)]
    if len(sets) < 2:
        return torch.zeros(2)
    together = torch.cat(sets)
    return torch.tensor([float(len(torch.unique(together))), float(len(together))])


DIVERSITY = ("completions/repetition", "completions/distinct")


def diversity_sums(rollouts: Sequence[Tensor], first: int, group_size: int) -> Tensor:
    """Return `[[part, whole], …]` [2, 2] of this process's rollouts, in the order of `DIVERSITY`.

    Args:
        rollouts: Token ids [T] of each rollout, tools' left out.
        first: Index of the first one among those of all processes.
        group_size: Rollouts a prompt.
    """
    by_group: dict[int, Tensor] = {}
    for place, ids in enumerate(rollouts, first):
        # One of each group, because rollouts of one prompt are alike anyway.
        by_group.setdefault(place // group_size, ids)
    return torch.stack([repetition_sums(rollouts), distinct_sums([*by_group.values()])])


def shares(names: Sequence[str], sums: Tensor, empty: float | None = None) -> dict[str, float]:
    """Return part / whole by name, of `[[part, whole], …]` [names, 2].

    Args:
        names: A name a row.
        sums: The rows.
        empty: What a row has whose whole is 0; `None`: it is left out.
    """
    found = {
        name: part / whole if whole else empty
        for name, (part, whole) in zip(names, sums.tolist(), strict=True)
    }
    return {name: share for name, share in found.items() if share is not None}


def _ngrams(ids: Tensor) -> Tensor:
    """Return a 64-bit hash of each n-gram of token ids [T]; none if T < n."""
    ids = ids.cpu().long()
    if len(ids) < NGRAM:
        return ids[:0]
    hashes = torch.zeros(len(ids) - NGRAM + 1, dtype=torch.long)
    for offset in range(NGRAM):
        hashes = hashes * _MULTIPLIER + ids[offset : offset + len(hashes)] + 1
    return hashes


NORMS = ("gradient_norm/policy", "gradient_norm/distillation")


class BranchNorms:
    """Gradient norms of each branch at the student's last hidden states.

    A row belongs to one branch, so there the two can be told apart for free; in the gradient of the
    weights they are summed.
    """

    def __init__(self) -> None:
        self._squares: list[Tensor] = []

    def watch(self, hidden: Sequence[Tensor], routed: Tensor) -> None:
        """Record the gradients of hidden states [b, …] that together hold the `routed` rows."""
        for states, rows in zip(
            hidden, torch.split(routed, [len(states) for states in hidden]), strict=True
        ):
            states.register_hook(partial(self._note, rows))  # type: ignore[no-untyped-call]

    def _note(self, routed: Tensor, gradient: Tensor) -> None:
        squares = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=torch.float32).square()
        self._squares.append(torch.stack([squares[~routed].sum(), squares[routed].sum()]))

    def take(self, device: torch.device) -> Tensor:
        """Return squared norms [2] since the last call, in the order of `NORMS`."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum(0) if squares else torch.zeros(2, device=device)


GAINS = ("distillation/teacher_gain", "distillation/teacher_gain_success")


class TeacherGains:
    """Sums of a step's gains over its micro-batches.

    The gain of a token is its log-probability by the self-teacher minus that by the student, in
    nats. It is taken on failures that learn from the self-teacher, and on controls: one success a
    group, for which the self-teacher read another one.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, batch: Mapping[str, Any], log_probs: Tensor, mask: Tensor) -> None:
        """Add a micro-batch.

        Args:
            batch: With `teacher_log_probs` [B, C] and the rows `failures` and `controls` [B].
            log_probs: The student's [B, C].
            mask: The student's tokens [B, C].
        """
        gain = batch["teacher_log_probs"] - log_probs.detach()
        kept = [mask & batch[rows].unsqueeze(1) for rows in ("failures", "controls")]
        self._sums.append(
            torch.stack([torch.stack([gain[rows].sum(), rows.sum()]) for rows in kept])
        )

    def take(self, device: torch.device) -> Tensor:
        """Return `[[sum, tokens], …]` since the last call, in the order of `GAINS`."""
        sums, self._sums = self._sums, []
        return torch.stack(sums).sum(0) if sums else torch.zeros(2, 2, device=device)
