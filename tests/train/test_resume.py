"""Test that a run killed or stopped at any point resumes to identical bits and pays nothing twice.

The model has dropout, so every number depends on the random number generators. The judge decides at
random, so asking a question twice would show.
"""

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from fakes.fast_judge import FastJudge
from fakes.processes import ServiceProcess
from markscheme import Client
from markscheme.errors import ConnectionFailed
from markscheme_train.config import build_config
from markscheme_train.errors import Interrupted
from markscheme_train.step_log import StepRecord
from markscheme_train.training import train
from train.killed_run import POINTS, run
from train.tiny import tiny_model, tiny_tokenizer

APART = (
    "rollout_s",
    "scoring_s",
    "teacher_s",
    "update_s",
    "judge_calls",
    "judge_tokens",
    "origins",
)
"""What a record says of its making rather than of what was learnt."""


@pytest.fixture(scope="module")
def judge() -> Iterator[FastJudge]:
    made = FastJudge()
    coin = random.Random(7)
    made.met = lambda criterion, answer: coin.random() < 0.5
    yield made
    made.close()


def service_settings(judge: FastJudge) -> dict[str, Any]:
    return {
        "judge": "openai",
        "judge_base_url": judge.url,
        "judge_model": "coin",
        "judge_api_key": "k",
    }


