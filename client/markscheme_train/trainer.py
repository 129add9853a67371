"""``MarkschemeTrainer``: TRL's GRPO with what a reward that may be unknown needs, and self-distillation beside it.

Three corrections, each where TRL 1.16 does otherwise: a row without a reward leaves the loss denominator as
well as the baseline; prompts and rollouts stay out of the log; each epoch's order depends on the seed and the
epoch alone, so that a resumed run sees the prompts an uninterrupted one would. On a CPU the log-probabilities
come from one plain forward pass. The policy's loss is TRL's; with the methods ``sdpo`` and ``srpo`` the self-teacher's
term is added over the same tokens.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from markscheme_train.config import TrainConfig
from markscheme_train.errors import ConfigError
from markscheme_train.exchange import exchange
from markscheme_train.losses import group_advantages
from markscheme_train.prefix import can_share, shared_prompt_logits
from markscheme_train.reward import RubricReward
from markscheme_train.selfdistillation import Rows, SelfDistillation, StudentStates
from markscheme_train.teacher import AdapterCopy, ModelCopy

TEACHER_FILE = "self_teacher.pt"

log = logging.getLogger(__name__)


class MarkschemeTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO whose rewards may be ``None``.

    ``seconds`` holds what the current step spent on rollouts, on scoring and on the self-teacher; ``reward`` is the
    rubric reward. ``other_rewards`` are TRL reward functions to add to it: one that returns ``None`` for a rollout does
    not apply to it, as TRL has it; a rollout without a rubric reward has none whatever they say, and routing goes by
    the rubric's score alone. Raises :class:`ConfigError` at once when an update
    would see only part of a generated batch (TRL's token mean is exact only for whole ones).
    """

    plain_device = "cpu"
    """Where log-probabilities come from one plain forward pass instead of TRL's fused head."""

    def __init__(self, model: Any, reward: RubricReward, args: TrainConfig, *, other_rewards: Sequence[Any] = (),
                 **kwargs: Any) -> None:
        check_batch_shape(args)
        _keep_rollouts_out_of_the_log()
        self.reward = reward
        self.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
        self._unscored = torch.zeros(0, dtype=torch.bool)
        self._rewards = torch.zeros(0, 1)
        self._student: StudentStates | None = None
        self._capturing = False
        # Before TRL replaces the model's forward: a copy made later would run the student's.
        teacher = ModelCopy(model) if args.method != "grpo" and not hasattr(model, "peft_config") else None
        super().__init__(model=model, reward_funcs=[reward, *other_rewards], args=args, **kwargs)
        reward.exchange = exchange()
        self.distillation: SelfDistillation | None = None
        if teacher is not None:
            teacher.model.to(self.accelerator.device)
        if args.method != "grpo":
            self.distillation = SelfDistillation(args, teacher or AdapterCopy(self.model), self._tokenizer)
            self.add_callback(FollowStudent(self))

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """TRL's rewards of all processes, [rows, functions]; notes which of this process's rows have none.

        Where one function knows nothing TRL goes by the others; without the rubric's there is no reward here.
        """
        started = time.perf_counter()
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.seconds["scoring"] += time.perf_counter() - started
        first = self.accelerator.process_index * len(prompts)
        self._unscored = rewards[first:first + len(prompts), 0].isnan()
        if self._unscored.any() and self.reward.last is not None and self.accelerator.is_main_process:
            log.warning("%d of %d rollouts unscored (%s): left out of this update",
                        self.reward.last.unscored, len(self.reward.last.rewards), self.reward.last.reasons)
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch with the rows that have no reward taken out of the loss mask and its token count."""
        started, scoring = time.perf_counter(), self.seconds["scoring"]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.seconds["rollout"] += time.perf_counter() - started - (self.seconds["scoring"] - scoring)
        scored = (~self._unscored).to(batch["completion_mask"])
        batch["completion_mask"] = batch["completion_mask"] * scored.unsqueeze(1)
        first = self.accelerator.process_index * len(scored)
        if self.args.scale_rewards != "batch":
            # TRL's differ in the constant beside the deviation, and give a lone reward one of its own.
            size = self.num_generations if self.model.training else self.num_generations_eval
            marks = (self._rewards * self.reward_weights.to(self._rewards)).nansum(1)
            marks = marks.masked_fill(self._rewards[:, 0].isnan(), torch.nan).view(-1, size)
            advantages = group_advantages(marks, scale="none" if self.args.scale_rewards == "none" else "std")
            batch["advantages"] = advantages.flatten()[first:first + len(scored)].to(batch["advantages"])
        if self.distillation is not None and self.reward.last is not None and self.model.training:
            started = time.perf_counter()
            rows = Rows(self.reward.rows, self.reward.last.marks, self.reward.last.teacher_scores)
            with self.accelerator.autocast():
                told = self.distillation.prepare(batch, rows, first=first, total=self._total)
            for name, value in told.items():
                self._metrics["train"][name].append(value)
            self.seconds["teacher"] += time.perf_counter() - started
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

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        """TRL's loss, whose rows for the self-teacher have no advantage, and that teacher's term over the same tokens.

        Relies on TRL's ``dapo`` normaliser: the tokens of the whole generated batch over all processes.
        """
        if self.distillation is None or "routed" not in inputs:
            policy: torch.Tensor = super()._compute_loss(model, inputs)
            return policy
        self._capturing = True
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            assert self._student is not None
            term = self.distillation.term(inputs, self._student)
        finally:
            self._capturing, self._student = False, None
        tokens: torch.Tensor = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        joint: torch.Tensor = loss + term / (tokens * share)
        return joint

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's checkpoint with the self-teacher's weights in it, written first: transformers writes its own state,
        by which a checkpoint is known to be whole, after everything else."""
        if self.distillation is not None and self.args.should_save:
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(dict(self.distillation.teacher.weights()), folder / TEACHER_FILE)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """TRL's, at which resuming a run takes its state from a checkpoint; the self-teacher's goes with it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.distillation is not None and checkpoint is not None:
            weights = torch.load(Path(checkpoint) / TEACHER_FILE, map_location=self.accelerator.device,
                                 weights_only=True)
            self.distillation.teacher.restore(weights)

    def _total(self, values: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
        return total

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
        plain = input_ids.device.type == self.plain_device
        if not plain or compute_aux_loss or any(v is not None for v in images.values()):
            result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
            inner = _inner(self.accelerator.unwrap_model(model))
            with ExitStack() as stack:
                seen = stack.enter_context(_last_states(inner)) if self._capturing else []
                result = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                    **images)
            if self._capturing:
                states = torch.cat(seen)[:, -logits_to_keep - 1:-1]
                self._student = StudentStates(result[0], states, inner.get_output_embeddings())
            return result
        logps, entropies, seen_logits = [], [], []
        size = batch_size or len(input_ids)
        share = self.accelerator.num_processes == 1 and logits_to_keep > 1 and can_share(model)
        for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True):
            if share:
                logits = shared_prompt_logits(model, ids, mask, logits_to_keep)
            else:
                logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=logits_to_keep + 1,
                               use_cache=False).logits[:, :-1]
            if self._capturing:
                seen_logits.append(logits)
            every = torch.log_softmax(logits.float() / self.temperature, dim=-1)
            logps.append(every.gather(-1, ids[:, -logits_to_keep:].unsqueeze(-1)).squeeze(-1))
            if compute_entropy:
                entropies.append(-(every.detach().exp() * every.detach()).sum(-1))
        if self._capturing:
            self._student = StudentStates(torch.cat(logps), torch.cat(seen_logits), lambda logits: logits)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


class FollowStudent(TrainerCallback):  # type: ignore[misc]
    """Moves the self-teacher once a generated batch, after its last update and before it is saved."""

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.distillation is not None and trainer._step % (args.steps_per_generation * args.num_iterations) == 0:
            trainer.distillation.teacher.follow(args.teacher_update_rate)


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
    """Raise :class:`ConfigError` unless each update is one whole batch."""
    if args.method != "grpo" and args.loss_type != "dapo":
        raise ConfigError(f"method {args.method} needs loss_type dapo: both branches share its token mean")
    if args.steps_per_generation != args.gradient_accumulation_steps:
        raise ConfigError(f"steps_per_generation ({args.steps_per_generation}) must equal "
                          f"gradient_accumulation_steps ({args.gradient_accumulation_steps})")


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _last_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """The last hidden states of each forward pass meanwhile, with their graph."""
    seen: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(lambda _module, _given, out: seen.append(out[0]))
    try:
        yield seen
    finally:
        hook.remove()


class _DropRollouts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in str(record.msg)


def _keep_rollouts_out_of_the_log() -> None:
    """TRL warns of an unscored row by printing its prompt, rollout and columns; our own warning counts instead."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    if not any(isinstance(known, _DropRollouts) for known in logger.filters):
        logger.addFilter(_DropRollouts())
