"""`markscheme` commands, run in the test's own process: a second quicker than one of their own."""

import contextlib
import io
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import structlog

from fakes.processes import environment
from markscheme.cli import app as cli
from markscheme_server import logs


def command(
    *words: str, directory: Path, settings: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run one `markscheme` command to its end, in `directory`, with only these settings."""
    return run(*words, directory=directory, variables=environment(settings))


def run(
    *words: str, directory: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run one `markscheme` command with these environment variables and no others."""
    output, errors = _Captured(sys.stdout), _Captured(sys.stderr)
    status: object = 0
    with (
        mock.patch.dict(os.environ, variables, clear=True),
        mock.patch.object(sys, "argv", ["markscheme", *words]),
        mock.patch.object(sys, "stdin", io.StringIO()),
        mock.patch.object(cli.app, "registered_groups", list(cli.app.registered_groups)),
        mock.patch.object(cli.app, "registered_commands", list(cli.app.registered_commands)),
        mock.patch.object(logs, "configure", _log_to_stderr),
        contextlib.chdir(directory),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        _logs_as_before(),
    ):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
    code = status if isinstance(status, int) else int(status is not None)
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


class _Captured(io.StringIO):
    """The command's output; a service in another thread of the test still writes elsewhere."""

    def __init__(self, elsewhere: TextIO) -> None:
        super().__init__()
        self._elsewhere = elsewhere
        self._others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def write(self, text: str) -> int:
        return (
            self._elsewhere.write(text)
            if threading.get_ident() in self._others
            else super().write(text)
        )


def _log_to_stderr(level: logs.Level = "info") -> None:
    """Log as a process of its own does, but remember nothing: the next test logs elsewhere."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


@contextlib.contextmanager
def _logs_as_before() -> Iterator[None]:
    configured, before = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    try:
        yield
    finally:
        if configured:
            structlog.configure(**before)
        else:
            structlog.reset_defaults()
