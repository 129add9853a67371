"""What a configuration is refused for: ranges, settings without effect or that do not fit.

Each check raises `ConfigError` with the key, its value and what it may be, or what to do.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from markscheme_train.errors import SETTING_ERRORS, ConfigError

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
        # Compared, and not converted: an integer may be larger than any float.
        return lower and value <= self.high and -math.inf < value < math.inf

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"at most {self.high:.10g}"
        if math.isinf(self.high):
            return f"{'above' if self.above else 'at least'} {self.low:.10g}"
        return (
            f"above {self.low:.10g} and at most {self.high:.10g}"
            if self.above
            else (f"from {self.low:.10g} to {self.high:.10g}")
        )


SHARE = Range(0, 1)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SEED = Range(0, 2**32 - 1)
MAX_RUN_ID = 190
"""Maximum length of a run's name: the service takes 200, and an evaluation adds to it."""
MAX_INTEGER = 2**53
RANGES = {
    "max_unscored": SHARE,
    "max_outage_s": NOT_NEGATIVE,
    "max_late_s": POSITIVE,
    "ask_teacher": NOT_NEGATIVE,
    "lora_rank": COUNT,
    "lora_alpha": COUNT,
    "max_prompt_length": COUNT,
    "max_resampling_rounds": NOT_NEGATIVE,
    "reward_lag": SHARE,
    "early_stopping_patience": COUNT,
    "num_generations": Range(2),
    # TRL and torch refuse some of these only in the first step, and others never.
    "max_completion_length": COUNT,
    "seed": SEED,
    "data_seed": SEED,
    "max_grad_norm": NOT_NEGATIVE,
    "adam_epsilon": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "logging_steps": POSITIVE,
    "save_steps": POSITIVE,
    "save_total_limit": COUNT,
    "ddp_timeout": COUNT,
    "vllm_gpu_memory_utilization": Range(0, 1, above=True),
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
    "vllm_importance_sampling_clip_min": NOT_NEGATIVE,
    "vllm_importance_sampling_clip_max": POSITIVE,
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
BEST_METRIC = "reward"
"""What the best checkpoint is chosen by: the mean reward of an evaluation."""
_EVALUATION_ONLY = (
    "eval_steps",
    "eval_on_start",
    "num_generations_eval",
    "per_device_eval_batch_size",
    "metric_for_best_model",
    "early_stopping_patience",
)
_PACKAGES = (
    ("use_vllm", "vllm", "'markscheme[vllm]'"),
    ("use_liger_kernel", "liger_kernel", "liger-kernel"),
)
"""Settings, the module that each needs, and what to install."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss_type": ("dapo", "dr_grpo", "bnpo", "grpo", "cispo", "luspo", "sapo", "vespo"),
    "scale_rewards": ("none", "group", "batch"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": (
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
    ),
}
"""Words that TRL takes, and refuses only when a batch was generated and scored."""
_MAPPINGS = (
    "model_init_kwargs",
    "chat_template_kwargs",
    "generation_kwargs",
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
)
_ADAPTER_ONLY = ("lora_alpha", "lora_target_modules", "lora_dropout", "use_rslora")


def check_ranges(config: "TrainConfig") -> None:
    """Refuse numbers out of range."""
    # A rubric with negative points may reach below 0, and how far is up to the rubric.
    score = Range(0, 1, above=True) if config.clamp == "zero" else Range(high=1)
    thresholds = {"success_threshold": score, "demonstration_threshold": score}
    for key, allowed in (RANGES | thresholds).items():
        value = getattr(config, key)
        if value is not None and value not in allowed:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ConfigError(f"`{key}` must be {allowed}, not {shown}")
    if config.num_generations is None:  # TRL leaves it to evaluations
        raise ConfigError("`num_generations` must not be empty")


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


def check_lag(config: "TrainConfig") -> None:
    """Refuse what needs a batch's rewards, or another policy's log-probabilities, at once."""
    if config.reward_lag:
        for key in ("max_resampling_rounds", "beta"):
            if getattr(config, key):
                raise ConfigError(f"`{key}` must be 0 with `reward_lag` 1")
    elif config.max_late_s is not None:
        raise ConfigError("`max_late_s` needs `reward_lag` 1: without it every batch is waited for")


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


def evaluation_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of TRL's that follow from `eval_data`, where they are not given."""
    if not given.get("eval_data"):
        return {}
    defaults: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_on_start": True,
        "metric_for_best_model": BEST_METRIC,
        "greater_is_better": True,
    }
    if "per_device_train_batch_size" in given:
        defaults["per_device_eval_batch_size"] = given["per_device_train_batch_size"]
    return defaults


