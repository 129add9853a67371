"""Post groups as soon as they are generated, so that the judge works beside the trainer.

They are joined where TRL asks for rewards. Meanwhile the trainer computes the sampling policy's
log-probabilities and the other rewards, and, with a `rollout_func` that ends groups one after
another, generates the remaining groups.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl.data_utils import is_conversational

from markscheme.integrations.trl import WhereScored

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

SENT = ("teacher_responses", "rubric_id")
"""The columns of a row that the service is sent."""
PARSED_BY = ("response_template", "response_schema")
"""Attributes of a tokenizer; with either of them TRL parses tool calls."""
PER_FUNCTION = ("reward_funcs", "reward_processing_classes", "reward_func_names")
"""TRL's lists with an entry for each reward function."""


class EarlyScoring:
    """Starts the rubric reward of a trainer's batch, and cancels it where the batch breaks off.

    Args:
        trainer: Its `reward` is started.
    """

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
        self._trainer = trainer
        self._inputs: Sequence[Mapping[str, Any]] | None = None

    @contextmanager
    def of(self, inputs: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """Start the reward of what TRL generates for these rows in the `with` block."""
        self._inputs = inputs
        try:
            yield
        except BaseException:
            self._trainer.reward.cancel()
            raise
        finally:
            self._inputs = None

    def start(self, prompts: Sequence[Any], generated: tuple[Any, ...]) -> None:
        """Post the groups of what TRL's `_generate` has returned for the rows, if there are any."""
        if self._inputs is None:
            return
        _, completion_ids, _, completions, _, extra_fields, *_ = generated
        self._trainer.reward.start(
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            trainer_state=self._trainer.state,
            **sent_columns(self._inputs, extra_fields),
        )

    def start_group(
        self, first: int, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]]
    ) -> None:
        """Post a group of this process's rows from `first` on, where nothing forbids it."""
        trainer, rows = self._trainer, self._inputs
        # Not where an evaluation or another process has a part, or TRL makes messages of the ids.
        if (
            rows is None
            or not trainer.model.training
            or len(rows) % trainer.num_generations
            or any(getattr(trainer._tokenizer, name, None) is not None for name in PARSED_BY)
        ):
            return
        completions = trainer.processing_class.batch_decode(
            completion_ids, skip_special_tokens=True
        )
        if is_conversational({"prompt": prompts[0]}):
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        row = trainer.accelerator.process_index * len(rows) + first
        trainer.reward.start_group(
            row // trainer.num_generations,
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            trainer_state=trainer.state,
            **sent_columns(rows[first : first + len(prompts)], {}),
        )


def sent_columns(
    rows: Sequence[Mapping[str, Any]], extra_fields: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return the columns of the rows that the service is sent.

    Args:
        rows: The data's rows.
        extra_fields: What a `rollout_func` adds to them: lists by row, or one value for all.
    """
    columns = {name: [row.get(name) for row in rows] for name in SENT}
    for name in SENT:
        if name in extra_fields:
            added = extra_fields[name]
            values = added if isinstance(added, list) else [added] * len(rows)
            # As TRL does: a list that is too short leaves the other rows as they are.
            columns[name][: len(values)] = values[: len(rows)]
    return columns


def rubric_last(
    trainer: "MarkschemeTrainer", calculate: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Return TRL's rewards [rows, functions], the rubric's first but called after the others.

    They run while the judge works. TRL itself calls async functions after all others.

    Args:
        trainer: Its reward functions, the rubric's first.
        calculate: TRL's `_calculate_rewards`.
    """
    # One made by `where_scored` needs the rubric's rewards.
    if any(isinstance(function, WhereScored) for function in trainer.reward_funcs):
        return calculate()
    before = {name: getattr(trainer, name) for name in PER_FUNCTION}
    for name, (first, *others) in before.items():
        setattr(trainer, name, [*others, first])
    try:
        return calculate().roll(1, dims=1)
    finally:
        for name, values in before.items():
            setattr(trainer, name, values)
