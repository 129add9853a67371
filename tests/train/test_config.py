"""The configuration: preset under given values, and errors that help."""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOConfig
from trl.scripts import vllm_serve

from markscheme_train.config import PRESETS, TrainConfig, build_config, load_config
from markscheme_train.config_checks import small_step_warning
from markscheme_train.errors import ConfigError

NEEDED = {"model": "m", "data": "d.jsonl"}
ROOT = Path(__file__).parents[2]
TRAINING_PAGE, EXAMPLES = ROOT / "docs" / "training.md", ROOT / "examples"


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
    # One clip for both sides, the mean of each response, no correction of the sampler.
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, 0.2, None)
    assert (config.loss_type, config.vllm_importance_sampling_correction) == ("grpo", False)


@pytest.mark.parametrize(
    ("preset", "prompts", "steps"),
    [
        ("grpo", 32, 4),
        ("ropd", 32, 4),
        ("ropd-paper", 32, 1),
        ("sdpo", 32, 1),
        ("srpo", 32, 1),
        ("srpo-rubric", 32, 1),
    ],
)
def test_a_preset_sets_the_prompts_of_a_batch_and_its_optimiser_steps(
    preset: str, prompts: int, steps: int
) -> None:
    config = build_config({**NEEDED, "preset": preset, "per_device_train_batch_size": 16})
    assert config.generation_batch_size == prompts * 8
    assert config.steps_per_generation == prompts * 8 // 16
    assert config.steps_per_generation // config.gradient_accumulation_steps == steps
    assert small_step_warning(config) is None


