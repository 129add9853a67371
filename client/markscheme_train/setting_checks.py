"""Checks of settings that depend on each other or on what is installed. Each says what to do."""

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from markscheme_train.errors import SETTING_ERRORS, ConfigError

if TYPE_CHECKING:
    from markscheme_train.config import TrainConfig

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
    ("use_vllm", "vllm", "'trl[vllm]'"),
    ("use_liger_kernel", "liger_kernel", "liger-kernel"),
)
"""Settings, the module that each needs, and what to install."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss_type": ("dapo", "dr_grpo", "bnpo", "grpo", "cispo", "luspo", "sapo", "vespo"),
    "scale_rewards": ("none", "group", "batch"),
    "importance_sampling_level": ("token", "sequence"),
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
        _value_problems(config),
        _evaluation_problems(config, given),
        _adapter_problems(config, given),
        _reward_problems(config),
    )
    for problem in problems:
        raise ConfigError(problem)


def check_installed(config: "TrainConfig") -> None:
    """Raise `ConfigError` if a package or a tracker that the run needs is not installed."""
    for key, module, package in _PACKAGES:
        if getattr(config, key) and find_spec(module) is None:
            raise ConfigError(f"{key}: {module} is not installed; run `pip install {package}`")
    try:
        for callback in get_reporting_integration_callbacks(config.report_to):
            callback()
    except ValueError as error:
        raise ConfigError(f"report_to: {error}") from error
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"report_to: {error} Or set report_to: none") from error


def _value_problems(config: "TrainConfig") -> Iterator[str]:
    for key, words in _CHOICES.items():
        if getattr(config, key) not in words:
            yield f"{key} must be one of {', '.join(words)}, not {getattr(config, key)}"
    for key in _MAPPINGS:
        if not isinstance(getattr(config, key), Mapping | None):
            yield f"{key} must be keys and values, such as {{key: value}}"
    try:
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
        isinstance(weights, list) and all(isinstance(w, int | float) for w in weights)
    ):
        yield "reward_weights must be a list of numbers, the rubric's first"
    if not isinstance(config.rewards, list) or not all(isinstance(r, str) for r in config.rewards):
        yield "rewards must be a list, such as rewards: [my_rewards:brevity]"
