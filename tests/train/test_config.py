"""The configuration: preset under given values, and errors that help."""

import dataclasses
from pathlib import Path

import pytest
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOConfig

from markscheme_train.config import PRESETS, TrainConfig, build_config, load_config
from markscheme_train.errors import ConfigError

NEEDED = {"model": "m", "data": "d.jsonl"}
TRAINING_PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_every_key_of_ours_is_described_in_code_and_docs() -> None:
    theirs = {field.name for field in dataclasses.fields(GRPOConfig)}
    page = TRAINING_PAGE.read_text("utf-8")
    for field in dataclasses.fields(TrainConfig):
        if field.name not in theirs:
            assert field.metadata["help"].endswith("."), field.name
            assert f"| `{field.name}` |" in page, field.name


def test_the_preset_is_ropds_release() -> None:
    config = build_config(NEEDED)
    assert (config.scale_rewards, config.loss_type, config.beta) == ("none", "dapo", 0.0)
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, 0.28, 3.0)
    assert (config.learning_rate, config.lr_scheduler_type.value) == (1e-6, "constant")
    assert config.disable_dropout is True


def test_srpo_is_its_papers_and_the_rubrics_own_thresholds_are_stricter() -> None:
    paper = build_config({**NEEDED, "preset": "srpo"})
    assert (paper.method, paper.learning_rate, paper.warmup_steps) == ("srpo", 5e-6, 10)
    assert (paper.distillation_alpha, paper.distillation_top_k, paper.entropy_beta) == (
        0.5,
        100,
        1.0,
    )
    assert (paper.teacher_update_rate, paper.success_threshold, paper.rubric_feedback) == (
        0.05,
        0.5,
        False,
    )
    rubric = build_config({**NEEDED, "preset": "srpo-rubric"})
    assert (rubric.success_threshold, rubric.demonstration_threshold, rubric.demonstration_gap) == (
        0.7,
        0.8,
        0.2,
    )
    assert rubric.rubric_feedback


def test_ropds_paper_differs_from_its_release() -> None:
    config = build_config({**NEEDED, "preset": "ropd-paper"})
    assert (config.scale_rewards, config.lr_scheduler_type.value, config.warmup_steps) == (
        "group",
        "cosine",
        100,
    )
    assert (config.weight_decay, config.adam_beta1, config.adam_beta2) == (0.1, 0.9, 0.95)
    assert config.reuse == "always_new"


def test_a_given_value_beats_the_preset_and_an_override_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: m\ndata: d.jsonl\nepsilon: 0.1\nlearning_rate: 1e-5\n")
    config = load_config(file, ["learning_rate=3e-5", "max_steps=7"])
    assert (config.epsilon, config.learning_rate, config.max_steps) == (0.1, 3e-5, 7)
    assert config.epsilon_high == PRESETS["ropd"]["epsilon_high"]


def test_an_integer_is_taken_for_a_float_field() -> None:
    assert build_config({**NEEDED, "delta": 4}).delta == 4.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**NEEDED, "lerning_rate": 1e-5}, "did you mean `learning_rate`"),
        ({**NEEDED, "reward_funcs": "brevity"}, "'A second reward' in docs/training.md"),
        ({"data": "d.jsonl"}, "`model` is missing"),
        ({**NEEDED, "max_steps": "many"}, "`max_steps` does not take `many`"),
        ({**NEEDED, "learning_rate": True}, "`learning_rate` does not take `True`"),
        ({**NEEDED, "reuse": "sometimes"}, "`reuse` must be one of always_new, if_fresh, frozen"),
        (
            {**NEEDED, "preset": "ppo"},
            "`preset` must be one of grpo, ropd, ropd-paper, sdpo, srpo, srpo-rubric, not `ppo`",
        ),
        ({**NEEDED, "num_generations": 1}, "."),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(given)


def test_an_override_needs_a_key_and_a_value(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: m\ndata: d.jsonl\n")
    with pytest.raises(ConfigError, match="key=value"):
        load_config(file, ["max_steps"])


def test_a_missing_file_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")


def test_the_api_key_is_no_setting() -> None:
    with pytest.raises(ConfigError, match="unknown key `api_key`"):
        build_config({**NEEDED, "api_key": "mk_secret"})


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "examples").glob("train*.yaml")), ids=str
)
def test_the_example_configurations_load(file: Path) -> None:
    assert load_config(file).data.endswith("prompts.jsonl")


@pytest.mark.parametrize(
    ("name", "kind"), [("zero2", DistributedType.DEEPSPEED), ("fsdp2", DistributedType.FSDP)]
)
def test_the_example_launchers_load(name: str, kind: DistributedType) -> None:
    file = Path(__file__).parents[2] / "examples" / "accelerate" / f"{name}.yaml"
    assert load_config_from_file(str(file)).distributed_type == kind
