"""A self-teacher whose weights are in shards (FSDP 2 over gloo) against one that is whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme_train.checkpoints import last_checkpoint
from train import recorded_run, sharded_run
from train.forked import run_together
from train.tiny import tiny_mixture_of_experts, tiny_model


def run(
    directory: Path,
    settings: dict[str, Any],
    *,
    processes: int,
    name: str | None = None,
    sharded: bool | None = None,
) -> dict[str, Any]:
    """Train on the same recorded rollouts.

    One process holds all weights as one without FSDP does, unless `sharded`; several hold shards.
    """
    sharded = processes > 1 if sharded is None else sharded
    place = directory / (name or str(processes))
    place.mkdir()
    rows = {"per_device_train_batch_size": 8 // processes, "output_dir": str(place / "run")}
    (place / "settings.json").write_text(json.dumps(settings | rows))
    main = sharded_run.main if sharded else recorded_run.main
    run_together(
        main,
        place / "settings.json",
        place / "out.pt",
        processes=processes,
        errors=place / "errors",
        launched=sharded,
    )
    made: dict[str, Any] = torch.load(place / "out.pt", weights_only=False)
    return made


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["teacher"].keys() == expected["teacher"].keys()
    for part in ("student", "teacher"):
        for name, value in found[part].items():
            torch.testing.assert_close(value, expected[part][name], atol=1e-5, rtol=1e-4)
    for name in ("norms", "metrics"):
        # Quantiles are those of one process.
        ours = {key: value for key, value in found[name].items() if key in COMPARED}
        assert ours == pytest.approx({key: expected[name][key] for key in ours}, rel=1e-4, abs=1e-5)


COMPARED = (
    "gradient_norm/policy",
    "gradient_norm/distillation",
    "distillation/routed_share",
    "distillation/entropy_mean",
    "distillation/teacher_gain",
    "distillation/teacher_gain_success",
)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("change", "processes"),
    [
        pytest.param({}, 2, id="srpo"),
        pytest.param({"preset": "sdpo"}, 2, id="sdpo", marks=SLOW),
        pytest.param({"self_teacher": "frozen"}, 2, id="frozen", marks=SLOW),
        pytest.param(
            {"self_teacher": "trust_region", "rewards_of_other_groups": [0.0] * 4},
            2,
            id="a trust region, and a process with nothing to teach",
        ),
        pytest.param({"lora_rank": 2}, 2, id="an adapter"),
        pytest.param(
            {
                "num_iterations": 2,
                "max_steps": 4,
                "gradient_accumulation_steps": 2,
                "generation_batch_size": 16,
            },
            2,
            id="several",
        ),
        pytest.param({"plain_device": "none"}, 2, id="the student by TRL's head", marks=SLOW),
        pytest.param({}, 4, id="four processes", marks=SLOW),
    ],
)
def test_processes_with_shards_do_what_one_does(
    change: dict[str, Any], processes: int, given: dict[str, Any], tmp_path: Path
) -> None:
    one, several = (run(tmp_path, given | change, processes=count) for count in (1, processes))
    assert several["wrapper"].startswith("FSDP")
    assert_equal(several, one)


@pytest.mark.slow
def test_processes_with_shards_do_what_one_does_with_tied_weights(
    given: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    one, two = (run(tmp_path, given, processes=count) for count in (1, 2))
    assert_equal(two, {**one, "teacher": {name: one["teacher"][name] for name in two["teacher"]}})


@pytest.mark.slow
def test_a_mixture_of_experts_in_shards_is_trained_as_with_whole_weights(
    given: dict[str, Any], tmp_path: Path
) -> None:
    """By as many processes: the loss of the routers is of each one's own tokens."""
    tiny_mixture_of_experts().save_pretrained(tmp_path / "model")
    given |= {"router_aux_loss_coef": 0.5}
    whole, shards = (
        run(tmp_path, given, processes=2, name=str(sharded), sharded=sharded)
        for sharded in (False, True)
    )
    assert_equal(shards, whole)


@pytest.mark.slow
def test_shards_are_gathered_in_bf16_and_kept_in_fp32(
    given: dict[str, Any], tmp_path: Path
) -> None:
    one, two = (run(tmp_path, given | {"bf16": True}, processes=count) for count in (1, 2))
    for part in ("student", "teacher"):
        assert {value.dtype for value in two[part].values()} == {torch.float32}
    for name, value in one["norms"].items():
        assert two["norms"][name] == pytest.approx(value, rel=0.1)
    gain = "distillation/teacher_gain"
    assert two["metrics"][gain] == pytest.approx(one["metrics"][gain], rel=0.1)