def test_trls_keys_of_the_batch_beat_the_presets() -> None:
    config = build_config({**NEEDED, "preset": "grpo", "gradient_accumulation_steps": 2})
    assert (config.prompts_per_step, config.steps_per_generation) == (None, 2)
    warning = small_step_warning(config)
    assert warning is not None
    assert warning.startswith("2 prompts an optimiser step")
    assert warning.endswith("Raise gradient_accumulation_steps")
    config = build_config({**NEEDED, "preset": "grpo", "prompts_per_step": 7})
    assert config.generation_batch_size == 7 * 4 * 8
    assert str(small_step_warning(config)).endswith("Raise prompts_per_step")
    with pytest.raises(ConfigError, match="`steps_per_generation` and `prompts_per_step` say the"):
        build_config({**NEEDED, "steps_per_generation": 2, "prompts_per_step": 8})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("teacher_update_rate", 5, "from 0 to 1"),
        ("teacher_update_rate", -0.1, "from 0 to 1"),
        ("success_threshold", -1, "above 0 and at most 1"),
        ("success_threshold", 0, "above 0 and at most 1"),
        ("success_threshold", 1.01, "above 0 and at most 1"),
        ("demonstration_threshold", 2, "above 0 and at most 1"),
        ("demonstration_gap", -0.1, "at least 0"),
        ("trust_region_coefficient", 1.5, "from 0 to 1"),
        ("min_demonstration_tokens", -1, "at least 0"),
        ("distillation_alpha", 2, "from 0 to 1"),
        ("entropy_beta", -1, "at least 0"),
        ("entropy_beta", float("nan"), "at least 0"),
        ("importance_cap", -1, "above 0"),
        ("importance_cap", 0, "above 0"),
        ("importance_cap", float("inf"), "above 0"),
        ("distillation_top_k", 0, "at least 1"),
        ("max_reprompt_length", 3, "at least 32"),
        ("max_unscored", 1.5, "from 0 to 1"),
        ("max_outage_s", -1, "at least 0"),
        ("ask_teacher", -1, "at least 0"),
        ("lora_rank", 0, "at least 1"),
        ("prompts_per_step", 0, "at least 1"),
        ("steps_per_batch", 0, "at least 1"),
        ("temperature", 0, "above 0"),
        ("num_generations", 0, "at least 2"),
        ("max_completion_length", 0, "at least 1"),
        ("seed", -1, "from 0 to 4294967295"),
        ("max_grad_norm", float("nan"), "at least 0"),
        ("warmup_steps", float("nan"), "at least 0"),
        ("num_train_epochs", 0, "above 0"),
        ("logging_steps", -1, "above 0"),
        ("save_steps", 0, "above 0"),
        ("ddp_timeout", 0, "at least 1"),
        ("vllm_gpu_memory_utilization", 2, "above 0 and at most 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(key: str, value: float, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"^`{key}` must be {allowed}, not {value:g}$"):
        build_config({**NEEDED, key: value})


def test_with_signed_rewards_a_success_may_lie_below_0() -> None:
    given = {**NEEDED, "clamp": "signed", "success_threshold": -0.5}
    assert build_config(given).success_threshold == -0.5
    with pytest.raises(ConfigError, match="at most 1, not 1.5"):
        build_config({**given, "demonstration_threshold": 1.5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss_type", "grpo"),
        ("beta", 0.1),
        ("entropy_coef", 0.01),
        ("use_adaptive_entropy", True),
        ("top_entropy_quantile", 0.5),
        ("off_policy_mask_threshold", 1.0),
        ("importance_sampling_level", "sequence"),
    ],
)
def test_what_the_joint_loss_has_no_place_for_is_refused_with_a_self_teacher(
    key: str, value: object
) -> None:
    for preset in ("sdpo", "srpo"):
        with pytest.raises(ConfigError, match=f"^`{key}` must be .* with method {preset}, not "):
            build_config({**NEEDED, "preset": preset, key: value})
    assert getattr(build_config({**NEEDED, "preset": "grpo", key: value}), key) == value


@pytest.mark.parametrize("action", ["freeze_teacher", "grpo"])
def test_a_run_without_a_self_teacher_can_warn_of_a_collapse_or_stop(action: str) -> None:
    with pytest.raises(ConfigError, match="`on_collapse` must be warn or stop with method grpo"):
        build_config({**NEEDED, "preset": "ropd", "on_collapse": action})
    assert build_config({**NEEDED, "preset": "srpo", "on_collapse": action}).on_collapse == action


def test_a_batch_or_a_run_of_no_whole_optimiser_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must divide the 64 rollouts of an optimiser step"):
        build_config({**NEEDED, "preset": "grpo", "per_device_train_batch_size": 48})
    with pytest.raises(ConfigError, match=r"`steps_per_generation` \(3\) must be a multiple of"):
        build_config({**NEEDED, "steps_per_generation": 3, "gradient_accumulation_steps": 2})
    with pytest.raises(ConfigError, match=r"`max_steps` \(6\) must be a multiple of 4, .*: set 8$"):
        build_config({**NEEDED, "max_steps": 6})
    with pytest.raises(ConfigError, match=r"`max_steps` \(3\) must be a multiple of 2, .*: set 4$"):
        build_config({**NEEDED, "preset": "srpo", "num_iterations": 2, "max_steps": 3})


def test_a_given_value_beats_the_preset_and_an_override_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: m\ndata: d.jsonl\nepsilon: 0.1\nlearning_rate: 1e-5\n")
    config = load_config(file, ["learning_rate=3e-5", "max_steps=8"])
    assert (config.epsilon, config.learning_rate, config.max_steps) == (0.1, 3e-5, 8)
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
        (
            {**NEEDED, "multi_objective_aggregation": "normalize_then_sum"},
            "`multi_objective_aggregation` must be sum_then_normalize",
        ),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_generations": None}, "`num_generations` must not be empty"),
        ({"adam_epsilon": float("nan")}, "`adam_epsilon` must be at least 0, not nan"),
        ({"reward_weights": [1, float("nan")]}, "reward_weights: nan is no number"),
        ({"reward_weights": [True]}, "reward_weights must be a list of numbers"),
        ({"generation_kwargs": {"top_p": float("inf")}}, "generation_kwargs: inf is no number"),
        ({"max_prompt_length": 10**400}, "max_prompt_length: a number is too large"),
        ({"output_dir": ""}, "output_dir must not be empty"),
        ({"run_id": "a\nb"}, "run_id must be 1 to 190 characters, without control"),
        ({"run_id": "\ud800"}, "run_id must be 1 to 190 characters, without control"),
        ({"run_id": "r" * 191}, "run_id must be 1 to 190 characters, without control"),
        ({"vllm_mode": "local"}, "vllm_mode must be one of server, colocate"),
    ],
)
def test_what_only_a_later_step_would_trip_over_is_refused_at_the_start(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(NEEDED | given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: m\n".encode("utf-16"), "is not UTF-8"),
        (b"model: \xe9\n", "is not UTF-8"),
        (b"model: " + b"[" * 3000, "is nested too deeply"),
        (b"model: m\nrun_id: 2026-13-45\n", "is not YAML: month must be"),
        (b"model: m\ndata: d\nseed: 1\nseed: 2\n", "`seed` stands twice"),
        (b"model: m\ngeneration_kwargs: {top_p: 1, top_p: 2}\n", "`top_p` stands twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"train\.yaml .*{message}|{message}"):
        load_config(file)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_bytes(b"\xef\xbb\xbfmodel: m\ndata: d.jsonl\n")
    assert load_config(file).model == "m"


@pytest.mark.parametrize("value", ["[", "{", "!!python/none x", "[" * 3000])
def test_an_override_that_is_no_yaml_is_named(tmp_path: Path, value: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: m\ndata: d.jsonl\n")
    with pytest.raises(ConfigError, match="the value of `run_id` is"):
        load_config(file, [f"run_id={value}"])


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


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("train*.yaml")), ids=str)
def test_the_example_configurations_load(file: Path) -> None:
    assert load_config(file).data.endswith("prompts.jsonl")


def test_the_example_starts_vllm_as_trl_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_serve, "is_vllm_available", lambda min_version=None: True)
    command = vllm_serve.build_command(vllm_serve.ScriptArguments(model="Qwen/Qwen3-8B"))
    comments = [
        line.removeprefix("#").strip().removesuffix("\\")
        for line in (EXAMPLES / "train-vllm.yaml").read_text("utf-8").splitlines()
        if line.startswith("#")
    ]
    (said,) = re.findall(r"vllm serve (.*?--enable-scale-out)", " ".join(comments))
    words = shlex.split(said)
    for option in ("--weight-transfer-config", "--logprobs-mode", "--max-logprobs"):
        assert words[words.index(option) + 1] == command[command.index(option) + 1]
    imposed = {word for word in command[command.index("--enable-scale-out") :] if word[:2] == "--"}
    assert imposed <= set(words)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zero2", DistributedType.DEEPSPEED),
        ("zero3", DistributedType.DEEPSPEED),
        ("fsdp2", DistributedType.FSDP),
    ],
)
def test_the_example_launchers_load(name: str, kind: DistributedType) -> None:
    file = EXAMPLES / "accelerate" / f"{name}.yaml"
    assert load_config_from_file(str(file)).distributed_type == kind


def test_the_script_for_slurm_is_one_for_the_shell() -> None:
    script = EXAMPLES / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    text = script.read_text("utf-8")
    steps = [int(seconds) for seconds in re.findall(r"(?:INT@|SHUTDOWN_TIMEOUT=)(\d+)", text)]
    assert steps[0] > steps[1], "the step under way is finished before the job's time is up"
