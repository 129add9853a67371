"""`MarkschemeTrainer`: TRL's GRPO for rewards that may be unknown, with self-distillation.

It corrects TRL 1.16 in four places. A row without a reward leaves the loss denominator as well as
the baseline. The denominator is that of the optimiser step, also where a batch serves several.
Prompts and rollouts stay out of the log. The order of an epoch depends on the seed and the epoch
alone, so that a resumed run sees the same prompts as an uninterrupted one. On a CPU
log-probabilities come from one plain forward pass. The loss of method `grpo` is TRL's, that of
`sdpo` and `srpo` is `losses.srpo_loss`.
"""

import logging
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from transformers import TrainerCallback, TrainerControl, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from markscheme_train.checkpoints import SAVING, load_tensors, processes_of, publish_dir
from markscheme_train.collapse_guard import CollapseGuard
from markscheme_train.completions import private_completions
from markscheme_train.config import TrainConfig
from markscheme_train.diagnostics import GAINS, distinct_sums, repetition_sums
from markscheme_train.distillation import token_log_probs
from markscheme_train.dynamic_sampling import Drawn, draw
from markscheme_train.early_scoring import EarlyScoring, rubric_last
from markscheme_train.errors import ConfigError, ModelError
from markscheme_train.evaluation import REWARD, evaluate
from markscheme_train.lag import Lag
from markscheme_train.losses import group_advantages
from markscheme_train.prefix import can_share, shared_prompt_states
from markscheme_train.reward import MISSED, RewardReport, Row, RubricReward
from markscheme_train.self_distillation import (
    BranchNorms,
    ScoredRows,
    SelfDistillation,
    StudentStates,
    student_token_mask,
)
from markscheme_train.self_teacher import (
    AdapterCopy,
    FsdpShards,
    ModelCopy,
    SelfTeacher,
    ShardedCopy,
    TrustRegion,
    is_sharded,
    last_states,
    output_head,
    scheduled,
)
from markscheme_train.zero import GuardedEngine, ZeroShards, gather_for_gradient

