"""The self-teacher of a training run: how it is made, and how fast it follows the student."""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback

from markscheme_train.config import TrainConfig
from markscheme_train.self_teacher import (
    AdapterCopy,
    ModelCopy,
    SelfTeacher,
    ShardedCopy,
    TrustRegion,
    scheduled,
)
from markscheme_train.sharding import FsdpShards, is_fsdp_run, is_zero3_run
from markscheme_train.zero import ZeroShards

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


def copy_before_wrapping(model: nn.Module, args: TrainConfig) -> ModelCopy | None:
    """Return a copy of the model if the self-teacher is one, else `None`.

    Call it before TRL replaces the model's forward: a later copy would run the student.
    """
    is_copied = (
        args.method != "grpo"
        and not hasattr(model, "peft_config")
        and not is_fsdp_run(args)
        and not is_zero3_run(args)
    )
    return ModelCopy(model) if is_copied else None


def make_self_teacher(trainer: "MarkschemeTrainer", copied: ModelCopy | None) -> SelfTeacher:
    """Return the self-teacher that the configuration asks for.

    Args:
        trainer: The trainer, whose model is wrapped by TRL but not in shards yet.
        copied: What `copy_before_wrapping` returned.
    """
    self_teacher: SelfTeacher
    if is_fsdp_run(trainer.args):
        policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
        self_teacher = ShardedCopy(
            trainer.model, FsdpShards(trainer.model), policy and policy.param_dtype
        )
    elif is_zero3_run(trainer.args):
        shards = ZeroShards(lambda: trainer.accelerator.deepspeed_engine_wrapped.engine)
        self_teacher = ShardedCopy(trainer.model, shards)
    else:
        self_teacher = copied or AdapterCopy(trainer.model)
    if trainer.args.self_teacher == "trust_region":
        return TrustRegion(self_teacher, trainer.model, lambda: teacher_rate(trainer))
    return self_teacher


def teacher_rate(trainer: "MarkschemeTrainer") -> float:
    """Return how closely the self-teacher follows the student at this step, 0 to 1.

    It is the rate of a moving average, or the student's share of a trust region.
    """
    args, state = trainer.args, trainer.state
    if args.self_teacher == "frozen" or trainer.guard.freezes_teacher:
        return 0.0
    rate = args.teacher_update_rate if args.self_teacher == "ema" else args.trust_region_coefficient
    return scheduled(rate, args.teacher_rate_schedule, state.global_step, state.max_steps)


class UpdateSelfTeacher(TrainerCallback):  # type: ignore[misc]
    """Updates the self-teacher once per generated batch, after its last step and before saving."""

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
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
            rate = teacher_rate(trainer)
            if rate > 0:
                trainer.distillation.self_teacher.update(rate)
