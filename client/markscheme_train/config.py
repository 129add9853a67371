"""The configuration of a training run: one dataclass whose fields are the keys of the YAML file.

It extends TRL's `GRPOConfig`. The API key is not part of it, so that it is never written beside a
checkpoint: it is read from `MARKSCHEME_API_KEY`.
"""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from trl import GRPOConfig

from markscheme.data import Columns
from markscheme.vocabulary import Clamp, ReusePolicy, Thinking, VerifyMode, View
from markscheme_train.collapse import OnCollapse
from markscheme_train.config_checks import (
    check_batch,
    check_lag,
    check_method,
    check_ranges,
    check_settings,
    evaluation_defaults,
)
from markscheme_train.errors import SETTING_ERRORS, ConfigError
from markscheme_train.self_teacher import RateSchedule, SelfTeacherKind

_POLICY: Mapping[str, Any] = {
    # As ROPD's authors released it and SRPO's trained with: advantage r - mean(r) without division
    # by the deviation, asymmetric clip with a dual clip, one token mean over the optimiser step, no
    # KL term, correction of the mismatch between trainer and sampler capped at 2.
    "scale_rewards": "none",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "delta": 3.0,
    "loss_type": "dapo",
    "beta": 0.0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "temperature": 1.0,
    "num_generations": 8,
    "num_iterations": 1,
    "disable_dropout": True,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
}
_WARM_UP: Mapping[str, Any] = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10}
# A batch is 32 prompts throughout; the baselines take four optimiser steps on it, of 8 prompts.
_FOUR_STEPS: Mapping[str, Any] = {"prompts_per_step": 8, "steps_per_batch": 4}
_ONE_STEP: Mapping[str, Any] = {"prompts_per_step": 32, "steps_per_batch": 1}
_SRPO: Mapping[str, Any] = {
    **_POLICY,
    **_WARM_UP,
    **_ONE_STEP,
    "method": "srpo",
    "learning_rate": 5e-6,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The baseline of SRPO's authors (arXiv 2604.02288, table 3).
    "grpo": {**_POLICY, **_WARM_UP, **_FOUR_STEPS},
    # ROPD (arXiv 2605.07396) as released.
    "ropd": {**_POLICY, **_FOUR_STEPS},
    # ROPD as its paper states it: equation 6 divides by the deviation, equation 8 has one clip for
    # both sides (the paper gives no value: PPO's) and the mean of each response by itself; no
    # correction of the sampler; a new rubric a group.
    "ropd-paper": {
        **_POLICY,
        **_ONE_STEP,
        "scale_rewards": "group",
        "epsilon_high": 0.2,
        "delta": None,
        "loss_type": "grpo",
        "vllm_importance_sampling_correction": False,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "reuse": "always_new",
    },
    # SDPO (arXiv 2601.20802) as SRPO's authors ran it.
    "sdpo": {
        **_POLICY,
        **_WARM_UP,
        **_ONE_STEP,
        "method": "sdpo",
        "learning_rate": 1e-5,
        "entropy_beta": 0.0,
    },
    # SRPO (arXiv 2604.02288, table 3).
    "srpo": _SRPO,
    # SRPO on a rubric's continuous scores, with missed criteria as feedback. Our combination: no
    # paper has published it.
    "srpo-rubric": {
        **_SRPO,
        "success_threshold": 0.7,
        "demonstration_threshold": 0.8,
        "demonstration_gap": 0.2,
        "rubric_feedback": True,
    },
}
"""Values that a preset sets; any key in the YAML file or on the command line wins."""
OUR_BATCH = ("prompts_per_step", "steps_per_batch")
TRLS_BATCH = ("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size")
"""The keys that say how large batch and optimiser step are: ours in prompts, or TRL's."""