SELF_TEACHER_FILE, SELF_TEACHER_FOLDER = "self_teacher.pt", "self_teacher"
"""Where a checkpoint holds the self-teacher: whole in a file, in shards in a folder."""
PER_SEQUENCE = ("grpo", "sapo")
"""TRL's loss types that average over sequences."""
MIN_MOVED_SHARE = 0.5
"""Share of half-precision weights that a step of the learning rate must move."""
HEAD_TOLERANCE = 1e-2
"""Error of the logits that rounding in half precision explains, as a share of the largest."""

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
        _keep_rollouts_out_of_the_log()
        self.reward, self.eval_reward = reward, eval_reward
        self.report: RewardReport | None = None
        self.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
        # Of the batch that is being generated: between the reward and the batch's last changes.
        self._scored: ScoredRows | None = None
        self._rewards = torch.zeros(0, 1)
        self._drawn: Drawn | None = None
        self._early = EarlyScoring(self)
        self._lag = Lag(self)
        self._norms = BranchNorms()
        self._saving: str | None = None
        # TRL names a reward's column after the function, so the wrapper takes over its name.
        reported = partial(reward, on_report=self._note)
        update_wrapper(reported, reward, updated=())
        # Copy before TRL replaces the model's forward: a later copy would run the student's.
        teacher = (
            ModelCopy(model)
            if args.method != "grpo"
            and not hasattr(model, "peft_config")
            and not is_fsdp(args)
            and not is_zero3_run(args)
            else None
        )
        super().__init__(model=model, reward_funcs=[reported, *other_rewards], args=args, **kwargs)
        self.guard = CollapseGuard(self)
        self.add_callback(self.guard)
        if args.max_resampling_rounds and (self.tools or self.rollout_func):
            raise ConfigError("max_resampling_rounds must be 0 with tools or a rollout_func")
        if args.reward_lag and self.tools:
            raise ConfigError("reward_lag must be 0 with tools")
        self.distillation: SelfDistillation | None = None
        if teacher is not None:
            teacher.model.to(self.accelerator.device)
        check_steps_move_weights(self)
        if not is_zero3_run(args):
            self.check_output_head()
        if self.is_deepspeed_enabled:
            self.add_callback(GuardDeepSpeed(self))
        check_shards(self)
        if args.method != "grpo":
            self_teacher: SelfTeacher
            if is_fsdp(args):
                policy = self.accelerator.state.fsdp_plugin.mixed_precision_policy
                self_teacher = ShardedCopy(
                    self.model, FsdpShards(self.model), policy and policy.param_dtype
                )
            elif is_zero3_run(args):
                shards = ZeroShards(lambda: self.accelerator.deepspeed_engine_wrapped.engine)
                self_teacher = ShardedCopy(self.model, shards)
            else:
                self_teacher = teacher or AdapterCopy(self.model)
            if args.self_teacher == "trust_region":
                self_teacher = TrustRegion(self_teacher, self.model, self.teacher_rate)
            self.distillation = SelfDistillation(
                args,
                self_teacher,
                self._tokenizer,
                # `or None`: some templates write about tools even where the list is empty.
                template={"tools": self.tools or None, "chat_template": self.chat_template},
                thinking=reward.thinking,
            )
            self.add_callback(UpdateSelfTeacher(self))

    def check_output_head(self) -> None:
        """Raise `ModelError` if hidden states are used and the model's logits do not follow."""
        if self.args.method != "grpo" or self.accelerator.device.type == self.plain_device:
            check_output_head(_inner(self.model))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does; at the end ask no more for what is still being judged."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.reward.cancel()

    def teacher_rate(self) -> float:
        """Return how closely the self-teacher follows the student at this step, 0 to 1.

        It is the rate of a moving average, or the student's share of a trust region.
        """
        args = self.args
        if args.self_teacher == "frozen" or self.guard.freezes_teacher:
            return 0.0
        rate = (
            args.teacher_update_rate
            if args.self_teacher == "ema"
            else args.trust_region_coefficient
        )
        return scheduled(
            rate, args.teacher_rate_schedule, self.state.global_step, self.state.max_steps
        )

    def _note(self, rollouts: Sequence[Row], report: RewardReport) -> None:
        """Take in the rows of all processes and the service's report on them."""
        self._scored = ScoredRows(rollouts, report.row_scores, report.teacher_scores)
        if self.model.training:
            self.report = report
        if report.unscored and self.accelerator.is_main_process:
            log.warning(
                "%d of %d rollouts unscored (%s): left out of this update",
                report.unscored,
                len(report.rewards),
                report.reasons,
            )

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Return TRL's rewards of all processes [rows, functions], timed."""
        if self._lag.learnt is not None and not self._lag.rewarded:
            self._log_completion_extra(MISSED, [""] * len(prompts))
            rows = len(prompts) * self.accelerator.num_processes
            self._rewards = torch.full(
                (rows, len(self.reward_funcs)), torch.nan, device=self.accelerator.device
            )
            self._scored = None
            return self._rewards
        if self._drawn is not None:
            self._rewards, self._scored = self._drawn.rewards, self._drawn.scored
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

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Return TRL's batch with unscored rows taken out of the loss mask and the token count.

        Where one function returns nothing TRL uses the others; without the rubric's there is no
        reward here.
        """
        started, scoring = time.perf_counter(), self.seconds["scoring"]
        if self.model.training and self.args.max_resampling_rounds:
            self._drawn = draw(self, inputs)
            inputs = self._drawn.inputs
        lagged = self.model.training and self.args.reward_lag > 0
        if lagged:
            inputs = self._lag.begin(inputs)
        try:
            with self._early.of(inputs):
                batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
            if lagged:
                self._lag.finish(batch)
        finally:
            self._drawn = None
            self._lag.end()
        self.seconds["rollout"] += (
            time.perf_counter() - started - (self.seconds["scoring"] - scoring)
        )
        rollouts = [
            ids[kept]
            for ids, kept in zip(
                batch["completion_ids"], student_token_mask(batch).bool(), strict=True
            )
        ]
        # Column 0 is the rubric's, which was passed first.
        unscored = self._rewards[:, 0].isnan()
        first = self.accelerator.process_index * len(batch["completion_mask"])
        own = slice(first, first + len(batch["completion_mask"]))
        batch["completion_mask"] = batch["completion_mask"] * (~unscored[own]).to(
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
        if (
            self.distillation is not None
            and self._scored is not None
            and self.model.training
            and not self.guard.routes_nothing
        ):
            started = time.perf_counter()
            with self.accelerator.autocast():
                metrics = self.distillation.prepare(
                    batch, self._scored, first=first, total=self._total
                )
            for name, value in metrics.items():
                self._metrics["train"][name].append(value)
            self.seconds["teacher"] += time.perf_counter() - started
        batch["num_items_in_batch"] = self.accelerator.gather(student_token_mask(batch).sum()).sum()
        if self.model.training:
            self._log_diversity(rollouts, first)
        return batch

    def row_rewards(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return the weighted sums [rows] of rewards [rows, functions], NaN where unscored."""
        # NaN of another function: it does not apply. NaN of the rubric's, the first: no reward.
        sums: torch.Tensor = (rewards * self.reward_weights.to(rewards)).nansum(1)
        return sums.masked_fill(rewards[:, 0].isnan(), torch.nan)

    def _generate(self, prompts: Any) -> Any:
        """Return TRL's rollouts, whose scoring is started, or those that are there already."""
        for there in (self._drawn, self._lag.learnt):
            if there is not None:
                return there.generated
        generated = super()._generate(prompts)
        self._early.start(prompts, generated)
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
        self._early.start_group(first, prompts, completion_ids)

    def _log_diversity(self, rollouts: Sequence[torch.Tensor], first: int) -> None:
        """Log how often rollouts repeat themselves, and each other where their prompts differ.

        Args:
            rollouts: Token ids [T] of this process's rollouts, tools' left out.
            first: Index of the first one among those of all processes.
        """
        by_group: dict[int, torch.Tensor] = {}
        for place, ids in enumerate(rollouts, first):
            # One of each group, because rollouts of one prompt are alike anyway.
            by_group.setdefault(place // self.num_generations, ids)
        sums = self._total(
            torch.stack([repetition_sums(rollouts), distinct_sums([*by_group.values()])]).to(
                self.accelerator.device
            )
        )
        for name, (part, whole) in zip(
            ("completions/repetition", "completions/distinct"), sums.tolist(), strict=True
        ):
            if whole:
                self._metrics["train"][name].append(part / whole)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Return TRL's next micro-batch, with the counts of its optimiser step."""
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        # A batch that was just generated has no counts yet.
        if self.model.training and "rows_in_step" not in inputs:
            self._count_by_step(self._buffered_inputs)
        return inputs

    def _count_by_step(self, batches: Sequence[dict[str, Any]]) -> None:
        """Store in each micro-batch the sums of its optimiser step over all processes.

        TRL counts the tokens of the whole batch and divides by its share of optimiser steps, which
        is a token mean only on average.
        """
        size = self.args.gradient_accumulation_steps
        steps = [batches[start : start + size] for start in range(0, len(batches), size)]
        sums = self._total(
            torch.stack([torch.stack([self._sums(part) for part in step]).sum(0) for step in steps])
        )
        for step, (rows, tokens, weights, weighed) in zip(steps, sums, strict=True):
            for part in step:
                part["rows_in_step"] = rows
                # TRL divides this by the number of optimiser steps.
                part["num_items_in_batch"] = tokens * len(steps)
                part["weight_mean"] = weights / weighed.clamp(min=1)

    def _sums(self, part: dict[str, Any]) -> torch.Tensor:
        """Return rows, tokens, sum of entropy weights and number of weights of a micro-batch."""
        mask = student_token_mask(part)
        weights = (
            torch.zeros(2)
            if self.distillation is None or "routed" not in part
            else self.distillation.weight_sums(part)
        )
        return torch.stack([mask.any(1).sum(), mask.sum(), *weights.to(mask.device)]).float()

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
            norms = (
                self._total(self._norms.take(loss.device)).sqrt() / self.accelerator.num_processes
            ).tolist()
            for branch, norm in zip(("policy", "distillation"), norms, strict=True):
                self._metrics["train"][f"gradient_norm/{branch}"].append(norm)
            gains = self._total(self.distillation.gains.take(loss.device))
            for name, (gain, tokens) in zip(GAINS, gains.tolist(), strict=True):
                self._metrics["train"][name].append(gain / tokens if tokens else math.nan)
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
        student, auxiliary = self._run_student(model, inputs)
        with self.accelerator.autocast():
            loss, metrics = self.distillation.loss(
                inputs,
                student,
                token_count=inputs["num_items_in_batch"]
                * self.current_gradient_accumulation_steps
                / self.args.steps_per_generation,
            )
        self._norms.watch(student.hidden, inputs["routed"])
        values = self.accelerator.gather(torch.stack(list(metrics.values())).unsqueeze(0))
        for name, value in zip(metrics, values.nanmean(0).tolist(), strict=True):
            self._metrics["train"][name].append(value)
        joint: torch.Tensor = loss * processes
        if auxiliary is not None:  # a mixture of experts
            joint = joint + (
                self.router_aux_loss_coef * auxiliary / self.current_gradient_accumulation_steps
            )
        return joint

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

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log as TRL does, its table of completions without prompts and once a batch."""
        with private_completions(self):
            super().log(logs, start_time)

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
        folder: str = self._saving or super()._get_output_dir(trial)
        return folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write TRL's checkpoint with our own files, and publish them in one rename.

        A run that is killed meanwhile leaves the previous checkpoint. Does nothing if this step's
        exists.
        """
        run = Path(self.args.output_dir)
        # Written below another name: a folder of the final name is always complete.
        done, growing = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", run / SAVING
        there = [done.is_dir()]
        # Rank 0 decides for all: ranks must not take different branches before a collective.
        broadcast_object_list(there)
        if there[0]:
            return
        if self.args.should_save:
            # A run that was killed while it saved leaves this folder.
            shutil.rmtree(growing, ignore_errors=True)
            (growing / done.name).mkdir(parents=True)
            if self.distillation is not None and not self.distillation.self_teacher.sharded:
                torch.save(
                    dict(self.distillation.self_teacher.weights()),
                    growing / done.name / SELF_TEACHER_FILE,
                )
            self.guard.save(growing / done.name)
        self.accelerator.wait_for_everyone()
        self._lag.save(growing / done.name)
        if self.distillation is not None and self.distillation.self_teacher.sharded:
            state_dict_saver.save(
                dict(self.distillation.self_teacher.weights()),
                checkpoint_id=growing / done.name / SELF_TEACHER_FOLDER,
            )
        self._saving = str(growing)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = None
        if (best := self.state.best_global_step) is not None:
            # TRL has named it below the temporary folder.
            self.state.best_model_checkpoint = str(run / f"{PREFIX_CHECKPOINT_DIR}-{best}")
            if self.args.should_save:
                self.state.save_to_json(str(growing / done.name / TRAINER_STATE_NAME))
        # All processes have written before rank 0 renames the folder.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish_dir(growing / done.name, done)
            growing.rmdir()
            # Only now: until the new checkpoint exists, the previous one is the newest.
            rotate_checkpoints(
                str(run), self.args.save_total_limit, self.state.best_model_checkpoint
            )
        # A rank that went on could end, and a launcher ends the others with it.
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load TRL's state of a checkpoint, the self-teacher's weights and the guard's state."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.guard.restore(Path(checkpoint))
            self._lag.restore(Path(checkpoint))
        if self.distillation is not None and checkpoint is not None:
            teacher = self.distillation.self_teacher
            if teacher.sharded:
                teacher.start()
                weights = dict(teacher.weights())
                state_dict_loader.load(
                    weights, checkpoint_id=Path(checkpoint) / SELF_TEACHER_FOLDER
                )
            else:
                weights = load_tensors(
                    Path(checkpoint) / SELF_TEACHER_FILE, self.accelerator.device
                )
            teacher.restore(weights)

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

    def _total(self, values: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
        return total

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """Return TRL's order of prompts, seeded by the run's seed and the epoch's number."""
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

        On a CPU TRL's fused head projects the prompt's positions too, which is 27 times slower for
        a tiny model with a long prompt. There only the completion is projected, a chunk at a time;
        other devices use TRL's way. Padding counts 0 in both.
        """
        if self._lag.learnt is not None:  # the weights are not those that sampled it
            return self._lag.learnt.log_probs, None, None
        if self._runs_plainly(input_ids, compute_aux_loss, images):
            student = self._plain_states(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size
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

    def _runs_plainly(
        self, input_ids: torch.Tensor, compute_aux_loss: bool, images: Mapping[str, Any]
    ) -> bool:
        # TRL's head alone gives entropies a gradient.
        entropy_is_trained = self._entropy_bonus_enabled and torch.is_grad_enabled()
        return (
            input_ids.device.type == self.plain_device
            and not compute_aux_loss
            and not entropy_is_trained
            and all(value is None for value in images.values())
        )

    def _run_student(
        self, model: Any, inputs: Mapping[str, Any]
    ) -> tuple[StudentStates, torch.Tensor | None]:
        """Run the student on a micro-batch; also return the experts' auxiliary loss, if any."""
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep = inputs["completion_ids"].shape[1]
        if self._runs_plainly(input_ids, self.aux_loss_enabled, {}):
            plain = self._plain_states(
                model, input_ids, attention_mask, keep, without_gradient=inputs["routed"]
            )
            return plain, None
        inner = _inner(self.accelerator.unwrap_model(model))
        with last_states(inner) as seen:
            log_probs, entropies, auxiliary = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                keep,
                compute_entropy=True,
                compute_aux_loss=self.aux_loss_enabled,
            )
        # A state predicts the next token, so the window lies one position earlier.
        states = torch.cat([part[:, -keep - 1 : -1] for part in seen])
        return StudentStates(log_probs, entropies, states, output_head(inner), seen), auxiliary

    def _plain_states(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        keep: int,
        *,
        batch_size: int | None = None,
        without_gradient: torch.Tensor | None = None,
    ) -> StudentStates:
        """Run the model without its head, and the head on the completions, a chunk at a time.

        Args:
            model: The model, as the trainer wraps it.
            input_ids: Tokens [B, P + C].
            attention_mask: Mask [B, P + C].
            keep: C.
            batch_size: Rows that run at once; default: all.
            without_gradient: Rows [B] whose log-probabilities need no gradient.
        """
        unwrapped = self.accelerator.unwrap_model(model)
        inner = _inner(unwrapped)
        every = []
        size = batch_size or len(input_ids)
        # Sharing calls a part of the model, inside the wrapper of DDP, FSDP or DeepSpeed.
        share = (
            self.accelerator.num_processes == 1
            and not self.is_deepspeed_enabled
            and not is_sharded(unwrapped)
            and keep > 1
            and can_share(model)
        )
        for ids, mask in zip(
            torch.split(input_ids, size), torch.split(attention_mask, size), strict=True
        ):
            if share:
                with self.accelerator.autocast():
                    every.append(shared_prompt_states(inner.base_model, ids, mask, keep))
            else:
                with last_states(inner) as seen:
                    # Only the states are used. `logits_to_keep=0` would ask for all logits.
                    model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
                every += [states[:, -keep - 1 : -1] for states in seen]
        states = torch.cat(every)
        head = output_head(inner)
        counted = attention_mask[:, -keep:].bool()
        precise = torch.promote_types(states.dtype, torch.float32)
        log_probs, entropies = (states.new_zeros(counted.shape, dtype=precise) for _ in range(2))
        # Routed rows learn from the divergence alone: their log-probabilities need no graph.
        fixed = torch.zeros_like(counted[:, 0]) if without_gradient is None else without_gradient
        for rows, learning in (
            (counted & ~fixed.unsqueeze(1), True),
            (counted & fixed.unsqueeze(1), False),
        ):
            with (
                torch.set_grad_enabled(learning and torch.is_grad_enabled()),
                self.accelerator.autocast(),
            ):
                token_logps, token_entropies = token_log_probs(
                    states[rows], input_ids[:, -keep:][rows], head, temperature=self.temperature
                )
            log_probs[rows] = token_logps.to(log_probs)
            entropies[rows] = token_entropies.to(entropies)
        if not (counted & ~fixed.unsqueeze(1)).any():  # DDP needs a gradient of every weight
            log_probs = log_probs + 0 * head(states[:1, :1]).sum()
        return StudentStates(log_probs, entropies, states, head, every)


class UpdateSelfTeacher(TrainerCallback):  # type: ignore[misc]
    """Updates the self-teacher once per generated batch, after its last step and before saving."""

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the self-teacher: the student is sharded now."""
        if self._trainer.distillation is not None:
            self._trainer.distillation.self_teacher.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the self-teacher at the end of a batch."""
        trainer = self._trainer
        if (
            trainer.distillation is not None
            and trainer._step % (args.steps_per_generation * args.num_iterations) == 0
        ):
            rate = trainer.teacher_rate()
            if rate > 0:
                trainer.distillation.self_teacher.update(rate)


class GuardDeepSpeed(TrainerCallback):  # type: ignore[misc]
    """Puts the guards around DeepSpeed's step, once a trainer has made its engine."""

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the guards, and check the output head if it was in shards until now."""
        trainer = self._trainer
        trainer.accelerator.deepspeed_engine_wrapped = GuardedEngine(
            trainer.accelerator.deepspeed_engine_wrapped.engine,
            teaches=lambda: trainer.teaches(trainer._step),
            step=lambda: trainer.state.global_step + 1,
        )
        if is_zero3_run(args):
            trainer.check_output_head()
            gather_for_gradient(_inner(trainer.model).get_output_embeddings())


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with a permutation that does not depend on earlier epochs."""

    def __init__(self, trainer: MarkschemeTrainer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + int(self._trainer.state.epoch or 0))
        return iter(super().__iter__())


def is_fsdp(args: TrainConfig) -> bool:
    """Return whether accelerate is asked for FSDP, by the configuration or by its launcher."""
    return args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")


def is_zero3_run(args: TrainConfig) -> bool:
    """Return whether DeepSpeed's ZeRO 3 takes the weights apart."""
    plugin = args.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def sharding(args: TrainConfig) -> str:
    """Return what has taken the weights or the optimiser apart, in words."""
    if args.deepspeed_plugin is not None:
        return f"sharded by ZeRO {args.deepspeed_plugin.zero_stage}"
    return "sharded by FSDP" if is_fsdp(args) else "whole"


def check_shards(trainer: GRPOTrainer) -> None:
    """Raise `ConfigError` if the weights are in shards in a way that is not known here."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if plugin is not None and plugin.zero_stage == 0:
        raise ConfigError("DeepSpeed's zero_stage 0 shards nothing: leave out DeepSpeed, or set 2")
    if (
        plugin is not None
        and plugin.zero_stage == 3
        and not plugin.deepspeed_config["zero_optimization"].get(
            "stage3_gather_16bit_weights_on_model_save"
        )
    ):
        raise ConfigError(
            "ZeRO 3 would save no model: set zero3_save_16bit_model: true, as "
            "examples/accelerate/zero3.yaml does"
        )
    if trainer.args.method == "grpo":
        return
    if plugin is not None and plugin.zero_stage == 3 and trainer.aux_loss_enabled:
        raise ConfigError(
            f"method {trainer.args.method} was not tried under ZeRO 3 with the loss of a mixture "
            "of experts' routers: set router_aux_loss_coef: 0, or use FSDP 2 or ZeRO 2"
        )
    if is_fsdp(trainer.args) and not trainer.is_fsdp_enabled:
        raise ConfigError("accelerate shards no weights on a CPU: leave out FSDP")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError(
            f"method {trainer.args.method} has a self-teacher, which needs FSDP 2, not 1: set "
            "fsdp_version: 2, as examples/accelerate/fsdp2.yaml does"
        )


@torch.no_grad()
def check_steps_move_weights(trainer: GRPOTrainer) -> None:
    """Raise `ConfigError` if an Adam step of the learning rate is lost in the weights' precision.

    Adam moves a weight by about the learning rate. A step below half the spacing of numbers at the
    weight is rounded away; at least half of the weights must move. DeepSpeed and FSDP keep fp32
    weights of their own.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    rate, moved, count = trainer.args.learning_rate, 0, 0
    for weight in trainer.model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            # In the weight's own precision, as the optimiser computes it.
            moved += int((weight - rate != weight).sum())
            count += weight.numel()
    if moved < MIN_MOVED_SHARE * count:
        raise ConfigError(
            f"at `learning_rate` {rate:g} a step moves {moved / count:.0%} of the weights, which "
            "are in half precision: the others round it away. Leave `dtype` out of "
            "`model_init_kwargs` (fp32 weights, computed in bf16 with `bf16: true`), train an "
            "adapter (`lora_rank`), or raise the learning rate"
        )


@torch.no_grad()
def check_output_head(model: Any) -> None:
    """Raise `ModelError` unless `output_head` makes the model's own logits, on two tokens."""
    # Two: the state of a padding token may be 0, which every factor leaves at 0.
    tokens = torch.arange(2, device=model.device).unsqueeze(0)
    training = model.training
    model.eval()
    with last_states(model) as seen:
        logits = model(input_ids=tokens, use_cache=False).logits.float()
    model.train(training)
    error = (output_head(model)(seen[0]).float() - logits).abs().max()
    if error > HEAD_TOLERANCE * logits.abs().max():
        raise ModelError(
            f"{type(model).__name__} does more to its logits than its output layer, and what is "
            f"not known (they differ by {error:.3g}): it cannot be trained here"
        )


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _DropRollouts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in str(record.msg)


def _keep_rollouts_out_of_the_log() -> None:
    """Silence TRL's warning about unscored rows: it prints prompt and rollout. Ours does not."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    if not any(isinstance(known, _DropRollouts) for known in logger.filters):
        logger.addFilter(_DropRollouts())
