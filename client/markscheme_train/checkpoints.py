"""A run on disk: checkpoints that are whole or not there, and the random number generators at a batch's end."""

import os
import random
from pathlib import Path

import numpy
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

SAVING = ".saving"
"""The folder in which a checkpoint grows until it is whole."""


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run: one that has the file which is written last."""
    whole = [
        folder
        for folder in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (folder / TRAINER_STATE_NAME).is_file()
    ]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def publish_dir(written: Path, place: Path) -> None:
    """Move a folder to its place, all at once and with its contents on the disk."""
    for path in (*written.rglob("*"), written):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    written.rename(place)
    handle = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RngState:
    """Where the random number generators stand, to be put back there."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = (
            random.getstate(),
            numpy.random.get_state(),
            torch.get_rng_state(),
        )
        self._devices = torch.cuda.get_rng_state_all()

    def restore(self) -> None:
        random.setstate(self._python)
        numpy.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        torch.cuda.set_rng_state_all(self._devices)
