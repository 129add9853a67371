"""Measure from another process how long a service blocks its event loop and its memory use.

``python -m fakes.watch URL PID`` measures until its standard input ends, then prints the result.
"""

import http.client
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from fakes.processes import ServiceProcess

PAUSE_S = 0.005
TESTS = Path(__file__).parents[1]


@dataclass(slots=True)
class Seen:
    """Seconds per ``/healthz`` call, in order; resident bytes at the start and at the peak."""

    waits_s: list[float] = field(default_factory=list)
    idle_bytes: int = 0
    most_bytes: int = 0

    @property
    def longest_s(self) -> float:
        """The longest wait: the loop was held about so long."""
        return max(self.waits_s)

    @property
    def grown_bytes(self) -> int:
        return self.most_bytes - self.idle_bytes


@contextmanager
def watched(service: ServiceProcess) -> Iterator[Seen]:
    """Watch the service; the result is complete when the block ends."""
    seen = Seen()
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "fakes.watch", service.url, str(service.process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun to look
        try:
            yield seen
        finally:
            said, _ = process.communicate()
    seen.waits_s, seen.idle_bytes, seen.most_bytes = json.loads(said)


def main(url: str, pid: int) -> None:
    connection, process = (
        http.client.HTTPConnection(urlsplit(url).netloc, timeout=60),
        psutil.Process(pid),
    )
    idle = most = process.memory_info().rss
    waits: list[float] = []
    ended = selectors.DefaultSelector()
    ended.register(sys.stdin, selectors.EVENT_READ)
    while not ended.select(PAUSE_S):
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        if not waits:
            sys.stdout.write("begun\n")
            sys.stdout.flush()
        waits.append(time.perf_counter() - began)
        most = max(most, process.memory_info().rss)
    json.dump([waits, idle, most], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