def check_settings(config: "TrainConfig", given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the first setting that cannot work.

    Args:
        config: The configuration, with all defaults.
        given: What the user set.
    """
    problems = chain(
        _number_problems(given),
        _value_problems(config),
        _evaluation_problems(config, given),
        _adapter_problems(config, given),
        _reward_problems(config),
    )
    # The first one only: later checks rely on what earlier ones have let pass.
    for problem in problems:
        raise ConfigError(problem)


def check_installed(config: "TrainConfig") -> None:
    """Raise `ConfigError` if a package or a tracker that the run needs is not installed."""
    for key, module, package in _PACKAGES:
        if getattr(config, key) and find_spec(module) is None:
            raise ConfigError(f"{key}: {module} is not installed; run `pip install {package}`")
    try:
        # A tracker says that it is not installed only when it is made.
        for callback in get_reporting_integration_callbacks(config.report_to):
            callback()
    except ValueError as error:
        raise ConfigError(f"report_to: {error}") from error
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"report_to: {error} Or set report_to: none") from error


def _number_problems(given: Mapping[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        waiting = [value]
        while waiting:
            each = waiting.pop()
            if isinstance(each, Mapping):
                waiting.extend(each.values())
            elif isinstance(each, list):
                waiting.extend(each)
            elif isinstance(each, float) and not math.isfinite(each):
                yield f"{key}: {each} is no number that can be used"
            elif isinstance(each, int) and abs(each) > MAX_INTEGER:
                yield f"{key}: a number is too large"


def _value_problems(config: "TrainConfig") -> Iterator[str]:
    if not config.output_dir:
        yield "output_dir must not be empty: name a folder"
    # Found here, and not by the service once the first batch was generated.
    if config.run_id and not re.fullmatch(
        rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_RUN_ID}}}", config.run_id
    ):
        yield f"run_id must be 1 to {MAX_RUN_ID} characters, without control characters"
    for key, words in _CHOICES.items():
        if getattr(config, key) not in words:
            yield f"{key} must be one of {', '.join(words)}, not {getattr(config, key)}"
    for key in _MAPPINGS:
        if not isinstance(getattr(config, key), Mapping | None):
            yield f"{key} must be keys and values, such as {{key: value}}"
    try:
        # A scheduler refuses unknown arguments only when it is made, so make one for nothing.
        get_scheduler(
            config.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1)]),
            num_warmup_steps=1,
            num_training_steps=100,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    except SETTING_ERRORS as error:
        yield (
            f"lr_scheduler_type {config.lr_scheduler_type.value} cannot be used with these "
            f"lr_scheduler_kwargs: {error}"
        )


def _evaluation_problems(config: "TrainConfig", given: Mapping[str, Any]) -> Iterator[str]:
    if not config.eval_data:
        if config.eval_strategy != "no":
            yield (
                f"eval_strategy is {config.eval_strategy.value}, but there is nothing to evaluate "
                "on: name held-out prompts with eval_data, and eval_steps"
            )
        if config.load_best_model_at_end:
            yield "load_best_model_at_end needs an evaluation: name held-out prompts with eval_data"
        for key in _EVALUATION_ONLY:
            if given.get(key):
                yield f"{key} needs an evaluation: name held-out prompts with eval_data"
        return
    if config.eval_strategy != "steps":
        yield f"eval_strategy must be steps, not {config.eval_strategy.value}: set eval_steps"
    if "eval_steps" not in given:
        yield "eval_data needs eval_steps: after how many steps to evaluate, such as eval_steps: 20"
    steps = given["eval_steps"]
    if steps is None or steps < 1 or steps != int(steps):
        yield f"eval_steps must be a whole number of steps, at least 1, not {steps}"
    if config.metric_for_best_model not in (BEST_METRIC, f"eval_{BEST_METRIC}"):
        yield (
            "metric_for_best_model must be reward, not "
            f"{config.metric_for_best_model}: the best checkpoint has the best mean reward"
        )
    if not config.greater_is_better:
        yield "greater_is_better must be true: the best checkpoint has the best mean reward"
    if config.load_best_model_at_end and config.save_strategy == "no":
        yield "load_best_model_at_end needs checkpoints: set save_strategy: steps and save_steps"
    if config.save_total_limit == 1:
        yield (
            "save_total_limit must be at least 2 with eval_data: the newest checkpoint, to resume "
            "from, and the best one"
        )
    if config.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        yield (
            f"lr_scheduler_type {config.lr_scheduler_type.value} is not supported: an evaluation "
            "may have no reward. Use constant, linear or cosine"
        )


def _adapter_problems(config: "TrainConfig", given: Mapping[str, Any]) -> Iterator[str]:
    if config.lora_rank is None:
        for key in _ADAPTER_ONLY:
            if key in given:
                yield f"{key} needs an adapter: set lora_rank, such as lora_rank: 16"
        return
    if not 0 <= config.lora_dropout < 1:
        yield f"lora_dropout must be from 0 to below 1, not {config.lora_dropout}"
    if config.lora_dropout and config.disable_dropout:
        yield "lora_dropout has no effect with disable_dropout: set disable_dropout: false"
    if isinstance(config.lora_target_modules, str):
        try:
            re.compile(config.lora_target_modules)
        except re.error as error:
            yield f"lora_target_modules is no regular expression: {error}"
    if not config.lora_target_modules:
        yield "lora_target_modules must not be empty: name layers, or leave it out for all linear"


def _reward_problems(config: "TrainConfig") -> Iterator[str]:
    weights = config.reward_weights
    if weights is not None and not (
        isinstance(weights, list)
        and all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights)
    ):
        yield "reward_weights must be a list of numbers, the rubric's first"
    if not isinstance(config.rewards, list) or not all(isinstance(r, str) for r in config.rewards):
        yield "rewards must be a list, such as rewards: [my_rewards:brevity]"
