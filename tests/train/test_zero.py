"""DeepSpeed over gloo, on a CPU, against one process without it."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme_train.checkpoints import last_checkpoint
from train import recorded_run, zero_run
from train.forked import run_together
from train.test_shards import assert_equal
from train.tiny import tiny_mixture_of_experts

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install deepspeed"
)
SLOW = pytest.mark.slow


def write_deepspeed_config(
    directory: Path, stage: int, *, bf16: bool = False, sub_group_size: int = 1_000_000_000
) -> None:
    """Write DeepSpeed's configuration. Vectors alone are small enough to be kept whole.

    A process's parts of `sub_group_size` numbers and more are stepped together.
    """
    zero = {
        "stage": stage,
        "sub_group_size": sub_group_size,
        "stage3_param_persistence_threshold": 20,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    config = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
    }
    (directory / "deepspeed.json").write_text(json.dumps(config))


def run(
    directory: Path,
    settings: dict[str, Any],
    *,
    processes: int,
    stage: int | None = 3,
    name: str | None = None,
    sharded: bool | None = None,
) -> dict[str, Any]:
    """Train on the same recorded rollouts: several processes with DeepSpeed.

    Without a stage they are without it, each with whole weights; so is one, unless `sharded`.
    """
    sharded = (processes > 1 if sharded is None else sharded) and stage is not None
    place = directory / (name or str(processes))
    place.mkdir()
    rows = {"per_device_train_batch_size": 8 // processes, "output_dir": str(place / "run")}
    size = settings.get("sub_group_size", 1_000_000_000)
    rows = {key: value for key, value in (settings | rows).items() if key != "sub_group_size"}
    (place / "settings.json").write_text(json.dumps(rows))
    if stage is not None:
        bf16 = settings.get("bf16", False)
        write_deepspeed_config(place, stage, bf16=bf16, sub_group_size=size)
    run_together(
        zero_run.main if sharded else recorded_run.main,
        place / "settings.json",
        place / "out.pt",
        processes=processes,
        errors=place / "errors",
        launched=sharded,
    )
    made: dict[str, Any] = torch.load(place / "out.pt", weights_only=False)
    return made


@pytest.mark.parametrize(
    ("change", "processes"),
    [
        pytest.param({}, 2, id="srpo"),
        pytest.param(
            {"self_teacher": "trust_region", "rewards_of_other_groups": [0.0] * 4},
            2,
            id="a trust region, and a process with nothing to teach",
            marks=SLOW,
        ),
        pytest.param({"lora_rank": 2}, 2, id="an adapter", marks=SLOW),
        pytest.param(
            {
                "num_iterations": 2,
                "max_steps": 4,
                "gradient_accumulation_steps": 2,
                "generation_batch_size": 16,
            },
            2,
            id="several steps on a batch",
            marks=SLOW,
        ),
        pytest.param({"plain_device": "none"}, 2, id="by TRL's head", marks=SLOW),
        pytest.param(
            {
                "plain_device": "none",
                "self_teacher": "trust_region",
                "rewards_of_other_groups": [0.0] * 4,
            },
            2,
            id="by TRL's head, a trust region, and a process with nothing to teach",
            marks=SLOW,
        ),
        pytest.param(
            {"plain_device": "none", "lora_rank": 2},
            2,
            id="an adapter by TRL's head",
            marks=SLOW,
        ),
        pytest.param(
            {"plain_device": "none", "preset": "grpo"}, 2, id="grpo by TRL's head", marks=SLOW
        ),
        pytest.param({}, 4, id="four processes", marks=SLOW),
    ],
)
def test_processes_under_zero_3_do_what_one_does(
    change: dict[str, Any], processes: int, given: dict[str, Any], tmp_path: Path
) -> None:
    one, several = (run(tmp_path, given | change, processes=count) for count in (1, processes))
    assert several["wrapper"] == "DeepSpeedEngine"
    assert_equal(several, one)


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [0.0, 0.5], ids=["without", "with"])
def test_a_mixture_of_experts_under_zero_3_is_trained_as_with_whole_weights(
    coefficient: float, given: dict[str, Any], tmp_path: Path
) -> None:
    """Without its routers' loss as by one process; that loss is of each process's own tokens."""
    tiny_mixture_of_experts().save_pretrained(tmp_path / "model")
    given |= {"router_aux_loss_coef": coefficient}
    whole = run(tmp_path, given, processes=2 if coefficient else 1, stage=None, name="whole")
    assert_equal(run(tmp_path, given, processes=2), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epsilon", "least", "most"),
    [pytest.param(1e-8, 1e-6, 1e-4, id="Adam's"), pytest.param(1e-4, 0.0, 1e-6, id="a large one")],
)
def test_rounding_that_adam_magnifies_is_what_four_processes_differ_by(
    epsilon: float, least: float, most: float, given: dict[str, Any], tmp_path: Path
) -> None:
    """Those of `sdpo`, whose gradients here are small; with shards as with whole weights."""
    given = given | {"preset": "sdpo", "adam_epsilon": epsilon}
    one = run(tmp_path, given, processes=1)
    for name, stage in (("shards", 3), ("whole", None)):
        four = run(tmp_path, given, processes=4, stage=stage, name=name)
        differences = [
            float((value - one["student"][key]).abs().max())
            for key, value in four["student"].items()
        ]
        assert least <= max(differences) < most


@pytest.mark.slow
def test_shards_of_zero_3_are_computed_with_in_bf16_and_averaged_in_fp32(
    given: dict[str, Any], tmp_path: Path
) -> None:
    one, two = (run(tmp_path, given | {"bf16": True}, processes=count) for count in (1, 2))
    assert {value.dtype for value in two["student"].values()} == {torch.bfloat16}
    assert {value.dtype for value in two["teacher"].values()} == {torch.float32}
    assert any(not torch.equal(value.bfloat16(), value) for value in two["teacher"].values())
    for name, value in one["norms"].items():
        assert two["norms"][name] == pytest.approx(value, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_without_any_reward_moves_nothing_under_deepspeed(
    stage: int, given: dict[str, Any], tmp_path: Path
) -> None:
    """One process skips the step: momentum and weight decay would move the weights."""
    given = given | {
        "unscored_step": 2,
        "max_unscored": 1.0,
        "weight_decay": 0.1,
        "lr_scheduler_type": "linear",
    }
    one, two = (run(tmp_path, given, processes=count, stage=stage) for count in (1, 2))
    for part in ("student", "teacher"):
        for name, value in two[part].items():
            torch.testing.assert_close(value, one[part][name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_stops_every_process_before_the_step(
    stage: int, given: dict[str, Any], tmp_path: Path
) -> None:
    file, out = tmp_path / "settings.json", tmp_path / "out"
    file.write_text(json.dumps(given | {"per_device_train_batch_size": 4}))
    write_deepspeed_config(tmp_path, stage)
    run_together(zero_run.diverge, file, out, processes=2, errors=tmp_path / "errors")
    assert sorted(path.name for path in tmp_path.glob("out-*")) == ["out-0", "out-1"]
    begun = load_file(tmp_path / "model" / "model.safetensors")
    stopped = torch.load(f"{out}-0")
    assert all(torch.equal(stopped[name], value) for name, value in begun.items())


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"lora_rank": 2}], ids=["all weights", "an adapter"])
def test_a_killed_run_under_zero_3_is_resumed_to_the_bit_or_by_other_processes(
    change: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    settings = given | change | {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    left_alone = run(tmp_path, settings, processes=2)
    with pytest.raises(AssertionError):  # an exit code of -9
        run(tmp_path, settings | {"dies_saving": 3}, processes=2, name="killed")
    checkpoint = last_checkpoint(tmp_path / "killed" / "run")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    settings |= {"resume_from_checkpoint": str(checkpoint)}
    resumed = run(tmp_path, settings, processes=2, name="resumed")
    for part in ("student", "teacher"):
        for name, value in left_alone[part].items():
            assert torch.equal(resumed[part][name], value), name
    for others in (1, 4):
        by_others = run(tmp_path, settings, processes=others, name=f"by {others}", sharded=True)
        assert_equal(by_others, left_alone)


@pytest.mark.slow
def test_what_one_process_under_zero_3_began_two_end(given: dict[str, Any], tmp_path: Path) -> None:
    """With weight decay, which some weights are spared, and groups of weights cut otherwise."""
    settings = given | {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "weight_decay": 0.1,
        "sub_group_size": 500,
    }
    left_alone = run(tmp_path, settings, processes=1, sharded=True)
    checkpoint = tmp_path / "1" / "run" / "checkpoint-2"
    by_two = run(tmp_path, settings | {"resume_from_checkpoint": str(checkpoint)}, processes=2)
    assert_equal(by_two, left_alone)


@pytest.mark.slow
def test_weights_computed_with_in_bf16_are_the_same_on_other_processes(
    given: dict[str, Any], tmp_path: Path
) -> None:
    """No step is left, so what was loaded is what is there."""
    settings = given | {"bf16": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    saved = run(tmp_path, settings, processes=2)
    settings |= {"resume_from_checkpoint": str(tmp_path / "2" / "run" / "checkpoint-2")}
    loaded = run(tmp_path, settings, processes=1, sharded=True)
    for part in ("student", "teacher"):
        for name, value in saved[part].items():
            assert torch.equal(loaded[part][name], value), name


@pytest.mark.slow
def test_a_run_under_zero_3_samples_is_evaluated_saved_and_resumed(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(f'{{"prompt": "w{n}"}}\n' for n in range(20, 23)))
    output = tmp_path / "run"
    given = settings | {
        "preset": "srpo",
        "distillation_top_k": 5,
        "warmup_steps": 0,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_data": str(held_out),
        "eval_steps": 1,
        "output_dir": str(output),
    }
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(given))
    write_deepspeed_config(tmp_path, 3)

    def train(*, resume: bool) -> dict[str, Any]:
        errors = tmp_path / f"errors-{resume}"
        run_together(zero_run.command, file, resume, processes=2, errors=errors)
        weights: dict[str, Any] = load_file(output / "model.safetensors")
        return weights

    begun = load_file(tmp_path / "model" / "model.safetensors")
    trained = train(resume=False)
    lines = (output / "steps.jsonl").read_text().splitlines()
    assert sum("evaluation" in line for line in lines) == 3
    assert trained.keys() == begun.keys()
    assert not all(torch.equal(value, trained[name]) for name, value in begun.items())
    again = train(resume=True)
    assert all(torch.equal(value, again[name]) for name, value in trained.items())


@pytest.mark.slow
def test_the_command_goes_on_with_one_process_and_ends_with_the_best_model_of_two(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Every evaluation finds the same rewards, so the first is the best."""
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(f'{{"prompt": "w{n}"}}\n' for n in range(20, 23)))
    output, file = tmp_path / "run", tmp_path / "settings.json"
    given = settings | {
        "preset": "srpo",
        "prompts_per_step": 2,
        "per_device_train_batch_size": 4,
        "distillation_top_k": 5,
        "warmup_steps": 0,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_data": str(held_out),
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "output_dir": str(output),
    }
    del given["gradient_accumulation_steps"]
    file.write_text(json.dumps(given))
    write_deepspeed_config(tmp_path, 3)
    for processes in (2, 1):
        resume = processes == 1
        errors = tmp_path / f"errors-{processes}"
        run_together(
            zero_run.command, file, resume, processes=processes, errors=errors, launched=True
        )
        best, last = (load_file(output / f"checkpoint-{n}" / "model.safetensors") for n in (1, 2))
        ended: dict[str, Any] = load_file(output / "model.safetensors")
        assert all(torch.equal(value, best[name]) for name, value in ended.items())
        assert not all(torch.equal(value, last[name]) for name, value in ended.items())
        shutil.rmtree(output / "checkpoint-2")
