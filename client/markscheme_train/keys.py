"""What `markscheme train --keys` lists: the keys of a configuration, by section."""

import dataclasses
import difflib
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from trl import GRPOConfig

from markscheme_train.config import PRESETS, TrainConfig, local_defaults
from markscheme_train.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Section:
    """Keys that belong together. `patterns` are their names; `*` stands for any letters."""

    name: str
    title: str
    patterns: tuple[str, ...]


def _section(name: str, title: str, patterns: str) -> Section:
    return Section(name, title, tuple(patterns.split()))


_METHOD, _MORE = "method", "more"
SECTIONS = (
    _section("data", "Model and data", "model data *_column max_prompt_length"),
    _section(
        "rewards",
        "The service, and other rewards",
        "markscheme_url reuse verify thinking view clamp ask_teacher run_id max_outage_s "
        "max_unscored rewards reward_weights",
    ),
    # Markscheme's own keys that no other section names belong here too.
    _section(
        _METHOD,
        "Method, self-teacher and loss",
        "preset method scale_rewards epsilon epsilon_high delta loss_type beta entropy_coef",
    ),
    _section(
        "batch",
        "Batches and sampling",
        "num_generations prompts_per_step steps_per_batch per_device_train_batch_size "
        "gradient_accumulation_steps steps_per_generation generation_batch_size num_iterations "
        "max_resampling_rounds reward_lag max_late_s max_completion_length temperature top_p top_k "
        "min_p repetition_penalty chat_template_kwargs mask_truncated_completions",
    ),
    _section(
        "optimiser",
        "Optimiser and length of the run",
        "max_steps num_train_epochs seed learning_rate lr_scheduler* warmup_* weight_decay adam_* "
        "max_grad_norm optim optim_args bf16 fp16 activation_checkpointing disable_dropout "
        "model_init_kwargs",
    ),
    _section("adapter", "LoRA", "lora_* use_rslora"),
    _section(
        "evaluation",
        "Evaluation, best checkpoint, early stopping",
        "eval_data eval_steps eval_on_start eval_delay num_generations_eval "
        "per_device_eval_batch_size early_stopping_patience load_best_model_at_end",
    ),
    _section("saving", "Checkpoints", "output_dir save_* push_to_hub hub_*"),
    _section(
        "logging",
        "Logs and trackers",
        "report_to run_name project logging_* log_* num_completions_to_print",
    ),
    _section("vllm", "Rollouts by vLLM", "use_vllm vllm_*"),
    _section(_MORE, "All other keys of TRL and transformers", ""),
)


_HELP = {
    "eval_steps": "Steps between two evaluations; needed with eval_data.",
    "eval_on_start": "Evaluate before the first step too; default with eval_data: true.",
    "eval_delay": "Steps before which no evaluation takes place.",
    "per_device_eval_batch_size": "Rollouts that an evaluation samples at once; default with "
    "eval_data: per_device_train_batch_size.",
    "load_best_model_at_end": "Make the checkpoint with the best mean reward the final model.",
    "log_completions": "Show rollouts, rewards and missed criteria at each log, without prompts.",
}
"""Help for keys of TRL and transformers that work differently here."""


def section_of(key: str) -> str:
    """Return the name of the section that a key stands in."""
    for section in SECTIONS:
        if any(fnmatch(key, pattern) for pattern in section.patterns):
            return section.name
    theirs = {field.name for field in dataclasses.fields(GRPOConfig)}
    return _MORE if key in theirs else _METHOD


def find_keys(word: str | None) -> list[dataclasses.Field[Any]]:
    """Return the keys of a section, those that a word describes, or all but the rarest.

    Raises `ConfigError` if there is none.
    """
    every = [field for field in dataclasses.fields(TrainConfig) if field.init]
    every = [field for field in every if not field.name.startswith("_")]
    if word is None:
        return [field for field in every if section_of(field.name) != _MORE]
    if word in {section.name for section in SECTIONS}:
        return [field for field in every if section_of(field.name) == word]
    asked = word.lower()
    found = [f for f in every if asked in f.name or asked in _help(f).lower()]
    if not found:
        names = [field.name for field in every]
        near = difflib.get_close_matches(asked, names, n=3, cutoff=0.5)
        sections = ", ".join(section.name for section in SECTIONS)
        raise ConfigError(
            f"no key has `{word}` in its name or help"
            + (f"; similar: {', '.join(near)}" if near else "")
            + f". Sections: {sections}"
        )
    return found


def print_keys(console: Console, word: str | None, preset: str) -> None:
    """Print keys with help, default and, where the preset has another, its value.

    Raises `ConfigError` for a preset or a word that there is not.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset `{preset}`; there is {', '.join(PRESETS)}")
    found = find_keys(word)
    for section in SECTIONS:
        fields = [field for field in found if section_of(field.name) == section.name]
        if fields:
            console.print(_table(section, fields, preset))
    if word is None:
        console.print(f"Sections: {', '.join(section.name for section in SECTIONS)}", markup=False)


def _table(section: Section, fields: Sequence[dataclasses.Field[Any]], preset: str) -> Table:
    table = Table(title=f"{section.title} ({section.name})", title_justify="left", box=None)
    table.add_column("key", no_wrap=True)
    table.add_column("default and meaning", ratio=1)
    for field in fields:
        default = _default(field)
        values = f"default: {_shown(default)}"
        if field.name in PRESETS[preset] and PRESETS[preset][field.name] != default:
            values += f"; {preset}: {_shown(PRESETS[preset][field.name])}"
        table.add_row(Text(field.name), Text(f"{values}\n{_help(field)}"))
    return table


def _default(field: dataclasses.Field[Any]) -> Any:
    local = local_defaults()
    if field.name in local:
        return local[field.name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value in (None, "", [], {}) else str(value)


def _help(field: dataclasses.Field[Any]) -> str:
    if field.name in _HELP:
        return _HELP[field.name]
    # Made for argparse, in which a percent sign is doubled.
    return " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split())
