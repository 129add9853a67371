"""`MarkschemeTrainer`: TRL's GRPO for rewards that may be unknown, with self-distillation.

It changes TRL 1.16 in five places:

- A row without a reward leaves the loss denominator as well as the baseline.
- The denominator is that of the optimiser step, also where a batch serves several.
- Prompts and rollouts stay out of the log.
- The order of an epoch depends on the seed and the epoch alone, so that a resumed run sees the same
  prompts as an uninterrupted one.
- On a CPU log-probabilities come from one plain forward pass.

The loss of method `grpo` is TRL's, that of `sdpo` and `srpo` is `losses.srpo_loss`.
"""

import logging
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl, set_seed
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from markscheme_train.checkpoints import processes_of
from markscheme_train.collapse_guard import CollapseGuard
from markscheme_train.completions import keep_rollouts_out_of_the_log, private_completions
from markscheme_train.config import TrainConfig
from markscheme_train.diagnostics import DIVERSITY, diversity_sums, shares
from markscheme_train.dynamic_sampling import Drawn, draw
from markscheme_train.early_scoring import EarlyScoring, rubric_last
from markscheme_train.evaluation import REWARD, evaluate
from markscheme_train.lag import Lag
from markscheme_train.losses import group_advantages
from markscheme_train.model_checks import check_trainer
from markscheme_train.optimiser_step import count_by_step
from markscheme_train.reward import MISSED, RewardReport, Row, RubricReward
from markscheme_train.sampler import epoch_sampler
from markscheme_train.self_distillation import ScoredRows, SelfDistillation, student_token_mask
from markscheme_train.self_teacher_lifecycle import (
    UpdateSelfTeacher,
    copy_before_wrapping,
    make_self_teacher,
)
from markscheme_train.student_forward import plain_states, run_student, runs_plainly
from markscheme_train.trainer_checkpoint import TrainerCheckpoint
from markscheme_train.zero import GuardDeepSpeed
from markscheme_train.zero_checkpoint import is_of_other_processes, load_from_other_processes

PER_SEQUENCE = ("grpo", "sapo")
"""TRL's loss types that average over sequences."""

log = logging.getLogger(__name__)


class MarkschemeTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO whose rewards may be `None`.

    `seconds` holds what the current step spent on rollouts, scoring and the self-teacher; `reward`
    is the rubric reward, and `report` the service's report on the last training batch.

    What it overrides, and what of TRL 1.16 each override relies on
    (`tests/train/test_trl_contract.py` checks the words):

    - ``_calculate_rewards``: is given this process's rows, returns all processes', ``None`` as NaN.
    - ``_generate_and_score_completions``: its dict is shuffled and split row by row, extra entries
      with it; groups are contiguous in it.
    - ``_prepare_inputs``: a generated batch lies split in ``_buffered_inputs``, whose entries are
      used in order; ``dapo`` divides by ``num_items_in_batch`` over processes and optimiser steps
      a batch, ``grpo`` by rows and accumulation steps.
    - ``_compute_loss``: the one place where a loss is computed.
    - ``_get_per_token_logps_and_entropies``: the one place where TRL runs the student.
    - ``training_step``: counts micro-batches in ``_step``.
    - ``_generate``: the one place where TRL generates; it and ``_calculate_rewards`` need no more
      than rows, and both are given the same prompts and completions.
    - ``log``: shows what lies in ``_logs``.
    - ``evaluate``, ``_determine_best_metric``: called at the end of a step, in this order, before
      a checkpoint is written.
    - ``_get_train_sampler``: its sampler shuffles by a generator of its own.
    - ``_load_rng_state``: called with the checkpoint once the first rows were passed over.
    - ``_save_checkpoint``, ``_get_output_dir``, ``_load_optimizer_and_scheduler``: a checkpoint is
      written below the one folder, its trainer state last, and read back at that moment.
    - ``_prepare_for_training``, ``_load_best_model``: DeepSpeed loads a checkpoint in them, before
      our state is read back.

    Args:
        model: The student.
        reward: The rubric reward.
        args: The configuration.
        other_rewards: TRL reward functions to add. One that returns `None` for a rollout does
            not apply to it. A rollout without a rubric reward has none whatever they say, and
            routing uses the rubric's score alone.
        eval_reward: The rubric reward of evaluations, with a run of its own; without one TRL
            evaluates `eval_dataset` by the training's.
        **kwargs: Passed to `GRPOTrainer`.

    Raises:
        ConfigError: The self-teacher would see only part of the weights, or optimiser steps
            would be lost in the weights' precision.
        ModelError: The model makes its logits in a way that is not known.
    """

    control: TrainerControl
    plain_device = "cpu"
    """Device type on which log-probabilities come from one plain forward pass."""

    def __init__(
        self,
        model: Any,
        reward: RubricReward,
        args: TrainConfig,
        *,
        other_rewards: Sequence[Any] = (),
        eval_reward: RubricReward | None = None,
        **kwargs: Any,
    ) -> None:
        keep_rollouts_out_of_the_log()
        self.reward, self.eval_reward = reward, eval_reward
        self.report: RewardReport | None = None
        self.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
        # Of the batch that is being generated: between the reward and the batch's last changes.
        self.scored: ScoredRows | None = None
        self._rewards = torch.zeros(0, 1)
        self._drawn: Drawn | None = None
        self.early = EarlyScoring(self)
        self.lag = Lag(self)
        self._checkpoint = TrainerCheckpoint(self)
        # TRL names a reward's column after the function, so the wrapper takes over its name.
        reported = partial(reward, on_report=self._note)
        update_wrapper(reported, reward, updated=())
        copied = copy_before_wrapping(model, args)
        super().__init__(model=model, reward_funcs=[reported, *other_rewards], args=args, **kwargs)
        self.guard = CollapseGuard(self)
        self.add_callback(self.guard)
        self.distillation: SelfDistillation | None = None
        if copied is not None:
            copied.model.to(self.accelerator.device)
        check_trainer(self)
        if self.is_deepspeed_enabled:
            self.add_callback(GuardDeepSpeed(self))
        if args.method != "grpo":
            self.distillation = SelfDistillation(
                args,
                make_self_teacher(self, copied),
                self._tokenizer,
                # `or None`: some templates write about tools even where the list is empty.
                template={"tools": self.tools or None, "chat_template": self.chat_template},
                thinking=reward.thinking,
            )
            self.add_callback(UpdateSelfTeacher(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does; at the end ask no more for what is still being judged."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.reward.cancel()

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """Return TRL's order of prompts, seeded by the run's seed and the epoch's number."""
        return epoch_sampler(self, self.train_dataset if dataset is None else dataset)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Return TRL's next micro-batch, with the counts of its optimiser step."""
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        # A batch that was just generated has no counts yet.
        if self.model.training and "rows_in_step" not in inputs:
            count_by_step(self, self._buffered_inputs)
        return inputs

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Return TRL's batch with unscored rows taken out of the loss mask and the token count.

        Where one function returns nothing TRL uses the others; without the rubric's there is no
        reward here.
        """
        started, scoring = time.perf_counter(), self.seconds["scoring"]
        batch = self._generate_scored(inputs)
        self.seconds["rollout"] += (
            time.perf_counter() - started - (self.seconds["scoring"] - scoring)
        )
        # While the mask still has the unscored rows.
        rollouts = [
            ids[kept]
            for ids, kept in zip(
                batch["completion_ids"], student_token_mask(batch).bool(), strict=True
            )
        ]
        first = self.accelerator.process_index * len(rollouts)
        own = slice(first, first + len(rollouts))
        # Column 0 is the rubric's, which was passed first.
        is_scored = ~self._rewards[own, 0].isnan()
        batch["completion_mask"] = batch["completion_mask"] * is_scored.to(
            batch["completion_mask"]
        ).unsqueeze(1)
        if self.args.scale_rewards != "batch":
            # TRL adds another constant to the deviation, and gives a lone reward an advantage.
            size = self.num_generations if self.model.training else self.num_generations_eval
            advantages = group_advantages(
                self.row_rewards(self._rewards).view(-1, size),
                scale="none" if self.args.scale_rewards == "none" else "std",
            )
            batch["advantages"] = advantages.flatten()[own].to(batch["advantages"])
        self._prepare_distillation(batch, first)
        batch["num_items_in_batch"] = self.accelerator.gather(student_token_mask(batch).sum()).sum()
        if self.model.training:
            sums = diversity_sums(rollouts, first, self.num_generations)
            self._add_metrics(shares(DIVERSITY, self.total(sums.to(self.accelerator.device))))
        return batch

    def _generate_scored(self, inputs: Any) -> dict[str, Any]:
        """Return TRL's batch: drawn again where groups lack spread, or one batch late, if asked."""
        if self.model.training and self.args.max_resampling_rounds:
            self._drawn = draw(self, inputs)
            inputs = self._drawn.inputs
        lagged = self.model.training and self.args.reward_lag > 0
        if lagged:
            inputs = self.lag.begin(inputs)
        try:
            with self.early.of(inputs):
                batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
            if lagged:
                self.lag.finish(batch)
        finally:
            self._drawn = None
            self.lag.end()
        return batch

    def _generate(self, prompts: Any) -> Any:
        """Return TRL's rollouts, whose scoring is started, or those that are there already."""
        for there in (self._drawn, self.lag.learnt):
            if there is not None:
                return there.generated
        generated = super()._generate(prompts)
        self.early.start(prompts, generated)
        return generated

    def start_group(
        self, first: int, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]]
    ) -> None:
        """Start the scoring of a group while a `rollout_func` generates the others.

        Optional: what was not started is started when all are generated. What the `rollout_func`
        returns for these rows must be the same.

        Args:
            first: The number of the group's first row among the `rollout_func`'s prompts.
            prompts: The group's prompts.
            completion_ids: Its rollouts' token ids.
        """
        self.early.start_group(first, prompts, completion_ids)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Return TRL's rewards of all processes [rows, functions], timed."""
        if self.lag.learnt is not None and not self.lag.rewarded:
            self._log_completion_extra(MISSED, [""] * len(prompts))
            rows = len(prompts) * self.accelerator.num_processes
            self._rewards = torch.full(
                (rows, len(self.reward_funcs)), torch.nan, device=self.accelerator.device
            )
            self.scored = None
            return self._rewards
        if self._drawn is not None:
            self._rewards, self.scored = self._drawn.rewards, self._drawn.scored
            # What was logged while they were drawn may be of rollouts that were replaced.
            self._pending_extra_logs.clear()
            self._log_completion_extra(MISSED, self._drawn.missed)
            return self._rewards
        started = time.perf_counter()
        calculate = partial(
            super()._calculate_rewards, inputs, prompts, completions, completion_ids_list
        )
        self._rewards = rubric_last(self, calculate)
        self.seconds["scoring"] += time.perf_counter() - started
        return self._rewards

    def _note(self, rollouts: Sequence[Row], report: RewardReport) -> None:
        """Take in the rows of all processes and the service's report on them."""
        self.scored = ScoredRows(rollouts, report.row_scores, report.teacher_scores)
        if self.model.training:
            self.report = report
        if report.unscored and self.accelerator.is_main_process:
            log.warning(
                "%d of %d rollouts unscored (%s): left out of this update",
                report.unscored,
                len(report.rewards),
                report.reasons,
            )

    def row_rewards(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return the weighted sums [rows] of rewards [rows, functions], NaN where unscored."""
        # NaN of another function: it does not apply. NaN of the rubric's, the first: no reward.
        sums: torch.Tensor = (rewards * self.reward_weights.to(rewards)).nansum(1)
        return sums.masked_fill(rewards[:, 0].isnan(), torch.nan)

    def _prepare_distillation(self, batch: dict[str, Any], first: int) -> None:
        """Add the self-teacher's part to a training batch, timed.

        Args:
            batch: The batch of this process; it is changed in place.
            first: Index of its first row among those of all processes.
        """
        if (
            self.distillation is None
            or self.scored is None
            or not self.model.training
            or self.guard.routes_nothing
        ):
            return
        started = time.perf_counter()
        with self.accelerator.autocast():
            metrics = self.distillation.prepare(batch, self.scored, first=first, total=self.total)
        self._add_metrics(metrics)
        self.seconds["teacher"] += time.perf_counter() - started

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run TRL's step; clear the gradients if no rollout of the optimiser step was scored.

        The optimiser skips parameters without a gradient, but would move them on a gradient of
        zero, by momentum and weight decay.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if (
            self.distillation is not None
            and self._step % self.current_gradient_accumulation_steps == 0
        ):
            # `_compute_loss` multiplies each process's loss by their number.
            self._add_metrics(
                self.distillation.step_metrics(
                    loss.device, total=self.total, loss_scale=self.accelerator.num_processes
                )
            )
        # `_step` is counted already. DeepSpeed has taken the step, or left it out.
        if not self.is_deepspeed_enabled and not self.teaches(self._step - 1):
            model.zero_grad(set_to_none=True)
        return loss

    def teaches(self, step: int) -> bool:
        """Return whether the optimiser step of this micro-batch has a token to learn from."""
        used = self._buffered_inputs[step % self.args.steps_per_generation]
        return bool(used["num_items_in_batch"] != 0)

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        """Return the loss of a micro-batch: `srpo_loss` with a self-teacher, else TRL's.

        Processes average their gradients, so each returns its part of the sum times their number.
        """
        processes = self.accelerator.num_processes
        if self.distillation is None or "routed" not in inputs:
            policy: torch.Tensor = super()._compute_loss(model, inputs)
            if self.loss_type in PER_SEQUENCE and "rows_in_step" in inputs:
                # TRL's mean counts rows that have no reward.
                rows = len(inputs["completion_mask"]) * processes
                of_step = rows * self.current_gradient_accumulation_steps
                policy = policy * (of_step / inputs["rows_in_step"].clamp(min=1))
            return policy
        student, auxiliary = run_student(
            self, model, inputs, super()._get_per_token_logps_and_entropies
        )
        with self.accelerator.autocast():
            loss, metrics = self.distillation.loss(
                inputs,
                student,
                token_count=inputs["num_items_in_batch"]
                * self.current_gradient_accumulation_steps
                / self.args.steps_per_generation,
            )
        values = self.accelerator.gather(torch.stack(list(metrics.values())).unsqueeze(0))
        self._add_metrics(dict(zip(metrics, values.nanmean(0).tolist(), strict=True)))
        joint: torch.Tensor = loss * processes
        if auxiliary is not None:  # a mixture of experts
            joint = joint + (
                self.router_aux_loss_coef * auxiliary / self.current_gradient_accumulation_steps
            )
        return joint

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return log-probabilities [B, C] and entropies [B, C] of the last `logits_to_keep` tokens.

        Padding counts 0 in both where `plain_states` runs the student.
        """
        if self.lag.learnt is not None:  # the weights are not those that sampled it
            return self.lag.learnt.log_probs, None, None
        if runs_plainly(self, input_ids, compute_aux_loss, images):
            student = plain_states(
                self, model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size
            )
            return student.log_probs, student.entropies if compute_entropy else None, None
        result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
        result = super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size,
            compute_entropy,
            compute_aux_loss,
            **images,
        )
        return result

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes. A collective."""
        total: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
        return total

    def _add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add values to the training metrics that the next `log` averages."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log as TRL does, its table of completions without prompts and once a batch."""
        with private_completions(self):
            super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """Return the metrics of held-out rollouts, scored by `eval_reward`."""
        if self.eval_reward is None:
            theirs: dict[str, Any] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return theirs
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = evaluate(self, self.eval_reward, dataset)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, Any], trial: Any) -> bool:
        """Return whether to save a checkpoint now: also for a new best reward, if it is known."""
        if self.eval_reward is None:
            theirs: bool = super()._determine_best_metric(metrics, trial)
            return theirs
        best = metrics[REWARD] is not None and super()._determine_best_metric(metrics, trial)
        self.control.should_save |= best and self.args.save_strategy != "no"
        save: bool = self.control.should_save
        return save

    def _get_output_dir(self, trial: Any) -> str:
        """Return TRL's folder, or the temporary one while a checkpoint is written."""
        folder: str = self._checkpoint.temporary or super()._get_output_dir(trial)
        return folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write TRL's checkpoint with our own files; see `TrainerCheckpoint`."""
        self._checkpoint.save(partial(super()._save_checkpoint, model, trial))

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Prepare as transformers does; DeepSpeed cannot load a checkpoint of other processes."""
        checkpoint = resume_from_checkpoint
        if checkpoint is not None and is_of_other_processes(self, Path(checkpoint)):
            made: tuple[Any, Any] = super()._prepare_for_training(max_steps, train_dataloader, None)
            load_from_other_processes(self.model_wrapped, Path(checkpoint))
            self._load_optimizer_and_scheduler(checkpoint)
        else:
            made = super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        return made

    def _load_best_model(self) -> None:
        """Load the best checkpoint, also one of ZeRO 3 that other processes wrote."""
        best = Path(self.state.best_model_checkpoint)
        if is_of_other_processes(self, best):
            load_from_other_processes(self.model_wrapped, best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load TRL's state of a checkpoint, and our own."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._checkpoint.restore(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load a checkpoint's random number generators, if as many processes wrote it.

        On another number of processes they start anew: each follows from the run's seed, the step
        and the process, so that the checkpoint always goes on in the same way.
        """
        place = self.accelerator.process_index
        if checkpoint is None or processes_of(Path(checkpoint)) == self.accelerator.num_processes:
            super()._load_rng_state(checkpoint)
        else:
            step = self.state.global_step
            set_seed(random.Random(f"{self.args.seed} {step} {place}").getrandbits(32))
