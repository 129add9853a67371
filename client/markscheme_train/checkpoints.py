"""Checkpoints on disk, complete or absent, and the state of the random number generators."""

import os
import random
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

SAVING = ".saving"
"""Folder in which a checkpoint is written before it is published."""


def last_checkpoint(output: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or `None`.

    A checkpoint is complete when it has the file that is written last.
    """
    complete = [
        folder
        for folder in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (folder / TRAINER_STATE_NAME).is_file()
    ]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def processes_of(checkpoint: Path) -> int:
    """Return how many processes wrote a checkpoint: each wrote its random number generators."""
    return len([*checkpoint.glob("rng_state*.pth")])


def best_checkpoint(output: str | Path, step: int | None) -> str | None:
    """Return the checkpoint of the best evaluation's step, or `None` if there is none."""
    folder = Path(output) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    return str(folder) if step is not None and folder.is_dir() else None


def publish_dir(folder: Path, target: Path) -> None:
    """Move a finished folder to its final path in one rename, after flushing it to disk."""
    # Folders too: their entries, which name the files, must reach the disk as well.
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    # The rename publishes; syncing the parent makes it survive a power failure.
    folder.rename(target)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_tensors(file: Path, device: torch.device) -> Any:
    """Return what `torch.save` wrote, with its tensors on the device."""
    # accelerate numbers the device of several processes on a CPU, and torch.load knows no `cpu:0`.
    place = "cpu" if device.type == "cpu" else device
    return torch.load(file, map_location=place, weights_only=True)


class RngState:
    """Snapshot of Python's, NumPy's and torch's random number generators."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = (
            random.getstate(),
            numpy.random.get_state(),
            torch.get_rng_state(),
        )
        # Empty where there is no CUDA device.
        self._devices = torch.cuda.get_rng_state_all()

    def restore(self) -> None:
        """Set the generators back to the snapshot."""
        random.setstate(self._python)
        numpy.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        torch.cuda.set_rng_state_all(self._devices)