@pytest.mark.slow
def test_processes_with_shards_generate_until_all_have_stopped(
    given: dict[str, Any], tmp_path: Path
) -> None:
    """Each pass of one of them gathers what the others hold; their rollouts differ in length."""
    sampled = {
        "greedy_until": [1, *range(2, 64, 5)],
        "generation_kwargs": {"do_sample": False},
        "max_completion_length": 16,
        "max_steps": 1,
    }
    one, two = (run(tmp_path, given | sampled, processes=count) for count in (1, 2))
    lengths = [len(ids) for ids in one["rollouts"]]
    assert max(lengths[:4]) != max(lengths[4:])
    assert two["rollouts"] == one["rollouts"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"lora_rank": 2}], ids=["all weights", "an adapter"])
def test_a_killed_run_with_shards_is_resumed_to_the_bit_or_by_other_processes(
    change: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    settings = given | change | {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    left_alone = run(tmp_path, settings, processes=2)
    with pytest.raises(AssertionError):  # an exit code of -9
        run(tmp_path, settings | {"dies_saving": 3}, processes=2, name="killed")
    assert (tmp_path / "killed" / "run" / ".saving" / "checkpoint-3").is_dir()
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
def test_the_command_resumes_shards_on_other_processes_as_if_nothing_had_happened(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Only rollouts that are sampled would differ: here they are recorded."""
    output, file = tmp_path / "run", tmp_path / "settings.json"
    given = settings | {
        "preset": "srpo",
        "prompts_per_step": 2,
        "per_device_train_batch_size": 2,
        "distillation_top_k": 5,
        "warmup_steps": 0,
        "max_steps": 4,
        "reward_lag": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": str(output),
    }
    del given["gradient_accumulation_steps"]
    file.write_text(json.dumps(given))

    def train(processes: int, *, resume: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        errors = tmp_path / f"errors-{processes}"
        run_together(
            sharded_run.command,
            file,
            resume,
            [1.0, 0.0, 0.25, 0.6],
            sharded_run.ShardedRecorded,
            processes=processes,
            errors=errors,
            launched=True,
        )
        weights: dict[str, Any] = load_file(output / "model.safetensors")
        records = map(json.loads, (output / "steps.jsonl").read_text().splitlines())
        for step in (3, 4):
            shutil.rmtree(output / f"checkpoint-{step}")
        return weights, [{key: record[key] for key in RECORDED} for record in records]

    left_alone, written = train(2, resume=False)
    assert [record["step"] for record in written] == [2, 3, 4]
    for others in (4, 1):
        resumed, again = train(others, resume=True)
        assert again == written
        for name, value in left_alone.items():
            torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=1e-4)


RECORDED = ("step", "reward", "rollouts", "unscored", "origins", "criteria")


@pytest.mark.slow
def test_a_single_process_may_have_all_shards(given: dict[str, Any], tmp_path: Path) -> None:
    one = run(tmp_path, given, processes=1)
    sharded = run(tmp_path, given, processes=1, name="sharded", sharded=True)
    assert sharded["wrapper"].startswith("FSDP")
    assert_equal(sharded, one)


def test_a_gradient_that_is_not_finite_in_one_shard_stops_every_process(
    given: dict[str, Any], tmp_path: Path
) -> None:
    file, out = tmp_path / "settings.json", tmp_path / "out"
    file.write_text(json.dumps(given | {"per_device_train_batch_size": 4}))
    run_together(sharded_run.diverge, file, out, processes=2, errors=tmp_path / "errors")
    assert sorted(path.name for path in tmp_path.glob("out-*")) == ["out-0", "out-1"]


@pytest.mark.slow
def test_a_run_with_shards_is_evaluated_saved_and_resumed_and_learns_nothing_from_no_reward(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(f'{{"prompt": "w{n}"}}\n' for n in range(20, 23)))
    given = settings | {
        "preset": "srpo",
        "distillation_top_k": 5,
        "warmup_steps": 0,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_unscored": 1.0,
        "eval_data": str(held_out),
        "eval_steps": 1,
    }

    def train(name: str, rewards: list[float | None], *, resume: bool = False) -> dict[str, Any]:
        file, output = tmp_path / f"{name}.json", tmp_path / name
        file.write_text(json.dumps(given | {"output_dir": str(output)}))
        errors = tmp_path / f"errors-{name}-{resume}"
        run_together(sharded_run.command, file, resume, rewards, processes=2, errors=errors)
        lines = (output / "steps.jsonl").read_text().splitlines()
        assert sum("evaluation" in line for line in lines) == 3
        weights: dict[str, Any] = load_file(output / "model.safetensors")
        assert all(
            torch.equal(value, weights[name])
            for name, value in load_file(output / "checkpoint-2" / "model.safetensors").items()
        )
        return weights

    begun = load_file(tmp_path / "model" / "model.safetensors")
    trained = train("scored", [1.0, 0.0, 0.25, 0.6])
    assert not all(torch.equal(value, trained[name]) for name, value in begun.items())
    again = train("scored", [1.0, 0.0, 0.25, 0.6], resume=True)
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    unscored = train("unscored", [None] * 4)
    assert all(torch.equal(value, unscored[name]) for name, value in begun.items())
