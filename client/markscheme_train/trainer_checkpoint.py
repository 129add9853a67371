"""A trainer's checkpoint: TRL's files and our own, published together in one rename.

Ours are the self-teacher, the state of the collapse guard, and with `reward_lag` the batch that is
still judged.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from markscheme_train.checkpoints import SAVING, publish_dir

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

SELF_TEACHER_FILE, SELF_TEACHER_FOLDER = "self_teacher.pt", "self_teacher"
"""Where a checkpoint holds the self-teacher: whole in a file, in shards in a folder."""


class TrainerCheckpoint:
    """Writes and reads the checkpoints of a trainer.

    Attributes:
        temporary: The folder in which TRL must write a checkpoint; `None` while none is written.
    """

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
        self._trainer = trainer
        self.temporary: str | None = None

    def save(self, save_trls: Callable[[], None]) -> None:
        """Write the checkpoint of this step, unless it exists. A collective.

        A run that is killed meanwhile leaves the previous checkpoint.

        Args:
            save_trls: Writes TRL's part into `temporary`.
        """
        trainer = self._trainer
        run = Path(trainer.args.output_dir)
        # Written below another name: a folder of the final name is always complete.
        done, growing = run / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}", run / SAVING
        there = [done.is_dir()]
        # Rank 0 decides for all: ranks must not take different branches before a collective.
        broadcast_object_list(there)
        if there[0]:
            return
        self._save_ours(growing / done.name)
        self.temporary = str(growing)
        try:
            save_trls()
        finally:
            self.temporary = None
        if (best := trainer.state.best_global_step) is not None:
            # TRL has named it below the temporary folder.
            trainer.state.best_model_checkpoint = str(run / f"{PREFIX_CHECKPOINT_DIR}-{best}")
            if trainer.args.should_save:
                trainer.state.save_to_json(str(growing / done.name / TRAINER_STATE_NAME))
        # All processes have written before rank 0 renames the folder.
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            publish_dir(growing / done.name, done)
            growing.rmdir()
            # Only now: until the new checkpoint exists, the previous one is the newest.
            rotate_checkpoints(
                str(run), trainer.args.save_total_limit, trainer.state.best_model_checkpoint
            )
        # A rank that went on could end, and a launcher ends the others with it.
        trainer.accelerator.wait_for_everyone()

    def _save_ours(self, folder: Path) -> None:
        trainer = self._trainer
        teacher = trainer.distillation.self_teacher if trainer.distillation is not None else None
        if trainer.args.should_save:
            # A run that was killed while it saved leaves this folder.
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
            if teacher is not None and not teacher.sharded:
                torch.save(dict(teacher.weights()), folder / SELF_TEACHER_FILE)
            trainer.guard.save(folder)
        trainer.accelerator.wait_for_everyone()
        trainer.lag.save(folder)
        if teacher is not None and teacher.sharded:
            state_dict_saver.save(
                dict(teacher.weights()), checkpoint_id=folder / SELF_TEACHER_FOLDER
            )

    def restore(self, folder: Path) -> None:
        """Read our part of a checkpoint."""
        trainer = self._trainer
        trainer.guard.restore(folder)
        trainer.lag.restore(folder)
        if trainer.distillation is None:
            return
        teacher = trainer.distillation.self_teacher
        if teacher.sharded:
            teacher.start()
            weights = dict(teacher.weights())
            state_dict_loader.load(weights, checkpoint_id=folder / SELF_TEACHER_FOLDER)
        else:
            # Not onto the device, which would hold the self-teacher twice while it is copied.
            file = folder / SELF_TEACHER_FILE
            weights = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        teacher.restore(weights)