@dataclass
class TrainConfig(GRPOConfig):  # type: ignore[misc]
    """Settings of one run: TRL's, and those of Markscheme."""

    model: str = field(default="", metadata={"help": "Hugging Face model: a folder or a hub name."})
    data: str = field(
        default="",
        metadata={
            "help": "Prompts: a .jsonl, .json, .csv or .parquet file, a folder of them, or a split "
            "on the hub (org/name:split)."
        },
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the prompts; default: prompt."}
    )
    teacher_column: str | None = field(
        default=None,
        metadata={"help": "Column of the teacher responses; default: teacher_responses."},
    )
    rubric_column: str | None = field(
        default=None, metadata={"help": "Column of the rubric ids; default: rubric_id."}
    )
    preset: Literal["grpo", "ropd", "ropd-paper", "sdpo", "srpo", "srpo-rubric"] = field(
        default="ropd",
        metadata={"help": "Preset for keys that neither file nor command line set."},
    )
    markscheme_url: str = field(
        default="http://127.0.0.1:8321", metadata={"help": "Address of the rubric service."}
    )
    reuse: ReusePolicy = field(
        default="if_fresh",
        metadata={"help": "Which rubrics may be reused: always_new, if_fresh or frozen."},
    )
    verify: VerifyMode = field(
        default="rollout",
        metadata={"help": "One rollout a judge call (rollout), or a whole group (group)."},
    )
    thinking: Thinking = field(
        default="auto",
        metadata={
            "help": "What is judged of a rollout: auto drops a thought that it or its chat "
            "template opens, strip drops always, keep never."
        },
    )
    view: View | None = field(
        default=None,
        metadata={
            "help": "What is judged of a rollout with tool calls: its last reply (reply), all that "
            "the assistant said (assistant), or all of it (full); default: as the rubric says, "
            "else as the judge is set."
        },
    )
    clamp: Clamp = field(
        default="zero",
        metadata={
            "help": "What becomes of a reward below 0, where a rubric has negative points: zero "
            "raises it to 0, signed keeps it."
        },
    )
    ask_teacher: int = field(
        default=0,
        metadata={
            "help": "Responses to sample from the service's teacher for a prompt without any."
        },
    )
    run_id: str = field(
        default="", metadata={"help": "Name of the run at the service; default: made up."}
    )
    max_outage_s: float = field(
        default=600.0,
        metadata={
            "help": "Seconds to wait for a service that cannot be reached before saving and ending."
        },
    )
    max_unscored: float = field(
        default=0.5,
        metadata={
            "help": "Share of unscored rollouts (0 to 1) above which a step ends the run, saved."
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Rank of a LoRA adapter on all linear layers; empty: train all weights."},
    )
    prompts_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Prompts of an optimiser step over all processes; "
            "gradient_accumulation_steps follows from it. Empty: TRL's keys say it."
        },
    )
    steps_per_batch: int = field(
        default=1,
        metadata={
            "help": "Optimiser steps on one generated batch, which has prompts_per_step prompts "
            "for each."
        },
    )
    method: Literal["grpo", "sdpo", "srpo"] = field(
        default="grpo",
        metadata={
            "help": "What a rollout learns from: its reward (grpo), the self-teacher (sdpo), or "
            "one of them by its score (srpo)."
        },
    )
    success_threshold: float = field(
        default=0.5, metadata={"help": "Score from which a rollout is a success."}
    )
    truncated_fails: bool = field(
        default=False,
        metadata={
            "help": "A rollout that hit the token limit fails whatever its score, and is no "
            "demonstration."
        },
    )
    demonstration_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Score from which a rollout may be shown to the self-teacher; default: "
            "success_threshold."
        },
    )
    demonstration_gap: float = field(
        default=0.0, metadata={"help": "Minimum lead of a demonstration over the rollout's score."}
    )
    on_collapse: OnCollapse = field(
        default="warn",
        metadata={
            "help": "What follows when a rule sees a collapse: warn only, stop (saved), "
            "freeze_teacher (it follows no longer), or grpo (every rollout learns from its "
            "reward)."
        },
    )
    min_demonstration_tokens: int = field(
        default=0,
        metadata={"help": "Minimum tokens of a demonstration, thoughts left out; 0: any."},
    )
    teacher_demonstration: bool = field(
        default=False,
        metadata={"help": "Show the teacher's response where no rollout qualifies."},
    )
    rubric_feedback: bool = field(
        default=False,
        metadata={"help": "Show the self-teacher the criteria that a rollout missed."},
    )
    max_reprompt_length: int = field(
        default=10_240, metadata={"help": "Maximum tokens of the self-teacher's prompt."}
    )
    teacher_update_rate: float = field(
        default=0.05,
        metadata={
            "help": "Step of the self-teacher's moving average after each batch, 0 to 1; 0 "
            "freezes it."
        },
    )
    self_teacher: SelfTeacherKind = field(
        default="ema",
        metadata={
            "help": "What teaches: a moving average of the student (ema), the initial student "
            "(frozen), or a mixture of the initial and the current one in log space "
            "(trust_region)."
        },
    )
    trust_region_coefficient: float = field(
        default=0.05,
        metadata={
            "help": "The current student's share of a trust_region self-teacher, 0 to 1; the rest "
            "is the initial student's."
        },
    )
    teacher_rate_schedule: RateSchedule = field(
        default="constant",
        metadata={
            "help": "How teacher_update_rate or trust_region_coefficient falls to 0 over the run: "
            "linear or cosine; constant: not at all."
        },
    )
    distillation_alpha: float = field(
        default=0.5,
        metadata={
            "help": "0: KL(self-teacher‖student), 1: KL(student‖self-teacher), 0.5: Jensen-Shannon."
        },
    )
    distillation_top_k: int | None = field(
        default=100,
        metadata={
            "help": "Likeliest tokens of the student that are compared singly, the rest as one "
            "bucket; empty: the whole vocabulary."
        },
    )
    entropy_beta: float = field(
        default=1.0,
        metadata={
            "help": "How strongly tokens of an uncertain self-teacher are weighed down; 0: not at "
            "all."
        },
    )
    importance_cap: float = field(
        default=2.0,
        metadata={"help": "Maximum importance weight of a token whose rollout is stale."},
    )
    eval_data: str = field(
        default="",
        metadata={
            "help": "Held-out prompts, of the same kinds as data, for an evaluation every "
            "eval_steps; default: no evaluation."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Evaluations in a row without a new best reward after which the run ends; "
            "empty: never."
        },
    )
    rewards: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Other TRL reward functions to add, as package.module:function; reward_weights "
            "weighs them, the rubric first."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt in tokens, its chat template included; rows with a longer one "
            "are left out; empty: no limit."
        },
    )
    max_resampling_rounds: int = field(
        default=0,
        metadata={
            "help": "Dynamic sampling: how often a batch's groups of equal rewards are replaced by "
            "groups of other prompts."
        },
    )
    reward_lag: int = field(
        default=0,
        metadata={
            "help": "1: learn from each batch while the next one is generated and judged, so that "
            "the policy has changed once since it was sampled; 0: wait for its rewards."
        },
    )
    max_late_s: float | None = field(
        default=None,
        metadata={
            "help": "With `reward_lag` 1: seconds that a batch is waited for once the next one was "
            "generated; groups that the judge has not scored then are unscored. Default: no bound."
        },
    )
    lora_alpha: int | None = field(
        default=None,
        metadata={"help": "Scale of the adapter's update; default: twice lora_rank."},
    )
    lora_target_modules: str | list[str] = field(
        default="all-linear",
        metadata={
            "help": "Layers that get an adapter: all-linear, names such as [q_proj, v_proj], or a "
            "regular expression."
        },
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the adapter's input, 0 to 1."}
    )
    use_rslora: bool = field(
        default=False,
        metadata={"help": "Scale the adapter by 1/sqrt(lora_rank) instead of 1/lora_rank."},
    )

    def __post_init__(self) -> None:
        """Derive TRL's sizes from ours, and refuse what cannot be trained."""
        check_ranges(self)
        check_method(self)
        check_lag(self)
        if self.prompts_per_step is not None:
            self._split_batch(self.prompts_per_step * self.num_generations)
        super().__post_init__()
        check_batch(self)

    def _split_batch(self, rollouts: int) -> None:
        """Set TRL's keys so that an optimiser step has this many rollouts."""
        # Before TRL knows: launchers set it for each process.
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        at_once = self.per_device_train_batch_size * processes
        if rollouts % at_once:
            raise ConfigError(
                f"`per_device_train_batch_size` ({self.per_device_train_batch_size}) x {processes} "
                f"processes must divide the {rollouts} rollouts of an optimiser step "
                f"(prompts_per_step {self.prompts_per_step} x num_generations "
                f"{self.num_generations})"
            )
        self.gradient_accumulation_steps = rollouts // at_once
        self.steps_per_generation = self.gradient_accumulation_steps * self.steps_per_batch
        self.generation_batch_size = None

    @property
    def columns(self) -> Columns:
        """The columns of the data."""
        return Columns(
            prompt=self.prompt_column,
            teacher=self.teacher_column,
            rubric=self.rubric_column,
            option="{}_column",
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, with `key=value` overrides applied on top. Raises `ConfigError`."""
    try:
        given = _parse_yaml(path.read_text("utf-8-sig"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} must hold keys and values, such as `model: …`")
    return build_config({**given, **parse_overrides(overrides)})


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse `["learning_rate=1e-5"]` into a mapping; values are read as YAML."""
    pairs = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"`{override}` is not of the form key=value")
        pairs[key.strip()] = _parse_yaml(value, f"the value of `{key.strip()}`")
    return pairs


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: of two PyYAML takes the last one, without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"`{key.value}` stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # such as a date that there is not
        raise ConfigError(f"{name} is not YAML: {error}") from error


