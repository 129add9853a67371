"""When a run stops and saves: on broken gradients, at the end of a batch, on Ctrl-C."""

import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from markscheme_train.checkpoints import RngState
from markscheme_train.errors import diverged
from markscheme_train.evaluation import is_due
from markscheme_train.sharding import local_part
from markscheme_train.trainer import MarkschemeTrainer


class StopOnNonFinite(TrainerCallback):  # type: ignore[misc]
    """Raises `Diverged` before a step is taken on gradients that are not finite.

    DeepSpeed has taken the step by then: there `GuardedEngine` does it.
    """

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients."""
        if self._trainer.accelerator.scaler is not None:
            return  # fp16: the scaler skips a step that overflowed and retries on a smaller scale
        broken = [
            ~local_part(p.grad).isfinite().all()
            for p in self._trainer.model.parameters()
            if p.grad is not None
        ]
        accelerator = self._trainer.accelerator
        found = torch.stack(broken).any() if broken else torch.tensor(False)
        # A process may hold a part that is whole; all must stop.
        if accelerator.reduce(found.float().to(accelerator.device)).item():
            raise diverged(state.global_step + 1)


class SaveAtBatchEnd(TrainerCallback):  # type: ignore[misc]
    """Delays saving, stopping and evaluating to the end of the generated batch.

    A checkpoint cannot hold a half-used batch, and the best evaluation needs one. Add it after the
    callbacks that ask for any. `rng_state` is the state at the end of the last batch.
    """

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer
        self.rng_state: RngState | None = None
        self._save = self._stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold back requests until the batch is finished."""
        self._save |= control.should_save
        self._stop |= control.should_training_stop
        # Held back on every step; the end of the batch hands them on.
        control.should_save = control.should_training_stop = control.should_evaluate = False
        if self._trainer._step % (args.steps_per_generation * args.num_iterations) == 0:
            control.should_save, control.should_training_stop = self._save, self._stop
            self._save = self._stop = False
            self.rng_state = RngState()
            # A run that was told to stop does so now; it evaluates when it is resumed.
            interrupted = control.should_training_stop and state.global_step < state.max_steps
            control.should_evaluate = not interrupted and is_due(args, state)


class StopOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Ends the run on Ctrl-C after the current step, with a checkpoint; on a second one at once.

    One of several processes may get the signal a step earlier; then all stop together.
    """

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer
        self.asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the signal handler."""
        self._before = signal.signal(signal.SIGINT, self._ask)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if any process was asked to."""
        accelerator = self._trainer.accelerator
        # A collective, which every process must enter, asked or not.
        if accelerator.reduce(torch.tensor(float(self.asked), device=accelerator.device)).item():
            self.asked = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the signal handler."""
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
