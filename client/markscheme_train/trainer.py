"""`MarkschemeTrainer`: TRL's GRPO for rewards that may be unknown, with self-distillation.

It corrects TRL 1.16 in three places. A row without a reward leaves the loss denominator as well as
the baseline. Prompts and rollouts stay out of the log. The order of an epoch depends on the seed
and the epoch alone, so that a resumed run sees the same prompts as an uninterrupted one. On a CPU
log-probabilities come from one plain forward pass. The policy loss is TRL's; with the methods
`sdpo` and `srpo` the self-teacher's loss is added over the same tokens.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from markscheme_train.checkpoints import SAVING, publish_dir
from markscheme_train.collapse_guard import CollapseGuard
from markscheme_train.config import TrainConfig
from markscheme_train.diagnostics import distinct_sums, repetition_sums
from markscheme_train.distillation import token_log_probs
from markscheme_train.errors import ConfigError
from markscheme_train.losses import group_advantages
from markscheme_train.prefix import can_share, shared_prompt_states
from markscheme_train.reward import RubricReward
from markscheme_train.self_distillation import (
    BranchNorms,
    ScoredRows,
    SelfDistillation,
    StudentStates,
    student_token_mask,
)
from markscheme_train.self_teacher import (
    AdapterCopy,
    ModelCopy,
    SelfTeacher,
    TrustRegion,
    output_head,
    scheduled,
)

SELF_TEACHER_FILE = "self_teacher.pt"

log = logging.getLogger(__name__)


class MarkschemeTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO whose rewards may be `None`.

    `seconds` holds what the current step spent on rollouts, scoring and the self-teacher; `reward`
    is the rubric reward.

    What it overrides, and what of TRL 1.16 each override relies on
    (`tests/train/test_trl_contract.py` checks the words):

    - ``_calculate_rewards``: is given this process's rows, returns all processes', ``None`` as NaN.
    - ``_generate_and_score_completions``: its dict is shuffled and split row by row, extra entries
      with it; groups are contiguous in it; ``num_items_in_batch`` is the denominator.
    - ``_compute_loss``: ``dapo`` divides by ``num_items_in_batch`` over processes and accumulation
      steps; a row with an advantage of 0 adds nothing else to it (no KL and no entropy term).
    - ``_get_per_token_logps_and_entropies``: the one place where the student runs in an update.
    - ``training_step``: counts micro-batches in ``_step``.
    - ``_get_train_sampler``: its sampler shuffles by a generator of its own.
    - ``_save_checkpoint``, ``_get_output_dir``, ``_load_optimizer_and_scheduler``: a checkpoint is
      written below the one folder, its trainer state last, and read back at that moment.

    Args:
        model: The student.
        reward: The rubric reward.
        args: The configuration.
        other_rewards: TRL reward functions to add. One that returns `None` for a rollout does
            not apply to it. A rollout without a rubric reward has none whatever they say, and
            routing uses the rubric's score alone.
        **kwargs: Passed to `GRPOTrainer`.

    Raises:
        ConfigError: An update would see only part of a generated batch (TRL's token mean is
            exact only for whole ones), or the self-teacher only part of the weights.
    """

    plain_device = "cpu"
    """Device type on which log-probabilities come from one plain forward pass."""

    def __init__(
        self,
        model: Any,
        reward: RubricReward,
        args: TrainConfig,
        *,
        other_rewards: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        check_batch_shape(args)
        _keep_rollouts_out_of_the_log()
        self.reward = reward
        self.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
        self._unscored = torch.zeros(0, dtype=torch.bool)
        self._rewards = torch.zeros(0, 1)
        self._student: StudentStates | None = None
        self._routed: torch.Tensor | None = None
        self._norms = BranchNorms()
        self._saving: str | None = None
        # Copy before TRL replaces the model's forward: a later copy would run the student's.
        teacher = (
            ModelCopy(model)
            if args.method != "grpo" and not hasattr(model, "peft_config")
            else None
        )
        super().__init__(model=model, reward_funcs=[reward, *other_rewards], args=args, **kwargs)
        self.guard = CollapseGuard(self)
        self.add_callback(self.guard)
        self.distillation: SelfDistillation | None = None
        if teacher is not None:
            teacher.model.to(self.accelerator.device)
        if args.method != "grpo":
            check_unsharded(self)
            copied = teacher or AdapterCopy(self.model)
            self_teacher: SelfTeacher = copied
            if args.self_teacher == "trust_region":
                self_teacher = TrustRegion(copied, self.model, self.teacher_rate)
            self.distillation = SelfDistillation(
                args,
                self_teacher,
                self._tokenizer,
                # `or None`: some templates write about tools even where the list is empty.
                template={"tools": self.tools or None, "chat_template": self.chat_template},
            )
            self.add_callback(UpdateSelfTeacher(self))

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

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Return TRL's rewards of all processes [rows, functions]; note the unscored rows here.

        Where one function returns nothing TRL uses the others; without the rubric's there is no
        reward here.
        """
        started = time.perf_counter()
        rewards: torch.Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        self.seconds["scoring"] += time.perf_counter() - started
        first = self.accelerator.process_index * len(prompts)
        # Column 0 is the rubric's, which was passed first.
        self._unscored = rewards[first : first + len(prompts), 0].isnan()
        if (
            self._unscored.any()
            and self.reward.last is not None
            and self.accelerator.is_main_process
        ):
            log.warning(
                "%d of %d rollouts unscored (%s): left out of this update",
                self.reward.last.unscored,
                len(self.reward.last.rewards),
                self.reward.last.reasons,
            )
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Return TRL's batch with unscored rows taken out of the loss mask and the token count."""
        started, scoring = time.perf_counter(), self.seconds["scoring"]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.seconds["rollout"] += (
            time.perf_counter() - started - (self.seconds["scoring"] - scoring)
        )
        rollouts = [
            ids[kept]
            for ids, kept in zip(
                batch["completion_ids"], student_token_mask(batch).bool(), strict=True
            )
        ]
        scored = (~self._unscored).to(batch["completion_mask"])
        batch["completion_mask"] = batch["completion_mask"] * scored.unsqueeze(1)
        first = self.accelerator.process_index * len(scored)
        if self.args.scale_rewards != "batch":
            # TRL adds another constant to the deviation, and gives a lone reward an advantage.
            size = self.num_generations if self.model.training else self.num_generations_eval
            # NaN of another function: it does not apply. NaN of the rubric's: the row is masked.
            row_scores = (self._rewards * self.reward_weights.to(self._rewards)).nansum(1)
            row_scores = row_scores.masked_fill(self._rewards[:, 0].isnan(), torch.nan).view(
                -1, size
            )
            advantages = group_advantages(
                row_scores, scale="none" if self.args.scale_rewards == "none" else "std"
            )
            batch["advantages"] = advantages.flatten()[first : first + len(scored)].to(
                batch["advantages"]
            )
        if (
            self.distillation is not None
            and self.reward.last is not None
            and self.model.training
            and not self.guard.routes_nothing
        ):
            started = time.perf_counter()
            rows = ScoredRows(
                self.reward.rows, self.reward.last.row_scores, self.reward.last.teacher_scores
            )
            with self.accelerator.autocast():
                metrics = self.distillation.prepare(batch, rows, first=first, total=self._total)
            for name, value in metrics.items():
                self._metrics["train"][name].append(value)
            self.seconds["teacher"] += time.perf_counter() - started
        batch["num_items_in_batch"] = self.accelerator.gather(student_token_mask(batch).sum()).sum()
        if self.model.training:
            self._log_diversity(rollouts, first)
        return batch

    def _log_diversity(self, rollouts: Sequence[torch.Tensor], first: int) -> None:
        """Log how often rollouts repeat themselves, and each other where their prompts differ.

        Args:
            rollouts: Token ids [T] of this process's rollouts, tools' left out.
            first: Index of the first one among those of all processes.
        """
        size = self.num_generations
        groups = {(first + place) // size: ids for place, ids in reversed([*enumerate(rollouts)])}
        sums = self._total(
            torch.stack([repetition_sums(rollouts), distinct_sums([*groups.values()])]).to(
                self.accelerator.device
            )
        )
        for name, (part, whole) in zip(
            ("completions/repetition", "completions/distinct"), sums.tolist(), strict=True
        ):
            if whole:
                self._metrics["train"][name].append(part / whole)

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run TRL's step; clear the gradients if no rollout of the batch was scored.

        The optimiser skips parameters without a gradient, but would move them on a gradient of
        zero, by momentum and weight decay.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if (
            self.distillation is not None
            and self._step % self.current_gradient_accumulation_steps == 0
        ):
            norms = (
                self._total(self._norms.take(loss.device)).sqrt() / self.accelerator.num_processes
            ).tolist()
            for branch, norm in zip(("policy", "distillation"), norms, strict=True):
                self._metrics["train"][f"gradient_norm/{branch}"].append(norm)
            comparison = self.distillation.comparison
            means = comparison.means(self._total(comparison.take(loss.device)))
            for name, value in means.items():
                self._metrics["train"][name].append(value)
        last = self._buffered_inputs[-1] if self._buffered_inputs else None
        if last is not None and int(last["num_items_in_batch"]) == 0:
            model.zero_grad(set_to_none=True)
        return loss

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        """Return TRL's loss plus the self-teacher's over the same tokens.

        Routed rows have no advantage in TRL's. Relies on the normaliser of `dapo`: the tokens of
        the whole generated batch over all processes.
        """
        if self.distillation is None or "routed" not in inputs:
            policy: torch.Tensor = super()._compute_loss(model, inputs)
            return policy
        self._routed = inputs["routed"]
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            assert self._student is not None
            with self.accelerator.autocast():
                distillation = self.distillation.distillation_loss_sum(inputs, self._student)
            self.distillation.comparison.add(
                inputs, self._student.log_probs, student_token_mask(inputs)
            )
            self._norms.watch(self._student.hidden, inputs["routed"])
        finally:
            # Also after an error: the forward pass runs outside of updates too.
            self._routed = self._student = None
        tokens: torch.Tensor = (
            inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        )
        share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        joint: torch.Tensor = loss + distillation / (tokens * share)
        return joint

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
            if self.distillation is not None:
                torch.save(
                    dict(self.distillation.self_teacher.weights()),
                    growing / done.name / SELF_TEACHER_FILE,
                )
            self.guard.save(growing / done.name)
        self.accelerator.wait_for_everyone()
        self._saving = str(growing)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = None
        # All processes have written before rank 0 renames the folder.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish_dir(growing / done.name, done)
            growing.rmdir()
            # Only now: until the new checkpoint exists, the previous one is the newest.
            rotate_checkpoints(str(run), self.args.save_total_limit)
        # A rank that went on could end, and a launcher ends the others with it.
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load TRL's state of a checkpoint, the self-teacher's weights and the guard's state."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.guard.restore(Path(checkpoint))
        if self.distillation is not None and checkpoint is not None:
            weights = torch.load(
                Path(checkpoint) / SELF_TEACHER_FILE,
                map_location=self.accelerator.device,
                weights_only=True,
            )
            self.distillation.self_teacher.restore(weights)

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
        inner = _inner(self.accelerator.unwrap_model(model))
        head = output_head(inner)
        plain = input_ids.device.type == self.plain_device
        if not plain or compute_aux_loss or any(v is not None for v in images.values()):
            result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
            with _last_states(inner, when=self._routed is not None) as seen:
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
            if self._routed is not None:
                # A state predicts the next token, so the window lies one position earlier.
                states = torch.cat([part[:, -logits_to_keep - 1 : -1] for part in seen])
                self._student = StudentStates(result[0], states, head, seen)
            return result
        every = []
        size = batch_size or len(input_ids)
        # Sharing calls the model inside DDP's wrapper, so it is for a single process only.
        share = self.accelerator.num_processes == 1 and logits_to_keep > 1 and can_share(model)
        for ids, mask in zip(
            torch.split(input_ids, size), torch.split(attention_mask, size), strict=True
        ):
            if share:
                with self.accelerator.autocast():
                    every.append(shared_prompt_states(inner.base_model, ids, mask, logits_to_keep))
            else:
                with _last_states(inner, when=True) as seen:
                    # Only the states are used. `logits_to_keep=0` would ask for all logits.
                    model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
                every += [states[:, -logits_to_keep - 1 : -1] for states in seen]
        states = torch.cat(every)
        counted = attention_mask[:, -logits_to_keep:].bool()
        precise = torch.promote_types(states.dtype, torch.float32)
        logps, entropies = (states.new_zeros(counted.shape, dtype=precise) for _ in range(2))
        # Routed rows have no advantage: their log-probabilities need no gradient.
        routed = torch.zeros_like(counted[:, 0]) if self._routed is None else self._routed
        for rows, learning in (
            (counted & ~routed.unsqueeze(1), True),
            (counted & routed.unsqueeze(1), False),
        ):
            with (
                torch.set_grad_enabled(learning and torch.is_grad_enabled()),
                self.accelerator.autocast(),
            ):
                token_logps, token_entropies = token_log_probs(
                    states[rows],
                    input_ids[:, -logits_to_keep:][rows],
                    head,
                    temperature=self.temperature,
                )
            logps[rows], entropies[rows] = token_logps.to(logps), token_entropies.to(entropies)
        if not (counted & ~routed.unsqueeze(1)).any():  # DDP needs a gradient of every weight
            logps = logps + 0 * head(states[:1, :1]).sum()
        if self._routed is not None:
            self._student = StudentStates(logps, states, head, every)
        return logps, entropies if compute_entropy else None, None


class UpdateSelfTeacher(TrainerCallback):  # type: ignore[misc]
    """Updates the self-teacher once per generated batch, after its last step and before saving."""

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer

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


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with a permutation that does not depend on earlier epochs."""

    def __init__(self, trainer: MarkschemeTrainer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + int(self._trainer.state.epoch or 0))
        return iter(super().__iter__())


def check_batch_shape(args: TrainConfig) -> None:
    """Raise `ConfigError` unless each update is one whole batch."""
    if args.method != "grpo" and args.loss_type != "dapo":
        raise ConfigError(
            f"method {args.method} needs loss_type dapo: both branches share its token mean"
        )
    if args.steps_per_generation != args.gradient_accumulation_steps:
        raise ConfigError(
            f"steps_per_generation ({args.steps_per_generation}) must equal "
            f"gradient_accumulation_steps ({args.gradient_accumulation_steps})"
        )
    if args.max_steps > 0 and args.max_steps % args.num_iterations:
        raise ConfigError(
            f"max_steps ({args.max_steps}) must be a multiple of num_iterations "
            f"({args.num_iterations}): a run ends with a whole batch"
        )


def check_unsharded(trainer: GRPOTrainer) -> None:
    """Raise `ConfigError` if a process holds only a part of the weights.

    The self-teacher's average needs all of them.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin
    if trainer.is_fsdp_enabled or (
        trainer.is_deepspeed_enabled and plugin is not None and plugin.zero_stage == 3
    ):
        raise ConfigError(
            f"method {trainer.args.method} needs all weights on each process: use DDP or "
            "DeepSpeed's ZeRO 1 or 2, or a method without a self-teacher (presets grpo, ropd)"
        )


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _last_states(model: Any, *, when: bool) -> Iterator[list[torch.Tensor]]:
    """Collect the last hidden states of each forward pass, with their graph; none unless `when`."""
    seen: list[torch.Tensor] = []
    if not when:
        yield seen
        return
    hook = model.base_model.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
    try:
        yield seen
    finally:
        hook.remove()


class _DropRollouts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in str(record.msg)


def _keep_rollouts_out_of_the_log() -> None:
    """Silence TRL's warning about unscored rows: it prints prompt and rollout. Ours does not."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    if not any(isinstance(known, _DropRollouts) for known in logger.filters):
        logger.addFilter(_DropRollouts())
