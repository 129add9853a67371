"""The real service in its own process, so that tests can kill, freeze and stop it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_incrementing

from fakes.fork_server import ForkedProcess

PATIENCE_S = 90.0
"""How long a test waits for what must come, in seconds: many times what a busy machine needs."""
COMMAND = str(Path(sys.executable).with_name("markscheme"))


T = TypeVar("T")


class NotYet(Exception):
    """What is waited for has not happened."""


def eventually(within_s: float = PATIENCE_S, *, every_s: float = 0.02) -> Retrying:
    """Try the block until it passes, after ``every_s`` at first and four times as long later.

    Usage: ``for attempt in eventually(): with attempt: assert …``.
    """
    return Retrying(
        stop=stop_after_delay(within_s),
        wait=wait_incrementing(every_s, every_s / 4, 4 * every_s),  # each look costs CPU
        reraise=True,
        retry=retry_if_exception_type((AssertionError, NotYet, OSError, httpx.TransportError)),
    )


def with_enough_time(
    attempt: Callable[[float], T], is_enough: Callable[[T], bool], *, first_s: float
) -> T:
    """Repeat an attempt with twice the time limit, in seconds, until something was done within it.

    For a limit that must cut an attempt short, but not before a busy machine has begun it.
    """
    limit_s = first_s
    while not is_enough(result := attempt(limit_s)) and limit_s < PATIENCE_S / 4:
        limit_s *= 2
    return result


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return this process's environment with these settings and no others."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "MARKSCHEME_", "COLUMNS"))
    }
    return kept | {f"MARKSCHEME_{name.upper()}": str(value) for name, value in settings.items()}


def command(
    *words: str, directory: Path, settings: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run one `markscheme` command as a process of its own; `fakes.shell.command` is quicker."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = ForkedProcess(
            words, cwd=directory, env=environment(settings), output=output, errors=errors
        )
        try:
            code = process.wait(120)
        finally:
            process.kill()
        printed = []
        for file in (output, errors):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *printed)


class ServiceProcess:
    """``markscheme serve --port 0`` with these settings, in a folder where no ``.env`` lies.

    ``constants`` among the settings: other values for constants, by ``module.NAME``.
    """

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], *, arguments: tuple[str, ...] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        stated = {"home": directory} | dict(settings)
        constants = stated.pop("constants", {})
        self.output = directory / f"serve-{time.monotonic_ns()}.log"
        with self.output.open("wb") as log:
            self.process = ForkedProcess(
                ["serve", "--port", "0", *arguments],
                cwd=directory,
                env=environment(stated)
                | {"PYTHONUNBUFFERED": "1", "CONSTANTS": json.dumps(constants)},
                output=log,
            )
        self.url = ""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def wait_ready(self) -> "ServiceProcess":
        """Wait until it says where it listens and is ready; itself."""
        for attempt in eventually(every_s=0.05):
            with attempt:
                said = self.output.read_text()
                if self.process.poll() is not None:
                    raise RuntimeError(
                        f"the service ended with {self.process.returncode}: {said[-3000:]}"
                    )
                found = re.search(r"listening on (http://\S+)", said)
                if found is None:
                    raise NotYet(said[-3000:])
                self.url = found[1]
                assert httpx.get(f"{self.url}/readyz", verify=False, timeout=10).status_code == 200
        return self

    def kill(self) -> None:
        """``kill -9``, workers and all."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, as an orchestrator sends it: to the first process only."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, within_s: float) -> int:
        """Its exit status."""
        return self.process.wait(within_s)

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process and its workers."""
        first = psutil.Process(self.process.pid)
        return sum(int(p.memory_info().rss) for p in (first, *first.children(recursive=True)))
