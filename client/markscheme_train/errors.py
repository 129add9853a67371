"""What stops a training run before or between steps, in words the person at the terminal can act on.

TrainError
├── ConfigError      the YAML file or an override is wrong
├── DataError        the JSONL data is wrong, or a message is no text; names the line or the place
├── ModelError       the model cannot be loaded
├── Diverged         gradients that are no numbers; the step was not taken
├── Unscored         too much of a batch has no reward; the step was not taken
├── Stopped          by Ctrl-C, after the step under way; saved
└── Interrupted      the run was saved and may go on with --resume: the service stayed away, or left too much unscored
"""


class TrainError(Exception):
    """The run cannot go on; the message says what to do."""


class ConfigError(TrainError):
    """A key or a value of the configuration is not usable."""


class DataError(TrainError):
    """The data is not usable; the message names the line, or the message that is no text."""


class ModelError(TrainError):
    """The model or its tokenizer cannot be loaded."""


class Diverged(TrainError):
    """Loss or gradients are no numbers any more; the weights are those of the step before."""


class Unscored(TrainError):
    """Too much of a batch has no reward to learn from.

    ``may_pass``: by waiting alone enough of it would have one. ``advice``: the reasons in words and
    what to do about them, on one line.
    """

    def __init__(self, message: str, *, may_pass: bool, advice: str) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.advice = advice


class Stopped(TrainError):
    """Ctrl-C: the step under way was finished and saved, and others are left."""


class Interrupted(TrainError):
    """What the run needs is not there now. It was saved; started again with ``--resume`` it goes on."""