def build_config(given: Mapping[str, Any]) -> TrainConfig:
    """Return a checked configuration: defaults, below the preset's values, below `given`.

    Raises `ConfigError` for unknown keys, missing keys, values of the wrong type or out of range,
    and settings that the method cannot honour.
    """
    hints = typing.get_type_hints(TrainConfig)
    known = {f.name for f in dataclasses.fields(TrainConfig) if f.init}
    for key in given:
        if key == "reward_funcs":
            raise ConfigError(
                "`reward_funcs` is called rewards here, such as rewards: [my_rewards:brevity]. See "
                "'A second reward' in docs/training.md"
            )
        if key not in known:
            nearest = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.5)
            raise ConfigError(
                f"unknown key `{key}`" + (f"; did you mean `{nearest[0]}`?" if nearest else "")
            )
    for key in ("model", "data"):
        if not given.get(key):
            raise ConfigError(f"`{key}` is missing")
    values = {key: _typed(key, value, hints[key]) for key, value in given.items()}
    preset = values.get("preset", "ropd")
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset `{preset}`; there is {', '.join(PRESETS)}")
    defaults = dict(PRESETS[preset])
    theirs, ours = ([key for key in keys if key in values] for keys in (TRLS_BATCH, OUR_BATCH))
    if theirs and ours:
        raise ConfigError(f"`{theirs[0]}` and `{ours[0]}` say the same thing: set one of them")
    if theirs:
        defaults = {key: value for key, value in defaults.items() if key not in OUR_BATCH}
    # The deprecated name of the same setting.
    if "gradient_checkpointing" in values:
        values.setdefault("activation_checkpointing", values.pop("gradient_checkpointing"))
    # TRL asks for save_steps to be a multiple of eval_steps; here a new best is saved at once.
    load_best = values.pop("load_best_model_at_end", False)
    try:
        config = TrainConfig(
            **{**local_defaults(), **evaluation_defaults(values), **defaults, **values}
        )
    except SETTING_ERRORS as error:
        raise ConfigError(str(error)) from error
    config.load_best_model_at_end = load_best
    check_settings(config, values)
    return config


