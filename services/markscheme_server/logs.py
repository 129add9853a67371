"""Structured logs on stderr: JSON lines, or a readable form at a terminal. stdout is for results.

No prompt, rollout, key, query string or header is logged. Our own events name their fields. The
messages of exceptions quote input (a URL, a value that does not parse, a row), so a log line holds
the type of an exception and where it was raised, but not its message. Of other libraries' messages
only the first line is logged, and only from warnings up: their debug output holds whole requests.
"""

import io
import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
_FRAMES = 12
"""Innermost frames of a traceback that are logged."""

log = structlog.get_logger()


class OnceASecond(logging.Filter):
    """Passes messages that begin with `prefix` at most once a second."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix, self._passed_at = prefix, -1.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log a message."""
        if not str(record.msg).startswith(self._prefix):
            return True
        passes = time.monotonic() - self._passed_at >= 1.0
        if passes:
            self._passed_at = time.monotonic()
        return passes


_PROVOKED_BY_CLIENTS = {
    "asyncio": OnceASecond("socket.accept() out of system resource"),
    "uvicorn.error": OnceASecond("Invalid HTTP request"),
}
"""Messages that anyone who can connect may cause in any number, by logger."""


class _Stderr(io.TextIOBase):
    """Standard error that never raises: a request must not fail when the log's reader is gone."""

    def write(self, text: str) -> int:
        """Write, if stderr is there."""
        with suppress(OSError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        """Flush, if stderr is there."""
        with suppress(OSError):
            sys.stderr.flush()


def configure(level: Level = "info") -> None:
    """Set up this process's logs. Call it before importing libraries that log."""
    pretty = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=not pretty),
        drop_exception_messages,
    ]
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    )
    # WriteLogger writes a line and its end at once; print would mix the lines of several workers.
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
    others = logging.StreamHandler(sys.stderr)
    others.setLevel(logging.WARNING)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, keep_first_line, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[others], level=logging.WARNING, force=True)
    for name, once in _PROVOKED_BY_CLIENTS.items():
        logging.getLogger(name).addFilter(once)
    logging.captureWarnings(True)
    threading.excepthook = lambda failed: _unhandled("thread_failed", failed.exc_value)
    sys.unraisablehook = lambda failed: _unhandled("finaliser_failed", failed.exc_value)


def drop_exception_messages(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace an exception by its type, the types of its causes, and where it was raised."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        chain = _chain(error)
        event["error"] = " from ".join(type(one).__qualname__ for one in chain)
        event["at"] = _frames(chain[0].__traceback__)
    return event


def keep_first_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep the first line of a library's message: asyncio appends the repr of a failed task."""
    event["event"] = str(event["event"]).partition("\n")[0].strip()
    return event


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return found


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-_FRAMES:]
    return [
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}"
        for frame in frames
    ]


def _unhandled(event: str, error: BaseException | None) -> None:
    log.error(event, exc_info=error)
