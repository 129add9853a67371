"""What a GPU's figures are made of, without a GPU: the arithmetic of time, memory and goals."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpu import steps
from gpu.part import Part
from gpu.steps import FULL, SMALL, WARM_UP, Stopwatch, Taken, chunk_bytes, expect, judge

MIB = 2**20


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake a GPU whose peak allocation was 700 bytes."""
    monkeypatch.setattr(steps, "GPU", True)
    monkeypatch.setattr(steps, "held", lambda trainer: 500)
    for name, answer in (
        ("synchronize", None),
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 700),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)


def goals(taken: dict[str, Taken], length: int = FULL.lengths[1]) -> dict[str, Any]:
    part = Part()
    expect(part, FULL)
    judge(part, FULL, length, taken)
    return {goal.name: goal for goal in part.goals}


def test_the_first_steps_are_not_counted_and_memory_is_above_what_stays(card: None) -> None:
    watch = Stopwatch(trainer=None, foreign=120)
    for step in range(1, FULL.steps + 1):
        watch.on_step_begin(None, None, None)
        watch.on_step_end(None, SimpleNamespace(global_step=step, max_steps=FULL.steps), None)
    assert len(watch.taken.seconds) == FULL.steps - WARM_UP
    assert watch.taken.peak == 700 - 120 - 500


def test_a_short_run_counts_its_last_step() -> None:
    watch = Stopwatch(trainer=None, foreign=0)
    for step in range(1, SMALL.steps + 1):
        watch.on_step_begin(None, None, None)
        watch.on_step_end(None, SimpleNamespace(global_step=step, max_steps=SMALL.steps), None)
    assert len(watch.taken.seconds) == 1
    assert watch.taken.peak is None  # no GPU: memory is not known


def test_ours_are_held_against_theirs(card: None) -> None:
    chunk = chunk_bytes(FULL.shape)
    assert chunk == 1024 * 151_936 * 4
    found = goals(
        {
            "grpo": Taken([1.0, 1.1, 5.0], 10 * chunk),
            "TRL GRPO": Taken([1.0, 1.0, 1.0], 10 * chunk),
            "srpo": Taken([1.6], 13 * chunk),
            "TRL SDPO": Taken([2.0], 52 * chunk),
        }
    )
    known = {
        name: (pytest.approx(goal.value), goal.met)
        for name, goal in found.items()
        if goal.value is not None
    }
    assert known == {
        "grpo / TRL GRPO, 8192 tokens: seconds": (1.1, False),
        "srpo / TRL SDPO, 8192 tokens: seconds": (0.8, True),
        "srpo / TRL SDPO, 8192 tokens: memory": (0.25, True),
        "srpo beyond grpo, 8192 tokens: peak memory in chunks of logits": (3.0, False),
    }


def test_what_the_peer_could_not_run_is_not_known(card: None) -> None:
    found = goals({"grpo": Taken([1.0], MIB), "srpo": Taken([1.0], 2 * MIB)})
    assert found["grpo / TRL GRPO, 8192 tokens: seconds"].value is None
    assert found["srpo / TRL SDPO, 8192 tokens: memory"].met is None
    assert found["srpo beyond grpo, 8192 tokens: peak memory in chunks of logits"].met is True


def test_without_a_gpu_nothing_is_asked_of_speed() -> None:
    part = Part()
    expect(part, SMALL)
    assert all(goal.at_most is None for goal in part.goals)


def test_long_rollouts_go_one_by_one() -> None:
    assert [FULL.at_once(length) for length in FULL.lengths] == [5, 1]
