"""TRL's table of completions (`log_completions`) without prompts.

Prompts are private; who asks for the table sees rollouts, rewards and missed criteria. TRL prints
it, writes it to `completions` in `output_dir` and passes it to Weights & Biases and Trackio.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markscheme_train.checkpoints import RngState

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

MAX_SHOWN = 2000
"""Characters of a text that the table shows."""


def prompt_label(prompt: Any) -> str:
    """Return a name for a prompt: the same in every step, and no word of it."""
    return f"prompt {hashlib.sha256(repr(prompt).encode()).hexdigest()[:8]}"


def shortened(completion: Any) -> Any:
    """Return a completion, a text or messages, with long texts cut."""
    if isinstance(completion, str) and len(completion) > MAX_SHOWN:
        return f"{completion[:MAX_SHOWN]}… ({len(completion)} characters)"
    if isinstance(completion, list):
        return [
            message | {"content": shortened(message.get("content"))}
            if isinstance(message, dict)
            else message
            for message in completion
        ]
    return completion


@contextmanager
def private_completions(trainer: "MarkschemeTrainer") -> Iterator[None]:
    """Let TRL show the newest batch without its prompts, and each batch once.

    TRL draws random rows; the training's random state is restored afterwards.
    """
    logs, asked = trainer._logs, trainer.log_completions
    trainer.log_completions = asked and trainer.model.training and bool(logs["prompt"])
    if not trainer.log_completions:
        try:
            yield
        finally:
            trainer.log_completions = asked
        return
    generators = RngState()
    for name, change in (("prompt", prompt_label), ("completion", shortened)):
        logs[name] = deque(map(change, logs[name]), maxlen=logs[name].maxlen)
    try:
        yield
    finally:
        generators.restore()
        trainer.log_completions = asked
        for column in ("images", "prompt", "completion", "advantages"):
            logs[column].clear()
        for columns in (logs["rewards"], logs["extra"]):
            columns.clear()


class _DropRollouts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in str(record.msg)


def keep_rollouts_out_of_the_log() -> None:
    """Silence TRL's warning about unscored rows: it prints prompt and rollout. Ours does not."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    if not any(isinstance(known, _DropRollouts) for known in logger.filters):
        logger.addFilter(_DropRollouts())
