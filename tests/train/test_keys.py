"""`markscheme train --keys`: every key can be found, with what it means and what it is set to."""

import dataclasses
import re

import pytest
import typer
from typer.testing import CliRunner, Result

from markscheme_train.cli import train
from markscheme_train.config import TrainConfig
from markscheme_train.keys import SECTIONS, find_keys, section_of


def show(*words: str) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(train)
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80", "TERM": "dumb"})


def test_a_section_lists_its_keys_with_default_and_preset_at_80_columns() -> None:
    shown = show("--keys", "method", "--preset", "srpo-rubric")
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "Method, self-teacher and loss (method)" in words
    assert re.search(r"success_threshold default: 0.5; srpo-rubric: 0.7 Score from which", words)
    assert re.search(r"distillation_alpha default: 0.5 0: KL", words)
    assert "learning_rate" not in words
    assert max(map(len, shown.output.splitlines())) <= 80


def test_a_word_is_looked_for_in_names_and_help() -> None:
    words = " ".join(show("--keys", "Adapter").output.split())
    assert "lora_rank default: empty" in words
    assert "use_rslora default: false" in words
    assert "markscheme_url" not in words


def test_without_a_word_all_but_the_rarest_keys_are_listed() -> None:
    shown = show("--keys")
    assert shown.exit_code == 0
    for key in ("model", "eval_data", "num_generations", "learning_rate", "vllm_mode"):
        assert re.search(rf"^ *{key} ", shown.output, re.M), key
    assert "jit_mode_eval" not in shown.output
    assert "Sections: data, rewards" in shown.output


def test_the_help_of_a_key_that_works_differently_here_is_ours() -> None:
    words = " ".join(show("--keys", "evaluation").output.split())
    assert "eval_steps default: empty Steps between two evaluations" in words
    assert "logging_steps" not in words


def test_a_word_that_no_key_has_is_answered_with_similar_ones() -> None:
    shown = show("--keys", "lernin_rate")
    assert shown.exit_code == 1
    assert "no key has `lernin_rate` in its name or help; similar: learning_rate" in shown.output


def test_an_unknown_preset_is_named() -> None:
    assert "unknown preset `ppo`; there is grpo" in show("--keys", "--preset", "ppo").output


def test_without_file_or_keys_the_usage_says_what_is_missing() -> None:
    shown = show()
    assert shown.exit_code == 2
    assert "name a YAML file, or list the keys with --keys" in shown.output


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_the_help_names_every_section_with_an_example_that_is_in_it(section: object) -> None:
    name = section.name  # type: ignore[attr-defined]
    assert find_keys(name)
    line = next(line for line in (train.__doc__ or "").splitlines() if line.split()[:1] == [name])
    for key in re.findall(r"(\w+)=", line):
        assert section_of(key) == name


def test_every_pattern_of_a_section_names_a_key() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    for section in SECTIONS:
        for pattern in section.patterns:
            assert pattern in names or any(
                name.startswith(pattern.rstrip("*")) or name.endswith(pattern.lstrip("*"))
                for name in names
                if "*" in pattern
            ), pattern
