"""Evaluation during training: held-out prompts, sampled by the student and scored by the service.

An evaluation changes nothing in the training: random number generators are restored, and at the
service it is a run of its own, so that no training rubric's freshness depends on it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed

from markscheme.integrations.processes import current_process_group
from markscheme.schema import MAX_ROLLOUTS
from markscheme.vocabulary import TRANSIENT_REASONS, describe_reasons
from markscheme_train.checkpoints import RngState, best_checkpoint
from markscheme_train.config import TrainConfig
from markscheme_train.errors import ConfigError, TrainError
from markscheme_train.reward import RewardReport, RubricReward

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

REWARD = "eval_reward"
"""The metric of an evaluation: the mean of its known rewards, or `None`."""


def eval_run_id(run_id: str) -> str:
    """Return the name at the service of a run's evaluations."""
    return f"{run_id}-eval"


def check_eval_size(config: TrainConfig, dataset: Dataset) -> None:
    """Raise `ConfigError` for more rollouts than one request takes."""
    size = len(dataset) * (config.num_generations_eval or config.num_generations)
    if size > MAX_ROLLOUTS:
        raise ConfigError(
            f"an evaluation of {config.eval_data} has {size} rollouts, more than the "
            f"{MAX_ROLLOUTS} of one request: use fewer prompts, or a lower num_generations_eval"
        )


def evaluate(
    trainer: "MarkschemeTrainer", reward: RubricReward, dataset: Dataset
) -> dict[str, float | None]:
    """Sample and score rollouts of every prompt; return and log the metrics.

    `reward.last` holds the report afterwards. The mean reward is `None` where more than
    `max_unscored` of the rollouts have none: a mean of the rest could not be compared with others.

    Args:
        trainer: Its model is evaluated.
        reward: The reward of the evaluation's run.
        dataset: The prompts, as `as_dataset` returns them.

    Raises:
        MarkschemeError: The service refuses the request, or stays away too long.
    """
    started = time.monotonic()
    with _evaluation_mode(trainer):
        rows, completions, completion_ids = _sample(trainer, dataset)
        reward(
            prompts=[row["prompt"] for row in rows],
            completions=completions,
            completion_ids=completion_ids,
            trainer_state=trainer.state,
            rubric_id=[row["rubric_id"] for row in rows],
        )
        report = reward.last
        assert report is not None
        lengths = current_process_group().gather([len(ids) for ids in completion_ids])
        metrics = {
            REWARD: mean_reward(report, trainer.args.max_unscored),
            "eval_completions/mean_length": sum(lengths) / len(lengths),
            "eval_completions/clipped_ratio": sum(row.truncated for row in report.row_scores)
            / len(report.row_scores),
            "eval_runtime": time.monotonic() - started,
        }
        report.log(lambda name, value: metrics.update({f"eval_{name}": value}))
        # TRL's own figures count the rows that pad a batch.
        trainer._metrics["eval"].clear()
        trainer.log(metrics)
    return metrics


def mean_reward(report: RewardReport, max_unscored: float) -> float | None:
    """Return the mean of the known rewards, `None` where more than `max_unscored` is unknown."""
    known = [reward for reward in report.rewards if reward is not None]
    if not known or report.unscored > max_unscored * len(report.rewards):
        return None
    # Exactly rounded: equal rewards must not make one evaluation better than another.
    return fmean(known)


def _sample(
    trainer: "MarkschemeTrainer", dataset: Dataset
) -> tuple[list[Mapping[str, Any]], list[Any], list[Sequence[int]]]:
    """Return this process's rows with their rollouts and the rollouts' token ids."""
    rows = [row for row in dataset for _ in range(trainer.num_generations_eval)]
    size, processes = trainer.args.per_device_eval_batch_size, trainer.accelerator.num_processes
    own: list[Mapping[str, Any]] = []
    completions: list[Any] = []
    completion_ids: list[Sequence[int]] = []
    for start in range(0, len(rows), size * processes):
        first = start + trainer.accelerator.process_index * size
        batch = rows[first : first + size]
        # All processes generate equally many rows: their lengths are gathered as tensors.
        padding = [rows[0]] * (size - len(batch)) if processes > 1 else []
        _, ids, _, texts, *_ = trainer._generate([row["prompt"] for row in batch + padding])
        own += batch
        completions += texts[: len(batch)]
        completion_ids += ids[: len(batch)]
    return own, completions, completion_ids


