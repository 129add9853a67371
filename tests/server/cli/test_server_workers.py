"""How the supervisor starts and stops workers, and how a worker ends; the workers are small."""

import asyncio
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from markscheme_server.cli import server as module
from markscheme_server.cli.server import Server, StartFailed, Supervisor
from markscheme_server.config import Settings
from markscheme_server.store.store import Store
from server.cli import small_workers


@pytest.fixture
def supervise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[small_workers.Run, int], Supervisor]]:
    """Make supervisors of workers that run a function; nothing of them is left."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    before = {
        each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    children = set(psutil.Process().children())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def make(run: small_workers.Run, workers: int) -> Supervisor:
            monkeypatch.setattr(module, "_run_worker", run)
            settings: Any = SimpleNamespace(workers=workers, drain_delay_s=0)
            return Supervisor(settings, "info", listener, str(tmp_path))

        yield make
    for each, handler in before.items():
        signal.signal(each, handler)
    assert not [
        child
        for child in set(psutil.Process().children()) - children
        if "spawn_main" in " ".join(child.cmdline())
    ]


Supervise = Callable[[small_workers.Run, int], Supervisor]


def test_a_worker_that_ends_before_it_serves_ends_the_start(supervise: Supervise) -> None:
    ready: list[bool] = []
    with pytest.raises(StartFailed):
        supervise(small_workers.ends, 2).run(lambda: ready.append(True))
    assert ready == []


def test_a_worker_that_hears_no_signal_is_killed_when_its_time_is_over(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT_S", 0)
    monkeypatch.setattr(module, "CLOSING_S", -0.9)  # 0.1 s in all
    supervisor = supervise(small_workers.hangs, 1)
    supervisor.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    (worker,) = supervisor.workers
    assert worker.process.exitcode == -signal.SIGKILL


def test_a_signal_while_a_worker_starts_reaches_it_and_no_other_is_started(
    supervise: Supervise,
) -> None:
    supervisor = supervise(small_workers.serves, 2)
    start = supervisor._processes.Process.start
    started: list[Any] = []

    def start_and_be_stopped(process: Any) -> None:
        start(process)
        started.append(process)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor._processes.Process, "start", start_and_be_stopped)
        supervisor.run(lambda: pytest.fail("it was stopped before it served"))
    (only,) = started
    assert only.exitcode in (-signal.SIGTERM, 0)  # before or after it set its own handler
    assert supervisor.workers == []


def test_a_worker_that_cannot_be_built_logs_why_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    settings = Settings(_env_file=None, home=tmp_path)
    arguments: Any = (settings, "info", None, None, SimpleNamespace(value=-math.inf))
    with capture_logs() as logged, pytest.raises(SystemExit) as ended:
        module._run_worker(*arguments)
    assert ended.value.code == 1
    assert [line["event"] for line in logged] == ["worker_failed"]
    assert list(tmp_path.iterdir()) == []  # it did not get as far as its database


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_that_does_not_come_to_serve_closes_what_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    close, closed = Store.close, []

    async def record(store: Store) -> None:
        task = asyncio.current_task()
        assert task is not None
        # Not while it is cancelled: what the database's threads do then may outlast the event loop.
        closed.append(task.cancelling())
        await close(store)

    def fail() -> None:
        raise BrokenPipeError("nobody reads what it announces")

    monkeypatch.setattr(Store, "close", record)
    monkeypatch.setattr(module, "tune_garbage_collector", lambda: None)
    monkeypatch.setattr(module, "SWITCH_S", sys.getswitchinterval())
    server = Server(Settings(_env_file=None, home=tmp_path), ready=fail)
    with module.listen("127.0.0.1", 0) as listener:
        if not listens:
            listener.close()
        with pytest.raises(OSError, match="nobody reads" if listens else "Bad file descriptor"):
            server.run(sockets=[listener])
        assert listener.fileno() == -1
    assert closed == [0]


def test_a_shutdown_that_hangs_is_cut_short_says_so_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT_S", 0)
    monkeypatch.setattr(module, "CLOSING_S", 0.02)
    server = Server(Settings(_env_file=None, home=tmp_path, drain_delay_s=0), ready=lambda: None)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(writing, 2)
            server.handle_exit(signal.SIGTERM, None)
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with open(reading) as said:
        assert said.read() == '{"event": "end_cut_short", "level": "warning"}\n'
    assert os.waitstatus_to_exitcode(status) == 0
