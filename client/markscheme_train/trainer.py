"""``MarkschemeTrainer``: TRL's GRPO with what a reward that may be unknown needs.

Three corrections, each where TRL 1.16 does otherwise: a row without a reward leaves the loss denominator as
well as the baseline; prompts and rollouts stay out of the log; each epoch's order depends on the seed and the
epoch alone, so that a resumed run sees the prompts an uninterrupted one would. On a CPU the log-probabilities
come from one plain forward pass. The loss itself is TRL's.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from markscheme_train.config import TrainConfig
from markscheme_train.errors import ConfigError
from markscheme_train.prefix import can_share, shared_prompt_logits
from markscheme_train.reward import RubricReward

log = logging.getLogger(__name__)


class MarkschemeTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO whose rewards may be ``None``.

    ``seconds`` holds what the current step spent on rollouts and on scoring; ``reward`` is the rubric reward.
    Raises :class:`ConfigError` at once when a process would hold part of a group, or when an update would see
    only part of a generated batch (TRL's token mean is exact only for whole ones).
    """

    def __init__(self, model: Any, reward: RubricReward, args: TrainConfig, **kwargs: Any) -> None:
        check_batch_shape(args)
        _keep_rollouts_out_of_the_log()
        self.reward = reward
        self.seconds = {"rollout": 0.0, "scoring": 0.0}
        self._unscored = torch.zeros(0, dtype=torch.bool)
        super().__init__(model=model, reward_funcs=[reward], args=args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """TRL's rewards of all processes, [rows, 1]; notes which of this process's rows have none."""
        started = time.perf_counter()
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.seconds["scoring"] += time.perf_counter() - started
        first = self.accelerator.process_index * len(prompts)
        self._unscored = rewards[first : first + len(prompts)].isnan().any(dim=1)
        if self._unscored.any() and self.reward.last is not None:
            log.warning("%d of %d rollouts unscored (%s): left out of this update",
                        int(self._unscored.sum()), len(prompts), self.reward.last.reasons)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch with the rows that have no reward taken out of the loss mask and its token count."""
        started, scoring = time.perf_counter(), self.seconds["scoring"]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.seconds["rollout"] += time.perf_counter() - started - (self.seconds["scoring"] - scoring)
        scored = (~self._unscored).to(batch["completion_mask"])
        batch["completion_mask"] = batch["completion_mask"] * scored.unsqueeze(1)
        counted = batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]
        batch["num_items_in_batch"] = self.accelerator.gather(counted.sum()).sum()
        return batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's step; when no rollout of the batch was scored, without gradients rather than with zeros.

        The optimiser passes over parameters without a gradient, but would move them on a zero one, by its
        momentum and the weight decay.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        last = self._buffered_inputs[-1] if self._buffered_inputs else None
        if last is not None and int(last["num_items_in_batch"]) == 0:
            model.zero_grad(set_to_none=True)
        return loss

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """TRL's order of prompts, drawn anew for each epoch from the seed and the epoch's number."""
        return EpochSampler(
            self,
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, compute_aux_loss: bool = False, **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities [B, C] and entropies [B, C] of the last ``logits_to_keep`` tokens.

        On a CPU TRL's fused head projects the prompt's positions too: 27 times slower on a tiny model with a
        long prompt. There the completion's logits alone are computed; elsewhere TRL's own way is kept.
        """
        if input_ids.device.type != "cpu" or compute_aux_loss or any(v is not None for v in images.values()):
            result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                **images)
            return result
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        share = self.accelerator.num_processes == 1 and logits_to_keep > 1 and can_share(model)
        for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True):
            if share:
                logits = shared_prompt_logits(model, ids, mask, logits_to_keep)
            else:
                logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=logits_to_keep + 1,
                               use_cache=False).logits[:, :-1]
            every = torch.log_softmax(logits.float() / self.temperature, dim=-1)
            logps.append(every.gather(-1, ids[:, -logits_to_keep:].unsqueeze(-1)).squeeze(-1))
            if compute_entropy:
                entropies.append(-(every.detach().exp() * every.detach()).sum(-1))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with a permutation that an epoch can be entered at without replaying those before it."""

    def __init__(self, trainer: MarkschemeTrainer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + int(self._trainer.state.epoch or 0))
        return iter(super().__iter__())


def check_batch_shape(args: TrainConfig) -> None:
    """Raise :class:`ConfigError` unless each process holds whole groups and each update is one whole batch."""
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if rows % args.num_generations:
        raise ConfigError(f"each process generates {rows} rollouts a batch (per_device_train_batch_size "
                          f"{args.per_device_train_batch_size} x steps_per_generation {args.steps_per_generation}); "
                          f"that must be a multiple of num_generations ({args.num_generations})")
    if args.steps_per_generation != args.gradient_accumulation_steps:
        raise ConfigError(f"steps_per_generation ({args.steps_per_generation}) must equal "
                          f"gradient_accumulation_steps ({args.gradient_accumulation_steps})")


class _DropRollouts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in str(record.msg)


def _keep_rollouts_out_of_the_log() -> None:
    """TRL warns of an unscored row by printing its prompt, rollout and columns; our own warning counts instead."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    if not any(isinstance(known, _DropRollouts) for known in logger.filters):
        logger.addFilter(_DropRollouts())
