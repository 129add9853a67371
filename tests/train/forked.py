"""Run functions in processes that have torch and the trainer imported already."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

LIMIT_S = 240


def context() -> ForkServerContext:
    """Return what starts processes, each forked from one that has made all imports."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["train.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 does not give this process `sys.path`, and passes over what it cannot import.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        ensure_running()
    return made


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
