"""Other reward functions, named in the configuration by their import path."""

import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from markscheme_train.errors import ConfigError


def import_rewards(
    paths: Sequence[str], weights: Sequence[float] | None
) -> list[Callable[..., Any]]:
    """Return the functions that `paths` name, such as `package.module:function`.

    Modules are looked for in the working directory too.

    Args:
        paths: Import paths.
        weights: The weights of all rewards, the rubric's first.

    Raises:
        ConfigError: One cannot be imported, or there are more or fewer weights.
    """
    if weights is not None and len(weights) != 1 + len(paths):
        raise ConfigError(
            f"reward_weights has {len(weights)} numbers, but there are {1 + len(paths)} rewards: "
            "the rubric's first, then those of rewards"
        )
    if paths and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return [_import(path) for path in paths]


def _import(path: str) -> Callable[..., Any]:
    module, colon, function = path.partition(":")
    if not (module and colon and function):
        raise ConfigError(f"rewards: `{path}` is not of the form package.module:function")
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # a module may raise anything when it is imported
        raise ConfigError(
            f"rewards: cannot import `{path}` ({type(error).__name__}: {error}). Its module must "
            "be installed, or lie in the directory in which the command is started"
        ) from error
    if not callable(found):
        raise ConfigError(f"rewards: `{path}` is no function: {type(found).__name__}")
    return found  # type: ignore[no-any-return]
