"""The rubric service as a child process of the demo: SQLite, builtin judge, a free port."""

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from markscheme_train.errors import TrainError

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
SERVE = (str(Path(sys.executable).with_name("markscheme")), "serve", "--port", "0")
_LISTENING = re.compile(r"listening on (http://\S+)")


@contextmanager
def running_service(home: Path, *, command: Sequence[str] = SERVE) -> Iterator[str]:
    """Start the service with its data under `home`, yield its URL, and stop it at the end.

    Keys and settings of this environment are withheld: the demo neither needs nor spends them.
    """
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OPENAI_", "MARKSCHEME_"))
    }
    environment |= {"MARKSCHEME_JUDGE": "builtin", "MARKSCHEME_HOME": str(home.resolve())}
    log = home / "service.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            env=environment,
            cwd=home,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        # A folder of its own keeps it from our .env; its own session leaves Ctrl-C to the demo.
        reader, found = _start_reading(process)
        try:
            yield _wait_for_url(found, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join()


def _start_reading(
    process: "subprocess.Popen[str]",
) -> tuple[threading.Thread, "queue.Queue[str | None]"]:
    assert process.stdout is not None
    found: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read_url, args=(process.stdout, found), daemon=True)
    reader.start()
    return reader, found


def _wait_for_url(found: "queue.Queue[str | None]", log: Path) -> str:
    try:
        url = found.get(timeout=START_TIMEOUT_S)
    except queue.Empty:
        url = None
    if url is None:
        raise TrainError(f"the rubric service did not start; its log is {log}")
    return url


def _read_url(output: IO[str], found: "queue.Queue[str | None]") -> None:
    """Report the URL, then keep reading so that the service never blocks on a full pipe."""
    for line in output:
        if match := _LISTENING.search(line):
            found.put(match[1])
    found.put(None)
