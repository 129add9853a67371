"""What a configuration is refused for: values out of range, and settings without effect.

Each check raises `ConfigError` with the key, its value and what it may be.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markscheme_train.errors import ConfigError

if TYPE_CHECKING:
    from markscheme_train.config import TrainConfig

MIN_PROMPTS_PER_STEP = 8
"""Prompts of an optimiser step below which the presets' learning rates are out of place."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a key takes; `above` excludes `low` itself. Infinity is in no range."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        lower = value > self.low if self.above else value >= self.low
        return lower and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        if math.isinf(self.high):
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        return (
            f"above {self.low:g} and at most {self.high:g}"
            if self.above
            else (f"from {self.low:g} to {self.high:g}")
        )


SHARE = Range(0, 1)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
RANGES = {
    "max_unscored": SHARE,
    "max_outage_s": NOT_NEGATIVE,
    "ask_teacher": NOT_NEGATIVE,
    "lora_rank": COUNT,
    "lora_alpha": COUNT,
    "max_prompt_length": COUNT,
    "max_resampling_rounds": NOT_NEGATIVE,
    "early_stopping_patience": COUNT,
    # TRL and torch refuse some of these only in the first step, and others never.
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "steps_per_generation": COUNT,
    "num_iterations": COUNT,
    "dataloader_num_workers": NOT_NEGATIVE,
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "epsilon": NOT_NEGATIVE,
    "epsilon_high": NOT_NEGATIVE,
    "delta": POSITIVE,
    "beta": NOT_NEGATIVE,
    "top_p": Range(0, 1, above=True),
    "top_k": NOT_NEGATIVE,
    "min_p": SHARE,
    "repetition_penalty": POSITIVE,
    "prompts_per_step": COUNT,
    "steps_per_batch": COUNT,
    "temperature": POSITIVE,
    "demonstration_gap": NOT_NEGATIVE,
    # Less holds no demonstration: the fixed words around it take as many.
    "max_reprompt_length": Range(32),
    "teacher_update_rate": SHARE,
    "trust_region_coefficient": SHARE,
    "min_demonstration_tokens": NOT_NEGATIVE,
    "distillation_alpha": SHARE,
    "distillation_top_k": COUNT,
    "entropy_beta": NOT_NEGATIVE,
    "importance_cap": POSITIVE,
}
"""The range of each number that the methods use; `None` is in each, where the key takes it."""
WITHOUT_SELF_TEACHER: dict[str, Any] = {
    "loss_type": "dapo",
    "beta": 0.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "importance_sampling_level": "token",
}
"""Settings of TRL's loss that the joint loss of `sdpo` and `srpo` has no place for, and the value
that leaves them out."""


def check_ranges(config: "TrainConfig") -> None:
    """Refuse numbers out of range."""
    # A rubric with negative points may reach below 0, and how far is up to the rubric.
    score = Range(0, 1, above=True) if config.clamp == "zero" else Range(high=1)
    thresholds = {"success_threshold": score, "demonstration_threshold": score}
    for key, allowed in (RANGES | thresholds).items():
        value = getattr(config, key)
        if value is not None and value not in allowed:
            raise ConfigError(f"`{key}` must be {allowed}, not {value:g}")


def check_method(config: "TrainConfig") -> None:
    """Refuse settings that the method would ignore."""
    if config.multi_objective_aggregation != "sum_then_normalize":
        raise ConfigError(
            "`multi_objective_aggregation` must be sum_then_normalize, not "
            f"{config.multi_objective_aggregation}: rewards are weighted and added before a group "
            "is compared"
        )
    if config.method == "grpo":
        if config.on_collapse in ("freeze_teacher", "grpo"):
            raise ConfigError(
                f"`on_collapse` must be warn or stop with method grpo, not {config.on_collapse}: "
                "there is no self-teacher"
            )
        return
    for key, neutral in WITHOUT_SELF_TEACHER.items():
        value = getattr(config, key)
        if value != neutral:
            raise ConfigError(
                f"`{key}` must be {_word(neutral)} with method {config.method}, not "
                f"{_word(value)}: its joint loss has no place for it. Leave it out, or use method "
                "grpo"
            )


def check_batch(config: "TrainConfig") -> None:
    """Refuse a batch, or a run, that is not used in whole optimiser steps."""
    if config.steps_per_generation % config.gradient_accumulation_steps:
        raise ConfigError(
            f"`steps_per_generation` ({config.steps_per_generation}) must be a multiple of "
            f"`gradient_accumulation_steps` ({config.gradient_accumulation_steps}): a batch is "
            "used in whole optimiser steps"
        )
    steps = optimiser_steps(config) * config.num_iterations
    if config.max_steps > 0 and config.max_steps % steps:
        raise ConfigError(
            f"`max_steps` ({config.max_steps}) must be a multiple of {steps}, the optimiser steps "
            f"on one batch (steps_per_batch {optimiser_steps(config)} x num_iterations "
            f"{config.num_iterations}): set {math.ceil(config.max_steps / steps) * steps}"
        )


def optimiser_steps(config: "TrainConfig") -> int:
    """Return the optimiser steps that one pass over a generated batch takes."""
    steps: int = config.steps_per_generation // config.gradient_accumulation_steps
    return steps


def small_step_warning(config: "TrainConfig") -> str | None:
    """Return what to change where a step sees too few prompts for the presets' learning rates."""
    prompts = config.generation_batch_size / config.num_generations / optimiser_steps(config)
    if prompts >= MIN_PROMPTS_PER_STEP:
        return None
    key = "gradient_accumulation_steps" if config.prompts_per_step is None else "prompts_per_step"
    return (
        f"{prompts:g} prompts an optimiser step: the presets' learning rates are meant for 8 to "
        f"32. Raise {key}"
    )


def _word(value: Any) -> str:
    return "empty" if value is None else f"{value}"