@contextmanager
def _evaluation_mode(trainer: "MarkschemeTrainer") -> Iterator[None]:
    """Put the model into evaluation mode; at the end restore mode and random number generators.

    Every evaluation samples with the same seed, so that two of them differ by the weights alone.
    """
    generators, model = RngState(), trainer.model_wrapped
    training = model.training
    model.eval()
    set_seed(trainer.args.seed + trainer.accelerator.process_index)
    try:
        yield
    finally:
        model.train(training)
        generators.restore()


def known_rewards(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return step and mean reward of the evaluations in a trainer's log that have one."""
    return [(log["step"], log[REWARD]) for log in history if log.get(REWARD) is not None]


def evaluations_since_best(history: Sequence[Mapping[str, Any]]) -> int:
    """Return how many evaluations with a reward came after the best one.

    The one before the first step does not count: there is no checkpoint of it.
    """
    rewards = [reward for step, reward in known_rewards(history) if step > 0]
    return len(rewards) - 1 - rewards.index(max(rewards)) if rewards else 0


def stopped_early(args: TrainConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a run ends because its evaluations have not improved for long enough."""
    patience = args.early_stopping_patience
    return patience is not None and evaluations_since_best(history) >= patience


def is_due(args: TrainConfig, state: Any) -> bool:
    """Return whether an evaluation is due at the end of a generated batch.

    It is due where a multiple of `eval_steps` lies after the last evaluation, and at the end. It
    follows from the trainer's state alone, so a resumed run does what was missed.
    """
    if args.eval_strategy == "no":
        return False
    last = max((log["step"] for log in state.log_history if REWARD in log), default=0)
    step = state.global_step
    multiple = step // args.eval_steps > last // args.eval_steps
    due: bool = step >= args.eval_delay and (multiple or last < step == state.max_steps)
    return due


class EvaluationFlow(TrainerCallback):  # type: ignore[misc]
    """Evaluates at the start and on resuming; stops the run when rewards stop improving."""

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the initial model, or what the run was to evaluate when it ended."""
        trainer = self._trainer
        # TRL's own start would evaluate a resumed run's model a second time.
        start = args.eval_on_start and state.global_step == 0
        args.eval_on_start = False
        if start or is_due(args, state):
            metrics = trainer._evaluate(trial=None, ignore_keys_for_eval=None)
            if start:
                _refuse_unscorable(trainer)
            else:
                trainer._determine_best_metric(metrics, trial=None)
        state.best_model_checkpoint = best_checkpoint(args.output_dir, state.best_global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop early where that was asked for."""
        if stopped_early(args, state.log_history):
            control.should_save = control.should_training_stop = True


def _refuse_unscorable(trainer: "MarkschemeTrainer") -> None:
    """Raise `TrainError` if the first evaluation has no reward and waiting would not help."""
    report = trainer.eval_reward.last if trainer.eval_reward is not None else None
    if report is None or mean_reward(report, trainer.args.max_unscored) is not None:
        return
    permanent = sum(n for reason, n in report.reasons.items() if reason not in TRANSIENT_REASONS)
    if permanent > trainer.args.max_unscored * len(report.rewards):
        raise TrainError(
            f"{report.unscored} of {len(report.rewards)} rollouts of {trainer.args.eval_data} are "
            "unscored, so the run could not be evaluated; no step was taken. An evaluation makes "
            "no rubrics: run `markscheme induce` on eval_data, or name rubrics in its column "
            f"rubric_id.\n{' '.join(describe_reasons(report.reasons))}"
        )
