"""Flat tensors of ZeRO 3, cut anew: the files of some processes as others would have written them.

DeepSpeed itself is not needed; `test_zero` has runs that it resumes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from markscheme_train.errors import ConfigError
from markscheme_train.zero_checkpoint import cut, optimizer_files

Layout = list[dict[str, Size]]
SHAPES: Layout = [{"a": Size([3, 5]), "b": Size([1])}, {"c": Size([7])}]
OTHERS: Layout = [{"a": Size([3, 5])}, {"b": Size([1]), "c": Size([7])}]
"""The same weights in other groups."""
STATES = ("fp32", "exp_avg", "exp_avg_sq")


def whole(state: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(STATES.index(state))
    shapes = {name: shape for group in SHAPES for name, shape in group.items()}
    return {name: torch.randn(shape.numel(), generator=generator) for name, shape in shapes.items()}


def flat(weights: Mapping[str, Size], state: str, rank: int, processes: int) -> Tensor:
    """Return one process's parts of the weights, one after another, the last ones padded."""
    parts = []
    for name in weights:
        value = whole(state)[name]
        size = -(-len(value) // processes)
        padded = torch.cat([value, torch.zeros(size * processes - len(value))])
        parts.append(padded[rank * size : (rank + 1) * size])
    return torch.cat(parts)


def written(layout: Layout, rank: int, processes: int, **settings: Any) -> dict[str, Any]:
    """Return what DeepSpeed's optimiser says of itself."""
    states = {
        group: {
            "step": torch.tensor(2.0),
            **{key: flat(weights, key, rank, processes) for key in STATES[1:]},
        }
        for group, weights in enumerate(layout)
    }
    return {
        "loss_scaler": 1.0,
        "partition_count": processes,
        "fp32_flat_groups": [flat(weights, "fp32", rank, processes) for weights in layout],
        "optimizer_state_dict": {
            "state": states,
            "param_groups": [
                {"lr": 0.1, "weight_decay": 0.5, "params": [0]} | settings,
                {"lr": 0.1, "weight_decay": 0.0, "params": [1]} | settings,
            ],
        },
    }


def write(folder: Path, states: list[dict[str, Any]]) -> list[Path]:
    for rank, state in enumerate(states):
        file = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, file)
    return optimizer_files(folder, len(states))


@pytest.mark.parametrize("layout", [SHAPES, OTHERS], ids=["the same groups", "other groups"])
@pytest.mark.parametrize(("before", "now"), [(2, 1), (2, 4), (1, 2), (3, 2), (2, 2), (1, 12)])
def test_each_process_gets_what_it_would_have_written(
    before: int, now: int, layout: Layout, tmp_path: Path
) -> None:
    files = write(tmp_path, [written(SHAPES, rank, before) for rank in range(before)])
    for rank in range(now):
        expected = written(layout, rank, now)
        fresh = written(layout, rank, now, lr=0.0)
        fresh["optimizer_state_dict"]["state"] = {}
        found = cut(fresh, layout, files, SHAPES, rank=rank, processes=now)
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_groups_of_weights_count_their_steps_apart(tmp_path: Path) -> None:
    files = write(tmp_path, [written(SHAPES, rank, 2) for rank in range(2)])
    state = cut(written(OTHERS, 0, 1), OTHERS, files, SHAPES, rank=0, processes=1)
    first, second = (group["step"] for group in state["optimizer_state_dict"]["state"].values())
    first += 1
    assert second == 2


def test_an_optimiser_without_states_has_none_afterwards(tmp_path: Path) -> None:
    states = [written(SHAPES, rank, 2) for rank in range(2)]
    for state in states:
        state["optimizer_state_dict"]["state"] = {}
    files = write(tmp_path, states)
    found = cut(written(SHAPES, 0, 1), SHAPES, files, SHAPES, rank=0, processes=1)
    assert found["optimizer_state_dict"]["state"] == {0: {}, 1: {}}
    assert torch.equal(found["fp32_flat_groups"][0], flat(SHAPES[0], "fp32", 0, 1))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_is_named(missing: int, tmp_path: Path) -> None:
    files = write(tmp_path, [written(SHAPES, rank, 3) for rank in range(3)])
    files[missing].unlink()
    with pytest.raises(ConfigError, match=rf"not complete: .* no \*zero_pp_rank_{missing}_.* of 3"):
        optimizer_files(tmp_path, 3)


@pytest.mark.parametrize(
    "other",
    [
        [{"a": Size([5, 3]), "b": Size([1])}, {"c": Size([7])}],
        [{"a": Size([3, 5])}, {"c": Size([7])}],
        [{"a": Size([3, 5]), "b": Size([1])}, {"c": Size([7]), "d": Size([2])}],
    ],
    ids=["another shape", "one less", "one more"],
)
def test_a_checkpoint_of_another_model_is_refused(other: Layout, tmp_path: Path) -> None:
    files = write(tmp_path, [written(SHAPES, rank, 2) for rank in range(2)])
    state = written(SHAPES, 0, 1)
    with pytest.raises(ConfigError, match=r"another model: one of the two alone trains `[abd]`"):
        cut(state, other, files, SHAPES, rank=0, processes=1)


def test_states_that_are_not_one_number_a_weight_are_refused(tmp_path: Path) -> None:
    """As the scales of an optimiser in 8 bits are: one a block of the old cut."""
    states = [written(SHAPES, rank, 2) for rank in range(2)]
    for state in states:
        state["optimizer_state_dict"]["state"][0]["absmax"] = torch.zeros(2)
    files = write(tmp_path, states)
    with pytest.raises(ConfigError, match="as many processes as wrote it, 2: `absmax` of the opt"):
        cut(written(SHAPES, 0, 1), SHAPES, files, SHAPES, rank=0, processes=1)


def test_weights_that_are_cut_over_some_of_the_processes_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path, [written(SHAPES, rank % 2, 2) for rank in range(4)])
    with pytest.raises(ConfigError, match="wrote it, 4: the weights are not cut evenly"):
        cut(written(SHAPES, 0, 1), SHAPES, files, SHAPES, rank=0, processes=1)
