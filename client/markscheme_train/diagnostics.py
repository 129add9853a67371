"""What a training step shows of a collapse: repetition, diversity, the self-teacher's gain.

Shapes: B rows of C response tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NGRAM = 4
"""Tokens of an n-gram."""
_MULTIPLIER = 6364136223846793005
"""Of Knuth's MMIX generator: odd, so that multiplication modulo 2^64 loses nothing."""


def ngram_counts(rollouts: Sequence[Tensor]) -> Tensor:
    """Return `[n-grams, distinct ones]` of each rollout [len(rollouts), 2], on the CPU."""
    counts = torch.zeros(len(rollouts), 2)
    for index, ids in enumerate(rollouts):
        hashes = _ngrams(ids)
        counts[index] = torch.tensor([float(len(hashes)), float(len(hashes.unique()))])
    return counts


def repetition_sums(rollouts: Sequence[Tensor]) -> Tensor:
    """Return `[Σ share of repeated n-grams, rollouts that have n-grams]` [2].

    The share of a rollout is that of its n-grams which occurred in it before.

    Args:
        rollouts: Token ids [T] of each rollout.
    """
    counts = ngram_counts(rollouts)
    counts = counts[counts[:, 0] > 0]
    return torch.stack([(1 - counts[:, 1] / counts[:, 0]).sum(), torch.tensor(float(len(counts)))])


def distinct_sums(rollouts: Sequence[Tensor]) -> Tensor:
    """Return `[distinct n-grams, n-grams]` [2] of rollouts of different prompts together.

    Their ratio is distinct-n (Li et al., arXiv 1510.03055): it falls when the responses to
    different prompts grow alike. An n-gram that a rollout repeats counts once, since that is
    repetition. With fewer than two rollouts nothing is compared: `[0, 0]`.
    """
    sets = [_ngrams(ids).unique() for ids in rollouts]
    sets = [one for one in sets if len(one)]
    if len(sets) < 2:
        return torch.zeros(2)
    together = torch.cat(sets)
    return torch.tensor([float(len(together.unique())), float(len(together))])


def _ngrams(ids: Tensor) -> Tensor:
    """Return a 64-bit hash of each n-gram of token ids [T]; none if T < n."""
    ids = ids.cpu().long()
    if len(ids) < NGRAM:
        return ids[:0]
    hashes = torch.zeros(len(ids) - NGRAM + 1, dtype=torch.long)
    for offset in range(NGRAM):
        hashes = hashes * _MULTIPLIER + ids[offset : offset + len(hashes)] + 1
    return hashes


class TeacherComparison:
    """Sums over the micro-batches of a step: the self-teacher against the student.

    The gain of a token is its log-probability by the self-teacher minus that by the student. It is
    taken on failures that learn from the self-teacher, and on controls: one success a group, of
    which the self-teacher read what it reads of a failure.
    """

    NAMES = (
        "distillation/teacher_gain",
        "distillation/teacher_gain_success",
        "distillation/divergence",
    )

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, batch: Mapping[str, Any], log_probs: Tensor, mask: Tensor) -> None:
        """Add the gains of a micro-batch.

        Args:
            batch: With `teacher_log_probs` [B, C] and the rows `failures` and `controls` [B].
            log_probs: The student's [B, C].
            mask: The student's tokens [B, C].
        """
        gain = batch["teacher_log_probs"] - log_probs.detach().to(batch["teacher_log_probs"])
        for place, rows in enumerate((batch["failures"], batch["controls"])):
            kept = mask.bool() & rows.unsqueeze(1)
            self._add(place, gain[kept])

    def add_divergence(self, divergence: Tensor) -> None:
        """Add the divergences [N] of a micro-batch's routed tokens."""
        self._add(2, divergence.detach())

    def _add(self, place: int, values: Tensor) -> None:
        sums = torch.zeros(len(self.NAMES), 2, dtype=torch.float64, device=values.device)
        sums[place] = torch.stack([values.sum().double(), sums.new_tensor(float(len(values)))])
        self._sums.append(sums)

    def take(self, device: torch.device) -> Tensor:
        """Return `[sum, count]` [3, 2] since the last call, in the order of `NAMES`."""
        sums, self._sums = self._sums, []
        zeros = torch.zeros(len(self.NAMES), 2, dtype=torch.float64, device=device)
        return torch.stack([zeros, *sums]).sum(0)

    def means(self, sums: Tensor) -> Mapping[str, float]:
        """Return the means by name; nothing where nothing was measured."""
        return {
            name: total / count
            for name, (total, count) in zip(self.NAMES, sums.tolist(), strict=True)
            if count
        }
