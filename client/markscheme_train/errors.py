"""Errors that end a training run, with messages for the person at the terminal.

TrainError
├── ConfigError      the YAML file or an override is wrong
├── DataError        the JSONL data is wrong, or a message has no text; names the line
├── ModelError       the model cannot be loaded
├── Diverged         gradients are not finite; the step was not taken
├── Collapsed        a rule saw a collapse, and `on_collapse` is `stop`; saved
├── Stopped          Ctrl-C, after the current step; saved
└── Interrupted      saved, can go on with --resume: no service, or too much unscored
"""

SETTING_ERRORS = (ValueError, TypeError, ImportError, OSError, RuntimeError, ArithmeticError)
"""What TRL, transformers and their extras raise for settings that they cannot use."""


class TrainError(Exception):
    """The run cannot go on; the message says what to do."""


class ConfigError(TrainError):
    """A key or a value of the configuration is not valid."""


class DataError(TrainError):
    """The data cannot be used; the message names the line, or the message without text."""


class ModelError(TrainError):
    """The model or its tokenizer cannot be loaded."""


class Diverged(TrainError):
    """Loss or gradients are not finite; the weights are those of the step before."""


def diverged(step: int) -> Diverged:
    """Return what is raised before a step whose gradients are not finite."""
    return Diverged(f"the gradients of step {step} are no numbers; the step was not taken")


class Collapsed(TrainError):
    """A rule saw the run collapse, and `on_collapse` is `stop`. It was saved."""


class Stopped(TrainError):
    """Ctrl-C: the current step was finished and saved, and steps are left."""


class Interrupted(TrainError):
    """Something that the run needs is missing now. It was saved and can go on with `--resume`."""