@pytest.fixture(scope="module")
def service(judge: FastJudge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    made = ServiceProcess(tmp_path_factory.mktemp("service"), service_settings(judge)).wait_ready()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three batches of two steps each, over the end of an epoch."""
    folder = tmp_path_factory.mktemp("student")
    tiny_model(attention_dropout=0.3).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(4))
    )
    return {
        "model": str(folder / "model"),
        "data": str(folder / "data.jsonl"),
        "preset": "srpo-rubric",
        "success_threshold": 0.5,
        "demonstration_threshold": 0.5,
        "demonstration_gap": 0.0,
        "distillation_top_k": 5,
        "disable_dropout": False,
        "num_iterations": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 6,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "save_strategy": "steps",
        "save_steps": 1,
        "use_cpu": True,
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_total_limit": 2,
    }


def state(run: Path, *, first_step: int = 1) -> dict[str, Any]:
    """Read a finished run: weights, optimiser, schedule, self-teacher, generators and log."""
    last = run / "checkpoint-6"
    found: dict[str, Any] = dict(load_file(last / "model.safetensors"))
    for name, value in load_file(run / "model.safetensors").items():
        assert torch.equal(value, found[name])
    for name in ("optimizer.pt", "scheduler.pt", "self_teacher.pt", "rng_state.pth"):
        found |= flat(name, torch.load(last / name, weights_only=False))
    records = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [*range(first_step, 7)]
    for record in records:
        found |= flat(
            f"step {record['step']}",
            {name: value for name, value in record.items() if name not in APART},
        )
    return found


def flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            key: leaf
            for part, inner in value.items()
            for key, leaf in flat(f"{name}/{part}", inner).items()
        }
    if isinstance(value, list | tuple):
        return {
            key: leaf
            for part, inner in enumerate(value)
            for key, leaf in flat(f"{name}/{part}", inner).items()
        }
    return {name: value}


SLOW = pytest.mark.slow
# TRL 1.16 still reads a name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.mark.parametrize(
    ("point", "occasion"),
    [
        ("before the update", 6),
        ("in mid-checkpoint", 2),
        pytest.param("before the rollouts", 2, marks=SLOW),
        pytest.param("before the question", 2, marks=SLOW),
        pytest.param("before the teacher follows", 2, marks=SLOW),
        pytest.param("before the record", 4, marks=SLOW),
        pytest.param("before the checkpoint", 2, marks=SLOW),
        pytest.param("before the checkpoint's move", 3, marks=SLOW),
        pytest.param("before the model is saved", 4, marks=SLOW),
    ],
)  # a checkpoint saves it too: three times
def test_killed_and_started_again(
    point: str,
    occasion: int,
    settings: dict[str, Any],
    judge: FastJudge,
    service: ServiceProcess,
    tmp_path: Path,
) -> None:
    settings = settings | {
        "run_id": point,
        "seed": list(POINTS).index(point),
    }  # rollouts that no other test had judged
    before = judge.count
    killed = settings | {"output_dir": str(tmp_path / "killed")}
    assert run(killed, service.url, point=point, occasion=occasion) == -signal.SIGKILL
    assert run(killed, service.url, resume=True) == 0
    asked = judge.calls[before:]
    assert len({json.dumps(call.body, sort_keys=True) for call in asked}) == len(asked) > 6
    assert paid(tmp_path / "killed") <= len(asked)
    left_alone = settings | {"output_dir": str(tmp_path / "left alone")}
    assert run(left_alone, service.url) == 0
    assert judge.count == before + len(
        asked
    )  # the very same questions, answered from what is stored

    one, two = state(tmp_path / "killed"), state(tmp_path / "left alone")
    assert one.keys() == two.keys()
    different = [name for name, value in one.items() if not same(value, two[name])]
    assert different == []
    assert any(value for name, value in one.items() if "routed_share" in name)
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert not (tmp_path / "killed" / ".saving").exists()


@pytest.mark.slow
def test_killed_while_a_batch_is_judged_that_is_learnt_from_later(
    settings: dict[str, Any], judge: FastJudge, service: ServiceProcess, tmp_path: Path
) -> None:
    """The batch under way is in the checkpoint; nothing is asked again."""
    lagged = settings | {"run_id": "lagged", "seed": 79, "reward_lag": 1}
    before = judge.count
    killed = lagged | {"output_dir": str(tmp_path / "killed")}
    exit_code = run(killed, service.url, point="before the update", occasion=10)
    assert exit_code == -signal.SIGKILL
    assert run(killed, service.url, resume=True) == 0
    asked = judge.calls[before:]
    assert len({json.dumps(call.body, sort_keys=True) for call in asked}) == len(asked) > 2
    left_alone = lagged | {"output_dir": str(tmp_path / "left alone")}
    assert run(left_alone, service.url) == 0
    assert judge.count == before + len(asked)
    # Two steps on each batch, and nothing is learnt from the first one at once.
    one, two = (state(tmp_path / name, first_step=3) for name in ("killed", "left alone"))
    assert [name for name, value in one.items() if not same(value, two[name])] == []


def paid(run: Path) -> int:
    """Count the judge calls in the run's records."""
    return sum(
        json.loads(line)["judge_calls"] for line in (run / "steps.jsonl").read_text().splitlines()
    )


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    return bool(numpy.array_equal(one, two))


@pytest.mark.parametrize("down_s", [2.0, pytest.param(60.0, marks=SLOW)])
def test_a_service_that_is_away_for_a_while_changes_nothing(
    down_s: float, settings: dict[str, Any], judge: FastJudge, tmp_path: Path
) -> None:
    first = ServiceProcess(tmp_path / "service", service_settings(judge)).wait_ready()
    services = [first]
    waits: list[tuple[str, float]] = []

    def start_again() -> None:
        services.append(
            ServiceProcess(
                tmp_path / "service", service_settings(judge), arguments=("--port", str(first.port))
            ).wait_ready()
        )

    back = threading.Timer(down_s, start_again)

    def kill_once(record: StepRecord) -> None:
        if record.step == 2:
            first.kill()

    def on_wait(why: str, seconds: float) -> None:
        if not waits:
            back.start()
        waits.append((why, seconds))

    started = time.monotonic()
    try:
        for name, on_record in (("left", kill_once), ("left alone", lambda record: None)):
            config = build_config(
                settings | {"run_id": "away", "seed": 77, "output_dir": str(tmp_path / name)}
            )
            with Client(first.url) as client:
                train(
                    config,
                    client,
                    resume=False,
                    on_record=on_record,
                    on_wait=on_wait,
                )
    finally:
        back.cancel()
        for service in services:
            service.kill()
    assert time.monotonic() - started > down_s
    assert len(services) == 2
    assert waits
    assert all("cannot reach" in why or "connect" in why.lower() for why, _ in waits)
    assert len(waits) <= 4 + down_s / 10  # with longer and longer pauses
    one, two = state(tmp_path / "left"), state(tmp_path / "left alone")
    assert [name for name, value in one.items() if not same(value, two[name])] == []


def test_a_run_that_gives_up_waiting_asks_the_same_again_when_it_is_resumed(
    settings: dict[str, Any], judge: FastJudge, service: ServiceProcess, tmp_path: Path
) -> None:
    """The rollouts of the batch that found no service are sampled again to the letter."""
    config = settings | {"run_id": "given up", "seed": 78}

    class Away:
        def score(self, groups: Any, **options: Any) -> Any:
            if options["run"].step >= 2:
                raise ConnectionFailed("connection refused")
            return client.score(groups, **options)

    with Client(service.url) as client:
        gone = build_config(config | {"output_dir": str(tmp_path / "gone"), "max_outage_s": 0.0})
        with pytest.raises(Interrupted, match=r"Saved .*checkpoint-2; go on with --resume"):
            train(gone, Away(), resume=False, on_record=lambda record: None)
        train(gone, client, resume=True, on_record=lambda record: None)
        whole = build_config(config | {"output_dir": str(tmp_path / "whole")})
        before = judge.count
        train(whole, client, resume=False, on_record=lambda record: None)
        assert judge.count == before
    one, two = state(tmp_path / "gone"), state(tmp_path / "whole")
    assert [name for name, value in one.items() if not same(value, two[name])] == []
