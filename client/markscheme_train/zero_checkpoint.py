"""A checkpoint of ZeRO 3 on another number of processes than wrote it.

DeepSpeed loads one on as many only. Each process wrote, for each group of weights, a flat tensor
with its part of each weight, one after another; so it did for each state of the optimiser. Here
every process reads all of these files and puts together its own part of each weight and state.
DeepSpeed's universal checkpoints are not used: see decision 57.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed
from torch import Size, Tensor

from markscheme_train.checkpoints import processes_of
from markscheme_train.errors import ConfigError
from markscheme_train.sharding import is_zero3_run

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies in the flat tensors of a number of processes.

    Attributes:
        group: Which flat tensor.
        start: Where each process's part begins in it.
        part: Numbers in each process's part; the last parts are padded.
        count: Numbers of the weight.
    """

    group: int
    start: int
    part: int
    count: int


def is_of_other_processes(trainer: "MarkschemeTrainer", checkpoint: Path) -> bool:
    """Return whether another number of processes wrote a checkpoint of ZeRO 3."""
    return (
        is_zero3_run(trainer.args) and processes_of(checkpoint) != trainer.accelerator.num_processes
    )


def load_from_other_processes(engine: Any, checkpoint: Path) -> None:
    """Load weights, optimiser and counts of a checkpoint that any number of processes wrote.

    Weights that are not trained stay as they are. A collective.

    Raises `ConfigError` if a file is missing, if the model has other weights, and if the optimiser
    has states that are not one number for each weight.
    """
    folder = checkpoint / (checkpoint / "latest").read_text("utf-8").strip()
    model = _load(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    optimizer = engine.optimizer
    state = cut(
        optimizer.state_dict(),
        engine._get_zero_param_shapes(),
        optimizer_files(folder, model["dp_world_size"]),
        model["param_shapes"],
        rank=distributed.get_rank(),
        processes=distributed.get_world_size(),
    )
    optimizer.checkpoint_event_prologue()
    # Of the weights that are taken apart it has none: these are buffers.
    engine.load_module_state_dict({"module": model["module"]}, strict=False)
    optimizer.load_state_dict({distributed.get_rank(): state})
    optimizer.checkpoint_event_epilogue()
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(model["lr_scheduler"])
    for count in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, count, model[count])


def optimizer_files(folder: Path, processes: int) -> list[Path]:
    """Return the file of each process's optimiser. Raises `ConfigError` if one is missing."""
    names = [f"zero_pp_rank_{number}_mp_rank_00_optim_states.pt" for number in range(processes)]
    # DeepSpeed writes the precision before the name.
    found = [next(folder.glob(f"*{name}"), None) for name in names]
    files = [file for file in found if file is not None]
    if len(files) < processes:
        missing = names[found.index(None)]
        raise ConfigError(
            f"the checkpoint is not complete: {folder} has no *{missing}, one of {processes}. Copy "
            "it there, or resume from another checkpoint"
        )
    return files


def cut(
    state: Mapping[str, Any],
    shapes: Sequence[Mapping[str, Size]],
    files: Sequence[Path],
    shapes_before: Sequence[Mapping[str, Size]],
    *,
    rank: int,
    processes: int,
) -> dict[str, Any]:
    """Return the state that this process would have written itself.

    Args:
        state: The state of this process's optimiser, for its layout.
        shapes: The shapes of the weights in each of its flat tensors, in order.
        files: The file of each process that wrote the checkpoint.
        shapes_before: The shapes of the weights in each of the files' flat tensors.
        rank: This process.
        processes: How many there are.

    Raises `ConfigError` if the model has other weights, and if the optimiser has states that are
    not one number for each weight.
    """
    _check_weights(shapes_before, shapes)
    before, now = places(shapes_before, len(files)), places(shapes, processes)
    first = _load(files[0])["optimizer_state_dict"]
    _check_layout(first, before, len(files))
    flat = [torch.zeros(group.shape, dtype=group.dtype) for group in state["fp32_flat_groups"]]
    states: dict[int, dict[str, Any]] = {}
    for group, weights in enumerate(shapes):
        of_weight = before[next(iter(weights))].group
        states[group] = {
            key: torch.zeros(flat[group].shape, dtype=value.dtype)
            if _is_by_weight(value)
            else copy.deepcopy(value)  # the optimiser counts steps in place
            for key, value in _states(first, of_weight).items()
        }
    for number, file in enumerate(files):
        found = _load(file)["optimizer_state_dict"]
        for name, old in before.items():
            new = now[name]
            # What of the weight both that process had and this one has.
            begin = max(number * old.part, rank * new.part)
            end = min((number + 1) * old.part, (rank + 1) * new.part, old.count)
            if begin >= end:
                continue
            source = slice(
                begin - number * old.part + old.start, end - number * old.part + old.start
            )
            target = slice(begin - rank * new.part + new.start, end - rank * new.part + new.start)
            flat[new.group][target] = found["fp32_flat_groups"][old.group][source]
            for key, value in _states(found, old.group).items():
                if _is_by_weight(value):
                    states[new.group][key][target] = value[source]
    settings = [
        {**ours, **{key: value for key, value in theirs.items() if key != "params"}}
        for ours, theirs in zip(
            state["optimizer_state_dict"]["param_groups"],
            first["optimizer_state_dict"]["param_groups"],
            strict=True,
        )
    ]
    return {
        **first,
        "partition_count": state["partition_count"],
        "optimizer_state_dict": {"state": states, "param_groups": settings},
        "fp32_flat_groups": flat,
    }


def places(shapes: Sequence[Mapping[str, Size]], processes: int) -> dict[str, Place]:
    """Return where each weight lies, cut for a number of processes."""
    found: dict[str, Place] = {}
    for group, weights in enumerate(shapes):
        start = 0
        for name, shape in weights.items():
            part = -(-shape.numel() // processes)
            found[name] = Place(group, start, part, shape.numel())
            start += part
    return found


def _check_weights(before: Sequence[Mapping[str, Size]], now: Sequence[Mapping[str, Size]]) -> None:
    had, has = (
        {(name, tuple(shape)) for group in groups for name, shape in group.items()}
        for groups in (before, now)
    )
    if other := min(had ^ has, default=None):
        raise ConfigError(
            f"the checkpoint is of another model: one of the two alone trains `{other[0]}` of "
            f"shape {list(other[1])}. Set the model back, or start a run in another output_dir"
        )


def _check_layout(state: Mapping[str, Any], before: Mapping[str, Place], processes: int) -> None:
    sizes = [group.numel() for group in state["fp32_flat_groups"]]
    for place in before.values():
        sizes[place.group] -= place.part
    odd = {
        key
        for group, flat in enumerate(state["fp32_flat_groups"])
        for key, value in _states(state, group).items()
        if _is_by_weight(value) and value.shape != flat.shape
    }
    if any(sizes) or odd:
        why = f"`{min(odd)}` of the optimiser is" if odd else "the weights are"
        raise ConfigError(
            f"the checkpoint can only be loaded by as many processes as wrote it, {processes}: "
            f"{why} not cut evenly over them"
        )


def _states(state: Mapping[str, Any], group: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = state["optimizer_state_dict"]["state"].get(group, {})
    return found


def _is_by_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _load(file: Path) -> Any:
    # As DeepSpeed itself reads it: its files hold objects of its own. What is not used stays on
    # disk.
    return torch.load(file, map_location="cpu", weights_only=False, mmap=True)
