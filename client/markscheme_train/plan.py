"""The figures of a training configuration that determine the judge's cost.

See `markscheme.plan`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markscheme.plan import TrainingPlan
from markscheme.schema import Message
from markscheme_train.errors import TrainError

if TYPE_CHECKING:
    from markscheme_train.config import TrainConfig
    from markscheme_train.data import Example


def plan(path: Path, overrides: Sequence[str]) -> TrainingPlan:
    """Plan the run of one training process. Raises `TrainError`.

    Reads the configuration as `markscheme train` does, so what it refuses is refused here. That
    imports torch: the defaults are TRL's own, and a copy of them would be wrong after its next
    release.
    """
    from markscheme_train.config import load_config
    from markscheme_train.data import read_examples

    config = load_config(path, overrides)
    made = plan_of(config, read_examples(config.data, config.columns))
    if not config.eval_data:
        return made
    prompts = len(read_examples(config.eval_data, config.columns))
    # Before the first step, after each `eval_steps`, and at the end.
    groups = prompts * (config.eval_on_start + math.ceil(made.steps / config.eval_steps))
    rollouts = groups * (config.num_generations_eval or config.num_generations)
    return made.model_copy(update={"evaluation_groups": groups, "evaluation_rollouts": rollouts})


def plan_of(config: "TrainConfig", examples: "list[Example]") -> TrainingPlan:
    """Return the figures of a configuration and its data. Raises `TrainError`."""
    prompts_per_batch = config.generation_batch_size // config.num_generations
    # Micro-steps that one generated batch serves, over all iterations.
    micro_steps_per_batch = config.steps_per_generation * config.num_iterations
    steps = config.max_steps
    if steps <= 0:
        # The sampler drops an incomplete batch at the end of an epoch.
        micro_steps = len(examples) // prompts_per_batch * micro_steps_per_batch
        if micro_steps == 0:
            raise TrainError(
                f"{config.data} has {len(examples)} prompts, fewer than the {prompts_per_batch} of "
                "one batch"
            )
        steps = math.ceil(
            config.num_train_epochs * math.ceil(micro_steps / config.gradient_accumulation_steps)
        )
    batches = math.ceil(steps * config.gradient_accumulation_steps / micro_steps_per_batch)
    teachers = [e.teacher_responses for e in examples if e.teacher_responses]
    texts = [text for responses in teachers for text in responses]
    return TrainingPlan(
        steps=steps,
        batches=batches,
        groups=batches * prompts_per_batch,
        rollouts_per_group=config.num_generations,
        prompts=len(examples),
        prompt_characters=_mean([_characters(e.prompt) for e in examples]),
        response_tokens=config.max_completion_length,
        teacher_responses=math.ceil(len(texts) / max(1, len(teachers))),
        teacher_characters=_mean([_characters(text) for text in texts]),
        reuse=config.reuse,
        verify=config.verify,
    )


def _characters(messages: str | Sequence[Message]) -> int:
    """Return the length of a text, or of messages with their tool calls."""
    if isinstance(messages, str):
        return len(messages)
    calls = (call.function for message in messages for call in message.tool_calls or ())
    return sum(len(message.text) for message in messages) + sum(
        len(call.model_dump_json()) for call in calls
    )


def _mean(lengths: Sequence[int]) -> int:
    return round(sum(lengths) / len(lengths)) if lengths else 0