def local_defaults() -> dict[str, Any]:
    """Return defaults that differ from TRL's, some of them on this machine alone."""
    # TRL turns both on by default; without a GPU they cost time and save nothing that is short.
    gpu = torch.cuda.is_available()
    return {"report_to": "none", "bf16": gpu, "activation_checkpointing": gpu}


def _typed(key: str, value: Any, hint: Any) -> Any:
    """Convert `value` to the field's type: YAML reads `1e-5` as text and `2` as an integer."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"`{key}` must not be empty")
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
            raise ConfigError(
                f"`{key}` must be one of {', '.join(map(str, typing.get_args(option)))}, not "
                f"`{value}`"
            )
    # First, because `bool` is a subclass of `int`.
    if isinstance(value, bool):
        fits = bool in options
    elif isinstance(value, int) and float in options and int not in options:
        return float(value)
    elif isinstance(value, str) and str not in options and float in options:
        try:
            return float(value)
        except ValueError:
            fits = False
    else:
        # Options that are no plain type, such as lists, are left to the checks that follow.
        plain = tuple(o for o in options if isinstance(o, type) and o in (int, float, str, bool))
        fits = len(plain) < len([o for o in options if o is not type(None)]) or isinstance(
            value, plain
        )
    if not fits:
        raise ConfigError(f"`{key}` does not take `{value}` ({type(value).__name__})")
    return value
