"""One batch off (`reward_lag: 1`): a batch is judged while the next one is generated.

At each batch the trainer generates and posts a new one, and then learns from the one before, whose
scores have arrived meanwhile. The policy has changed once since that one was sampled: its
log-probabilities are stored then, and clipping and importance weights correct for the rest. The
first batch of a run teaches nothing, since there is none before it; the last one is not judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad

from markscheme.integrations.processes import current_process_group
from markscheme_train.checkpoints import load_tensors
from markscheme_train.config_checks import optimiser_steps
from markscheme_train.early_scoring import sent_columns

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

FILE = "lagged_batch.pt"
"""File of a checkpoint with the batch that is held."""


@dataclass(frozen=True, slots=True)
class LaggedBatch:
    """A batch of this process that was generated and is learnt from one batch later.

    Attributes:
        inputs: Its rows.
        generated: What TRL's `_generate` returned for them.
        log_probs: Log-probabilities [B, C] by the policy that sampled it.
        step: The trainer's step at that time.
    """

    inputs: list[Mapping[str, Any]]
    generated: tuple[Any, ...]
    log_probs: torch.Tensor
    step: int


class Lag:
    """Holds a trainer's batch until the next one is generated.

    Attributes:
        learnt: The batch that is being learnt from, while TRL makes its tensors.
        rewarded: Whether that batch has rewards: the first one of a run has none.
    """

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
        self._trainer = trainer
        self._held: LaggedBatch | None = None
        self._generated: LaggedBatch | None = None
        self._is_posted = True
        self.learnt: LaggedBatch | None = None
        self.rewarded = False

    def begin(self, inputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Generate and post a batch for these rows; return the rows of the one to learn from."""
        if self._held is not None and not self._is_posted:
            self._post(self._held)
        self._generated = self._generate([*inputs])
        self.rewarded = self._held is not None
        self.learnt = self._held or self._generated
        return self.learnt.inputs

    def finish(self, batch: dict[str, Any]) -> None:
        """Put the sampling policy's log-probabilities into TRL's batch; hold the new batch.

        Until then the former one is held, so that a run that is saved because the service is lost
        has it in its checkpoint.
        """
        assert self.learnt is not None
        batch["old_per_token_logps"] = self.learnt.log_probs
        self._held = self._generated

    def end(self) -> None:
        """Leave the batch that was learnt from."""
        self.learnt = None

    def save(self, folder: Path) -> None:
        """Write the batch that all processes hold into one file of a checkpoint. A collective."""
        held = self._held
        if held is None:
            return
        lengths = map(len, held.generated[1])
        # Clones, so that a row is not pickled with the memory of all; without padding, since other
        # processes may divide the rows otherwise.
        rows = [row[:size].cpu().clone() for row, size in zip(held.log_probs, lengths, strict=True)]
        part = {"inputs": held.inputs, "generated": held.generated, "log_probs": rows}
        parts = current_process_group().gather([part])
        if self._trainer.args.should_save:
            torch.save({"step": held.step, "parts": parts}, folder / FILE)

    def restore(self, folder: Path) -> None:
        """Read this process's rows of a checkpoint's batch; they are posted again.

        Groups and ids are those of the whole batch, so they stay the same on any number of
        processes.
        """
        if not (folder / FILE).is_file():
            return
        trainer = self._trainer
        saved = load_tensors(folder / FILE, trainer.accelerator.device)
        whole = _joined(saved["parts"])
        count = len(whole["inputs"]) // trainer.accelerator.num_processes
        first = count * trainer.accelerator.process_index
        own = _cut(whole, slice(first, first + count))
        self._held = LaggedBatch(
            own["inputs"],
            own["generated"],
            pad(
                own["log_probs"],
                padding_value=0,
                padding_side="right",
                pad_to_multiple_of=trainer.pad_to_multiple_of,
            ),
            saved["step"],
        )
        self._is_posted = False

    def _generate(self, inputs: list[Mapping[str, Any]]) -> LaggedBatch:
        trainer = self._trainer
        prompts = [row["prompt"] for row in inputs]
        steps = optimiser_steps(trainer.args) * trainer.args.num_iterations
        if trainer.state.global_step + steps < trainer.state.max_steps:
            with trainer.early.of(inputs):
                generated = trainer._generate(prompts)
        else:
            generated = trainer._generate(prompts)
        log_probs = self._log_probs(*generated[:2])
        return LaggedBatch(inputs, generated, log_probs, trainer.state.global_step)

    def _log_probs(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Return log-probabilities [B, C] by the current policy, padded as TRL pads."""
        trainer = self._trainer
        prompts, prompt_mask = self._padded(prompt_ids, "left")
        completions, completion_mask = self._padded(completion_ids, "right")
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(
                trainer.model, trainer.args.gradient_checkpointing_kwargs
            ),
        ):
            log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([prompts, completions], dim=1),
                torch.cat([prompt_mask, completion_mask], dim=1),
                completions.shape[1],
                trainer.args.per_device_train_batch_size,
            )
        return log_probs

    def _padded(
        self, rows: Sequence[Sequence[int]], side: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask, padded on a side."""
        trainer = self._trainer
        device = trainer.accelerator.device
        ids = [torch.tensor(row) for row in rows]
        masks = [torch.ones_like(row) for row in ids]
        how = {"padding_side": side, "pad_to_multiple_of": trainer.pad_to_multiple_of}
        return (
            pad(ids, padding_value=trainer._tokenizer.pad_token_id, **how).to(device),
            pad(masks, padding_value=0, **how).to(device),
        )

    def _post(self, batch: LaggedBatch) -> None:
        _, completion_ids, _, completions, _, extra_fields, *_ = batch.generated
        self._trainer.reward.start(
            prompts=[row["prompt"] for row in batch.inputs],
            completions=completions,
            completion_ids=completion_ids,
            trainer_state=SimpleNamespace(global_step=batch.step),
            **sent_columns(batch.inputs, extra_fields),
        )
        self._is_posted = True


def _joined(parts: Sequence[Any]) -> Any:
    """Return the rows of several processes as one: lists, also within mappings and tuples."""
    first = parts[0]
    if isinstance(first, list):
        return [row for part in parts for row in part]
    if isinstance(first, tuple):
        return tuple(map(_joined, zip(*parts, strict=True)))
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    return first


def _cut(value: Any, rows: slice) -> Any:
    """Return these rows of what `_joined` returns."""
    if isinstance(value, list):
        return value[rows]
    if isinstance(value, tuple):
        return tuple(_cut(part, rows) for part in value)
    if isinstance(value, dict):
        return {name: _cut(part, rows) for name, part in value.items()}
    return value
