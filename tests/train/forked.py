"""Run functions in processes that have torch and the trainer imported already.

They are forked from a server that was itself forked from the test's process when all tests were
collected: it has what they import, and no model has yet run in it.
"""

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

LIMIT_S = 240


def start_server() -> None:
    """Start the server from which `context` forks. Call it before a model runs."""
    resource_tracker.ensure_running()  # by the same function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", _fork_server)
        forkserver.ensure_running()


def _fork_server(_path: str, _command: Sequence[str], kept: Sequence[int]) -> int:
    """Fork where `multiprocessing` starts a new interpreter; return the server's process id."""
    process = os.fork()
    if process:
        return process
    try:
        listener, alive = kept
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            # The other end of the pipe at whose end the server ends. Others may be closed by what
            # owns them, when their numbers are those of something else.
            with contextlib.suppress(OSError):
                if descriptor != alive and os.path.sameopenfile(descriptor, alive):
                    os.close(descriptor)
        warnings.resetwarnings()
        for name in list(os.environ):
            if name.startswith(("OPENAI_", "MARKSCHEME_")):
                del os.environ[name]
        forkserver.main(listener, alive, preload=())
    finally:
        os._exit(0)


def context() -> ForkServerContext:
    """Return what starts processes, each forked from one that has made all imports."""
    return multiprocessing.get_context("forkserver")


def run_together(
    function: Callable[..., None],
    *arguments: Any,
    processes: int,
    errors: Path,
    launched: bool = False,
) -> None:
    """Run the function in several processes, as torchrun does; with one, as plain Python does.

    With `launched`, one process too has what torchrun gives it. As with torchrun, a process that
    fails ends the others. Raises `AssertionError` with what they wrote to ``errors``, a new file.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        context().Process(
            target=_run,
            args=(function, arguments, rank, processes, store.port, errors, launched),
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        running = list(started)
        while running:
            ended = connection.wait([process.sentinel for process in running], LIMIT_S)
            assert ended, "the processes hang"
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                running.remove(process)
                assert process.exitcode == 0, errors.read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
            process.join()


def _run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    rank: int,
    processes: int,
    port: int,
    errors: Path,
    launched: bool,
) -> None:
    with errors.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if processes > 1 or launched:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            # The processes meet in our store, so that nobody has to guess a free port.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    function(*arguments)
