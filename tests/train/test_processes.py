"""Two processes on a CPU (gloo, DDP) against one, on the same recorded rollouts."""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme.errors import ServiceUnavailable, error_class
from markscheme.integrations.processes import _picklable
from markscheme_train.losses import entropy, entropy_weight_sums
from markscheme_train.step_log import read_records
from train import (
    evaluated_run,
    grouped_run,
    heartbeats,
    lost_service,
    recorded_run,
    sharded_loss,
    step_means,
)
from train.forked import LIMIT_S, context, run_together
from train.sharded_loss import batch, gradient_of
from train.tiny import tiny_model


def test_a_forked_process_need_not_import_torch() -> None:
    process = context().Process(target=exec, args=("import sys; sys.exit('trl' in sys.modules)",))
    process.start()
    process.join()
    assert process.exitcode == 1


def launch(script: Path, *arguments: Path | str, processes: int, nodes: int = 1) -> None:
    """Run a script with torchrun, one launcher for each node; one process: with Python."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command = torchrun[:1] if processes == 1 else [*torchrun, "--standalone"]
    commands = [command]
    if nodes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        meeting = ["--nnodes", str(nodes), "--master_addr", "127.0.0.1", "--master_port", str(port)]
        commands = [[*torchrun, *meeting, "--node_rank", str(node)] for node in range(nodes)]
    started = [
        subprocess.Popen(
            [*command, str(script), *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "PYTHONPATH": os.pathsep.join(
                    [str(script.parent.parent), os.environ.get("PYTHONPATH", "")]
                ).rstrip(os.pathsep),
            },
        )
        for command in commands
    ]
    try:
        for launcher in started:
            _, errors = launcher.communicate(timeout=LIMIT_S)
            assert launcher.returncode == 0, errors[-3000:]
    finally:
        for launcher in started:
            launcher.kill()
            launcher.communicate()


def run(
    directory: Path, settings: dict[str, Any], *, processes: int, torchrun: bool
) -> dict[str, Any]:
    file, out = directory / f"settings-{processes}.json", directory / f"out-{processes}.pt"
    rows = 8 // processes
    file.write_text(
        json.dumps(
            settings
            | {
                "per_device_train_batch_size": rows,
                "output_dir": str(directory / f"run-{processes}"),
            }
        )
    )
    if torchrun:
        launch(Path(recorded_run.__file__), file, out, processes=processes)
    else:
        errors = directory / f"errors-{processes}"
        run_together(recorded_run.main, file, out, processes=processes, errors=errors)
    made: dict[str, Any] = torch.load(out, weights_only=False)
    return made


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("change", "torchrun"),
    [
        pytest.param({"num_generations": 4}, True, id="whole groups", marks=SLOW),
        pytest.param(
            {"num_generations": 4, "rewards_of_other_groups": [0.6, 0.7, 0.8, 0.9]},
            False,
            id="a process without routed rows",
        ),
        pytest.param({"num_generations": 8}, True, id="a group over both processes", marks=SLOW),
        pytest.param(
            {"num_generations": 4, "num_iterations": 2, "max_steps": 4},
            False,
            id="several iterations",
        ),
        pytest.param(
            {"num_generations": 4, "reward_lag": 1, "max_steps": 3}, False, id="one batch off"
        ),
    ],
)
def test_two_processes_do_what_one_does(
    change: dict[str, Any], torchrun: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The quick ones are forked, which saves them the imports."""
    config = {
        **settings,
        "preset": "srpo",
        "distillation_top_k": 5,
        "max_steps": 2,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        **change,
    }
    one, two = (run(tmp_path, config, processes=count, torchrun=torchrun) for count in (1, 2))
    assert (two["processes"], two["wrapper"]) == (2, "DistributedDataParallel")
    [asked] = one["asked"]
    groups = 8 // config["num_generations"]
    assert [len(ids) for ids in asked] == [groups, groups]
    # Each asks for its own group; for one that both have a part of, the first.
    shares = [[ids[:1] for ids in asked], [ids[1:] for ids in asked if ids[1:]]]
    assert two["asked"] == shares
    for count in (1, 2):
        assert (tmp_path / f"run-{count}" / "checkpoint-2" / "trainer_state.json").is_file()
        assert not (tmp_path / f"run-{count}" / ".saving").exists()
    for branch in ("policy", "distillation"):
        name = f"gradient_norm/{branch}"
        assert one["norms"][name] > 0
        assert two["norms"][name] == pytest.approx(one["norms"][name], rel=1e-4)
    assert 0 < one["metrics"]["distillation/routed_share"] < 1
    for name in ("routed_share", "informed_share", "entropy_mean"):
        assert two["metrics"][f"distillation/{name}"] == pytest.approx(
            one["metrics"][f"distillation/{name}"], abs=1e-5
        )
    for part in ("student", "teacher"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", ["ropd", "srpo"])
def test_a_step_of_two_processes_is_the_mean_over_the_tokens_of_both(
    preset: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """On a batch of two optimiser steps; the processes have different numbers of tokens."""
    file, out = tmp_path / "settings.json", tmp_path / "found.json"
    batch = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
    file.write_text(json.dumps({**settings, **batch, "preset": preset}))
    run_together(step_means.main, file, out, processes=2, errors=tmp_path / "errors")
    steps = json.loads(out.read_text())
    for step in steps:
        assert step["loss"] == pytest.approx(step["token_mean"], abs=1e-6)
        assert step["loss"] != 0
        assert step["tokens"][0] * 2 != step["tokens"][1]
    assert steps[0]["tokens"][1] != steps[1]["tokens"][1]


def test_two_processes_that_lose_the_service_leave_together(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Each process sees the whole checkpoint before it exits: the first exit ends the others."""
    file = tmp_path / "settings.json"
    file.write_text(
        json.dumps(
            {
                **settings,
                "preset": "srpo",
                "distillation_top_k": 5,
                "max_steps": 3,
                "per_device_train_batch_size": 4,
                "max_outage_s": 0.0,
            }
        )
    )
    run_together(lost_service.main, file, processes=2, errors=tmp_path / "errors")
    assert (tmp_path / "out" / "checkpoint-1" / "self_teacher.pt").is_file()
    assert not (tmp_path / "out" / ".saving").exists()


def test_two_processes_resume_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    """With the parts of a checkpoint that are whole tensors: a self-teacher, a batch under way."""
    file, out = tmp_path / "settings.json", tmp_path / "asked.json"
    given = settings | {
        "preset": "srpo",
        "distillation_top_k": 5,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "reward_lag": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "warmup_steps": 0,
        "run_id": "r",
        "equal": [],
    }
    output = Path(settings["output_dir"])
    made = []
    for resume in (False, True):
        file.write_text(json.dumps(given | {"resume": resume}))
        errors = tmp_path / f"errors-{resume}"
        run_together(evaluated_run.main, file, out, processes=2, errors=errors)
        made.append(load_file(output / "model.safetensors"))
        for step in (2, 3):
            shutil.rmtree(output / f"checkpoint-{step}")
        (output / "model.safetensors").unlink()
    whole, resumed = made
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_one_process_goes_on_where_two_were_stopped(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """With a batch under way, whose rows and groups the one has all; rollouts are recorded."""
    file, out = tmp_path / "settings.json", tmp_path / "asked.json"
    given = settings | {
        "preset": "srpo",
        "distillation_top_k": 5,
        "prompts_per_step": 2,
        "max_steps": 4,
        "reward_lag": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "warmup_steps": 0,
        "run_id": "r",
        "equal": [],
        "recorded": True,
    }
    del given["gradient_accumulation_steps"]
    output, weights, asked = Path(settings["output_dir"]), [], []
    for processes, rows, resume in ((2, 2, False), (1, 4, True)):
        file.write_text(json.dumps(given | {"resume": resume, "per_device_train_batch_size": rows}))
        errors = tmp_path / f"errors-{processes}"
        run_together(evaluated_run.main, file, out, processes=processes, errors=errors)
        weights.append(load_file(output / "model.safetensors"))
        asked.append(json.loads(out.read_text()))
        shutil.rmtree(output / "checkpoint-4")
        shutil.rmtree(output / "checkpoint-3")
    whole, resumed = weights
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=1e-4)
    assert asked[1] == asked[0][1:], "the batch under way is asked about again"


def test_nodes_that_do_not_share_the_run_folder_are_refused_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings | {"per_device_train_batch_size": 4}))
    run_together(lost_service.folder_each, file, processes=2, errors=tmp_path / "errors")
    for rank in (0, 1):
        told = Path(f"{file}-{rank}").read_text()
        assert re.match(r"output_dir: .* is another folder for the processes 1 than", told)
    assert not any(path.is_file() for path in Path(settings["output_dir"]).rglob("*"))


@pytest.mark.slow
def test_two_nodes_of_two_processes_do_what_one_process_does(
    given: dict[str, Any], tmp_path: Path
) -> None:
    one = run(tmp_path, given, processes=1, torchrun=False)
    file, out = tmp_path / "settings.json", tmp_path / "out.pt"
    shared = {"per_device_train_batch_size": 2, "output_dir": str(tmp_path / "run")}
    file.write_text(json.dumps(given | shared))
    launch(Path(recorded_run.__file__), file, out, processes=2, nodes=2)
    four = torch.load(out, weights_only=False)
    assert four["processes"] == 4
    for part in ("student", "teacher"):
        for name, value in one[part].items():
            torch.testing.assert_close(four[part][name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_nodes_with_a_run_folder_each_are_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings | {"per_device_train_batch_size": 2}))
    launch(Path(lost_service.__file__), file, processes=2, nodes=2)
    for rank in range(4):
        told = Path(f"{file}-{rank}").read_text()
        assert re.match(r"output_dir: .* is another folder for the processes 2, 3 than", told)
    assert not any(path.is_file() for path in Path(settings["output_dir"]).rglob("*"))


def test_each_process_posts_its_own_groups_one_by_one_and_learns_the_same(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    asked, weights = {}, {}
    for one_by_one in (False, True):
        file, out = tmp_path / f"{one_by_one}.in", tmp_path / f"{one_by_one}.safetensors"
        file.write_text(json.dumps(settings | {"preset": "grpo", "one_by_one": one_by_one}))
        errors = tmp_path / f"errors-{one_by_one}"
        run_together(grouped_run.main, file, out, processes=2, errors=errors)
        weights[one_by_one] = load_file(out)
        asked[one_by_one] = json.loads(out.with_suffix(".json").read_text())
    groups = [[f"s{step}-c0-p{place}" for place in (0, 1)] for step in (0, 1)]
    others = [[f"s{step}-c0-p{place}" for place in (2, 3)] for step in (0, 1)]
    assert asked[False] == [groups, others]
    alone = [
        sorted([group] for request in requests for group in request) for requests in asked[False]
    ]
    assert [sorted(requests) for requests in asked[True]] == alone
    begun = load_file(Path(settings["model"]) / "model.safetensors")
    assert not all(torch.equal(value, weights[True][name]) for name, value in begun.items())
    assert all(torch.equal(value, weights[True][name]) for name, value in weights[False].items())


def test_processes_outlive_a_service_that_is_away_for_longer_than_a_collective_may_take(
    tmp_path: Path,
) -> None:
    run_together(heartbeats.main, tmp_path, processes=2, errors=tmp_path / "errors")
    told = [file.read_text() for file in tmp_path.iterdir() if file.name != "errors"]
    assert told == ["gone", "gone"]


def test_two_processes_evaluate_once_and_train_as_without(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Their last batch of prompts leaves the second process nothing to do."""
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(f'{{"prompt": "w{n}"}}\n' for n in range(20, 23)))
    evaluation = {
        "eval_data": str(held_out),
        "eval_steps": 1,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2,
    }
    plain = settings | {"per_device_train_batch_size": 4, "run_id": "r", "equal": []}
    plain |= {"save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
    asked, weights = {}, {}
    for name, given in (("with", plain | evaluation), ("without", plain)):
        file, out = tmp_path / f"{name}.json", tmp_path / f"{name}-asked.json"
        file.write_text(json.dumps(given | {"output_dir": str(tmp_path / name)}))
        errors = tmp_path / f"errors-{name}"
        run_together(evaluated_run.main, file, out, processes=2, errors=errors)
        asked[name] = json.loads(out.read_text())
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    evaluations = [sorted(groups) for run, groups in asked["with"] if run == "r-eval"]
    assert evaluations == [[["w20", 2], ["w21", 2], ["w22", 2]]] * 3
    assert all(len(groups) == 2 for _, groups in asked["without"])
    trained = [groups for run, groups in asked["with"] if run == "r"]
    assert trained == [groups for _, groups in asked["without"]]
    assert all(
        torch.equal(value, weights["without"][name]) for name, value in weights["with"].items()
    )
    lines = (tmp_path / "with" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line).get("evaluation", False) for line in lines] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert (tmp_path / "with" / "checkpoint-1" / "trainer_state.json").is_file(), "the best one"


def test_two_processes_replace_groups_together(settings: dict[str, Any], tmp_path: Path) -> None:
    """A group of three over two processes: only an even number of groups can be divided."""
    file, out, data = (tmp_path / name for name in ("s.json", "asked.json", "prompts.jsonl"))
    prompts = [f"w{n} w{n + 1}" for n in range(4, 16)]
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    given = settings | {
        "data": str(data),
        "preset": "srpo",
        "distillation_top_k": 5,
        "num_generations": 3,
        "per_device_train_batch_size": 3,
        "max_resampling_rounds": 2,
        "max_steps": 4,
        "equal": prompts[::2],
    }
    file.write_text(json.dumps(given))
    run_together(evaluated_run.main, file, out, processes=2, errors=tmp_path / "errors")
    asked = [groups for _, groups in json.loads(out.read_text())]
    assert {len(groups) for groups in asked} == {2}
    assert {rollouts for groups in asked for _, rollouts in groups} == {3}
    records = read_records(tmp_path / "out" / "steps.jsonl")
    redrawn = [record.metrics["dynamic_sampling/redrawn_groups"] for record in records]
    assert sum(redrawn) == 2 * (len(asked) - 4) > 0
    assert [record.rollouts for record in records] == [6 + 3 * groups for groups in redrawn]


def test_the_loss_of_a_model_in_parts(tmp_path: Path) -> None:
    """FSDP2: two processes with half of the weights and rows each give the whole gradient."""
    out = tmp_path / "out.pt"
    run_together(sharded_loss.main, out, processes=2, errors=tmp_path / "errors")
    found = torch.load(out, weights_only=False)
    model, rows = tiny_model(), batch()
    sums = entropy_weight_sums(
        entropy(rows["teacher"]), rows["mask"] * rows["routed"].unsqueeze(1), beta=1.0
    )
    gradient_of(model, rows, rows["mask"].sum(), sums[0] / sums[1], 1)
    assert found["world"] == 2
    assert found["parts"] < 0.6 * sum(p.numel() for p in model.parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_an_error_of_the_service_travels_between_processes() -> None:
    error = error_class(503)("try later", status=503, code="overloaded", request_id="req_1")
    there = pickle.loads(pickle.dumps(error))
    assert isinstance(there, ServiceUnavailable)
    assert (str(there), there.status, there.code) == (str(error), 503, "overloaded")


def test_an_error_that_cannot_travel_is_told_by_one_that_can() -> None:
    class Local(Exception):
        pass

    told = _picklable(Local("why"))
    assert str(pickle.loads(pickle.dumps(told))) == "Local: why"
    kept = ValueError("as it is")
    assert _picklable(kept) is kept
