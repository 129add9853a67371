"""The order of prompts in training, the same in a resumed run as in an uninterrupted one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trl.trainer.utils import RepeatSampler

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer


def epoch_sampler(trainer: "MarkschemeTrainer", dataset: Any) -> "EpochSampler":
    """Return TRL's order of the dataset's rows for this trainer, seeded by seed and epoch."""
    args = trainer.args
    return EpochSampler(
        trainer,
        data_source=dataset,
        mini_repeat_count=trainer.num_generations,
        batch_size=args.generation_batch_size // trainer.num_generations,
        repeat_count=trainer.num_iterations * args.steps_per_generation,
        shuffle=trainer.shuffle_dataset,
        seed=args.seed,
    )


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with a permutation that does not depend on earlier epochs."""

    def __init__(self, trainer: "MarkschemeTrainer", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + int(self._trainer.state.epoch or 0))
        return iter(super().__iter__())
