"""Dynamic sampling: groups of equal rewards teach nothing and are replaced before a batch is used.

As DAPO does it (arXiv 2503.14476, section 3.2), but bounded: in each round as many other prompts
are sampled and scored as groups lack spread. The prompts depend on the run's seed and step alone,
so a resumed run draws the same ones.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from markscheme.integrations.report import merged_usage
from markscheme_train.reward import RewardReport, Row, RowScore
from markscheme_train.self_distillation import ScoredRows

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout as TRL generates it, with its scores. `rewards` holds NaN where unknown."""

    row: Mapping[str, Any]
    prompt_ids: list[int]
    completion_ids: list[int]
    completion: Any
    log_probs: list[float] | None
    rewards: list[float]
    rollout: Row
    score: RowScore
    teacher_scores: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A batch that was sampled and scored already.

    Attributes:
        inputs: The rows of this process.
        generated: What TRL's `_generate` returns for them.
        rewards: All processes' rewards [rows, functions].
        scored: All processes' rows.
        missed: The criteria that each rollout of this process missed.
    """

    inputs: list[Mapping[str, Any]]
    generated: tuple[Any, ...]
    rewards: torch.Tensor
    scored: ScoredRows
    missed: list[str]


def draw(trainer: "MarkschemeTrainer", inputs: Sequence[Mapping[str, Any]]) -> Drawn:
    """Sample and score a batch; replace groups of equal rewards, in at most so many rounds.

    A group with fewer than two known rewards is not known to lack spread, and stays. The trainer's
    `report` is then on all rollouts, also those that were replaced.

    Args:
        trainer: `max_resampling_rounds` of its configuration bounds the rounds.
        inputs: This process's rows.
    """
    size, processes = trainer.num_generations, trainer.accelerator.num_processes
    groups = _groups(_sample(trainer, inputs), size)
    reports = [trainer.report]
    tried = {repr(group[0].row["prompt"]) for group in groups}
    redrawn = 0
    # The limit is for whole batches: a round of a few rows may exceed it by chance.
    max_unscored, trainer.reward.max_unscored = trainer.reward.max_unscored, 1.0
    try:
        for number in range(trainer.args.max_resampling_rounds):
            equal = [place for place, group in enumerate(groups) if _spread(trainer, group) == 0]
            # All processes sample equally many rows.
            step = processes // math.gcd(size, processes)
            wanted = math.ceil(len(equal) / step) * step
            rows = _other_prompts(trainer, tried, wanted, number)
            rows = rows[: len(rows) // step * step]
            if not equal or not rows:
                break
            tried |= {repr(row["prompt"]) for row in rows}
            every = [row for row in rows for _ in range(size)]
            own = len(every) // processes
            first = own * trainer.accelerator.process_index
            others = _groups(_sample(trainer, every[first : first + own]), size)
            reports.append(trainer.report)
            # Neither 0 nor `None`: these must be known to have a spread.
            useful = [group for group in others if _spread(trainer, group)]
            for place, group in zip(equal, useful, strict=False):
                groups[place] = group
            redrawn += len(others)
    finally:
        trainer.reward.max_unscored = max_unscored
    trainer.report = merged([report for report in reports if report is not None])
    left = sum(_spread(trainer, group) == 0 for group in groups)
    trainer._metrics["train"]["dynamic_sampling/redrawn_groups"].append(redrawn)
    trainer._metrics["train"]["dynamic_sampling/equal_groups"].append(left)
    return _batch(trainer, [sample for group in groups for sample in group])


def _sample(trainer: "MarkschemeTrainer", inputs: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Sample and score this process's rows; return those of all processes."""
    prompts = [row["prompt"] for row in inputs]
    prompt_ids, completion_ids, _, completions, log_probs, *_ = trainer._generate(prompts)
    rewards = trainer._calculate_rewards(inputs, prompts, completions, completion_ids)
    scored = trainer.scored
    assert scored is not None
    parts = list(
        zip(
            inputs,
            prompt_ids,
            completion_ids,
            completions,
            log_probs or [None] * len(prompts),
            strict=True,
        )
    )
    return [
        Sample(*part, *scores)
        for part, *scores in zip(
            gather_object(parts),
            rewards.tolist(),
            scored.rollouts,
            scored.row_scores,
            scored.teacher_scores,
            strict=True,
        )
    ]


def _groups(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _spread(trainer: "MarkschemeTrainer", group: Sequence[Sample]) -> float | None:
    """Return the range of a group's known rewards, `None` where fewer than two are known."""
    rewards = torch.tensor([sample.rewards for sample in group])
    known = trainer.row_rewards(rewards)
    known = known[~known.isnan()]
    return float(known.max() - known.min()) if len(known) > 1 else None


def _other_prompts(
    trainer: "MarkschemeTrainer", tried: set[str], number: int, attempt: int
) -> list[Mapping[str, Any]]:
    """Return up to `number` rows with prompts that are not in `tried`, different ones each time."""
    data = trainer.train_dataset
    # Text is hashed, so the order is the same in every process and after a restart.
    chance = random.Random(f"{trainer.args.seed} {trainer.state.global_step} {attempt}")
    candidates = chance.sample(range(len(data)), min(len(data), number + len(tried)))
    unused: dict[str, Mapping[str, Any]] = {}
    for row in (data[index] for index in candidates):
        unused.setdefault(repr(row["prompt"]), row)
    return [row for prompt, row in unused.items() if prompt not in tried][:number]


def _batch(trainer: "MarkschemeTrainer", samples: Sequence[Sample]) -> Drawn:
    """Return all processes' rows in TRL's form; those that TRL generates are this process's."""
    size = len(samples) // trainer.accelerator.num_processes
    first = size * trainer.accelerator.process_index
    own = samples[first : first + size]
    log_probs = [sample.log_probs for sample in own]
    return Drawn(
        inputs=[sample.row for sample in own],
        generated=(
            [sample.prompt_ids for sample in own],
            [sample.completion_ids for sample in own],
            None,
            [sample.completion for sample in own],
            # The sampler states them for all rollouts or for none.
            None if None in log_probs else log_probs,
            {},
            None,
            [],
        ),
        rewards=torch.tensor(
            [sample.rewards for sample in samples], device=trainer.accelerator.device
        ),
        scored=ScoredRows(
            [sample.rollout for sample in samples],
            [sample.score for sample in samples],
            [sample.teacher_scores for sample in samples],
        ),
        missed=["; ".join(sample.score.feedback) for sample in own],
    )


def merged(reports: Sequence[RewardReport]) -> RewardReport:
    """Return the reports of several calls of one step as one."""
    return RewardReport(
        step=reports[0].step,
        rewards=list(chain.from_iterable(report.rewards for report in reports)),
        row_scores=list(chain.from_iterable(report.row_scores for report in reports)),
        teacher_scores=list(chain.from_iterable(report.teacher_scores for report in reports)),
        reasons=dict(sum((Counter(report.reasons) for report in reports), Counter())),
        origins=dict(sum((Counter(report.origins) for report in reports), Counter())),
        criteria=list(chain.from_iterable(report.criteria for report in reports)),
        usage=merged_usage([report.usage for report in reports]),
        seconds=sum(report.seconds for report in reports),
    )
