"""Run the service in one or several processes on one socket, and stop it without failing requests.

On SIGTERM, or SIGHUP when the terminal is closed:

1. `/readyz` answers 503 at once, so that a balancer sends no more requests here.
2. Requests are accepted for `drain_delay_s` more, the time that the balancer needs to notice.
3. The socket closes; requests in flight get `IN_FLIGHT_S` to finish.
4. Resources are closed, and the exit status is 0.

Whatever hangs, the process ends within `drain_delay_s + IN_FLIGHT_S + CLOSING_S`, less than the
30 s that orchestrators allow.

Step 2 is left out on SIGINT (a person at a terminal waits for requests in flight only), and when no
request, a balancer's probe included, came within the last `RECENT_S`. A second signal stops at
once, except SIGHUP: a closing terminal sends it more than once. Under `nohup` it is ignored.

With several workers the first process is their supervisor and serves nothing: it owns the socket,
restarts a worker that dies, and passes signals on. uvicorn's own supervisor is not used: it checks
for signals every half second, waits seconds for a frozen worker while the others wait for their
signal, and has no hook for this shutdown.
"""

import asyncio
import ctypes
import gc
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, cast

import structlog
import uvicorn

from markscheme_server import logs
from markscheme_server.api.drain import Drain
from markscheme_server.config import Settings

IN_FLIGHT_S = 22
CLOSING_S = 4
RECENT_S = 30.0
RESTART_PAUSE_S = 1.0
"""Before a worker that failed to start is restarted: its database may be away for a while."""
SWITCH_S = 0.0005
"""Interval at which threads that run checks yield the interpreter to the event loop.

Measured at Python's default of 5 ms: a probe that takes 2 ms took 97 ms beside two such threads.
"""
STOP_WITHOUT_DELAY = signal.SIGUSR1
"""Sent by the supervisor to its workers: stop without the delay. They do not get SIGINT itself."""

log = structlog.get_logger()


class StartFailed(Exception):
    """A worker ended before it served; its log line says why."""


class Server(uvicorn.Server):
    """uvicorn's server with the shutdown of this module.

    `ready` is called once it serves. `last_request_at`: as in `Drain`, shared by the workers; only
    a worker has it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ready: Callable[[], None],
        last_request_at: ctypes.c_double | None = None,
    ) -> None:
        from markscheme_server.api.connections import (
            Connection,
            WaitingConnections,
            max_connections,
        )
        from markscheme_server.app import create_app  # here: the supervisor needs none of it

        self.worker = last_request_at is not None
        self.drain = Drain() if last_request_at is None else Drain(last_request_at=last_request_at)
        self.waiting = WaitingConnections(
            max_connections(sum(judge.concurrency for judge in settings.judges.values()))
        )
        super().__init__(
            uvicorn.Config(
                create_app(settings, drain=self.drain),
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                http=cast(Any, partial(Connection, waiting=self.waiting)),
                timeout_graceful_shutdown=IN_FLIGHT_S,
            )
        )
        self.delay_s, self.ready = settings.drain_delay_s, ready
        self._stop_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve. If that fails, close what was opened: uvicorn would leave it open."""
        try:
            await super().startup(sockets)
            tune_garbage_collector()
            sys.setswitchinterval(SWITCH_S)
            self.ready()
        except Exception:
            await (self.shutdown(sockets) if self.started else self.lifespan.shutdown())
            raise

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals, without raising them again at the end as uvicorn does: exit with 0."""
        handled = (
            (signal.SIGTERM, STOP_WITHOUT_DELAY)
            if self.worker
            else (signal.SIGTERM, signal.SIGINT, *_sighup())
        )
        before = {each: signal.signal(each, self.handle_exit) for each in handled}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down. Logs nothing: the interrupted code may hold the log's lock."""
        if self.drain.draining:
            if sig == signal.SIGHUP:
                return
            # Whoever sends a second signal does not want to wait.
            os._exit(128 + sig)
        self.drain.draining = True
        now = time.monotonic()
        # The delay is for a load balancer that still sends requests; without one it would be idle.
        watched = now - self.drain.last_request_at.value < RECENT_S
        delay_s = self.delay_s if sig in (signal.SIGTERM, signal.SIGHUP) and watched else 0.0
        self._stop_at = now + delay_s
        # The last resort, for the case that something hangs in spite of its own time limits.
        signal.signal(signal.SIGALRM, _exit_now)
        signal.setitimer(signal.ITIMER_REAL, delay_s + IN_FLIGHT_S + CLOSING_S)

    async def on_tick(self, counter: int) -> bool:
        """Run every 0.1 s: expire slow clients, and stop when it is time."""
        # A supervisor that was killed could not stop its workers.
        parent = multiprocessing.parent_process() if self.worker else None
        if parent is not None and not parent.is_alive() and not self.drain.draining:
            log.error("supervisor_gone")
            self.handle_exit(signal.SIGTERM, None)
        if counter % 10 == 0:
            self.waiting.expire(asyncio.get_running_loop().time())
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            log.info("stopping", in_flight=len(self.server_state.tasks))
            self.should_exit = True
        return await super().on_tick(counter)


def tune_garbage_collector() -> None:
    """Exempt long-lived objects from garbage collection, and collect less often.

    A batch creates tens of thousands of objects and hardly a cycle. Measured at the default
    thresholds: every third batch of stored verdicts waited 0.2 s, three times its own time, for a
    full collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _sighup() -> tuple[signal.Signals, ...]:
    """Return SIGHUP, unless the process was started with it ignored (`nohup`)."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


def _exit_now(_sig: int, _frame: FrameType | None) -> None:
    os.write(2, b'{"event": "end_cut_short", "level": "warning"}\n')
    os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 picks a free one.

    Raises:
        OSError: The address cannot be bound.
    """
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )
    # asyncio sets this for its own sockets only. Without it the body of a short answer waits 40 ms
    # for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def run_one(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve on `listener` in this process until a signal stops it."""
    Server(settings, ready=ready).run(sockets=[listener])


def run_workers(
    settings: Settings, level: logs.Level, listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve with `settings.workers` processes until a signal stops them.

    `ready` is called when all serve. Their metrics are files in a temporary folder.

    Raises:
        StartFailed: A worker could not start.
    """
    with tempfile.TemporaryDirectory(prefix="markscheme-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        Supervisor(settings, level, listener, folder).run(ready)


@dataclass(slots=True)
class Worker:
    """One worker process, and the end of a pipe that tells when it serves."""

    process: SpawnProcess
    pipe: connection.Connection
    serves: bool = False


class Supervisor:
    """Keeps `settings.workers` workers running, and stops them."""

    def __init__(
        self, settings: Settings, level: logs.Level, listener: socket.socket, metrics_folder: str
    ) -> None:
        self.settings, self.level, self.listener, self.metrics_folder = (
            settings,
            level,
            listener,
            metrics_folder,
        )
        self.workers: list[Worker] = []
        self._processes = multiprocessing.get_context("spawn")
        self._last_request_at = self._processes.RawValue(ctypes.c_double, -math.inf)
        self._kill_at: float | None = None
        self._signal = 0
        self._next_start_at = 0.0

    def run(self, ready: Callable[[], None]) -> None:
        """Run until a signal stops the workers; `ready` is called when all serve."""
        for each in (signal.SIGTERM, signal.SIGINT, *_sighup()):
            signal.signal(each, self._stop)
        announced = False
        try:
            while self.workers or not self._stopping:
                if not self._stopping and time.monotonic() >= self._next_start_at:
                    self._start_workers()
                # Wakes when a worker ends or begins to serve, else after 0.2 s for signals.
                connection.wait(
                    [w.process.sentinel for w in self.workers]
                    + [w.pipe for w in self.workers if not w.serves],
                    timeout=0.2,
                )
                for worker in list(self.workers):
                    self._check(worker, failing_is_fatal=not announced)
                if not announced and not self._stopping and all(w.serves for w in self.workers):
                    announced = True
                    ready()
                if self._stopping:
                    # Otherwise clients could connect when no worker accepts any more.
                    self.listener.close()
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    return
        finally:
            self._kill()

    @property
    def _stopping(self) -> bool:
        return self._kill_at is not None

    def _start_workers(self) -> None:
        while len(self.workers) < self.settings.workers:
            receiving, sending = multiprocessing.Pipe(duplex=False)
            process = self._processes.Process(
                target=_run_worker,
                args=(self.settings, self.level, self.listener, sending, self._last_request_at),
            )
            # The new process inherits blocked signals. A terminal sends these two to the whole
            # process group, but workers are to get only what `_stop` sends them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
            process.start()
            self.workers.append(Worker(process, receiving))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
            # Only the worker keeps this end, so that its death shows at the other one.
            sending.close()
            if self._stopping:
                # The signal came while this worker started, and went to the others only.
                return _send(self.workers[-1], self._signal)
        return None

    def _check(self, worker: Worker, *, failing_is_fatal: bool) -> None:
        """Note that a worker serves, or remove one that ended."""
        if not worker.serves and worker.pipe.poll():
            with suppress(EOFError):
                worker.serves = worker.pipe.recv()
        if worker.process.is_alive():
            return
        from prometheus_client.multiprocess import mark_process_dead

        self.workers.remove(worker)
        worker.pipe.close()
        mark_process_dead(worker.process.pid, self.metrics_folder)  # type: ignore[no-untyped-call]
        if self._stopping:
            return
        if failing_is_fatal and not worker.serves:
            raise StartFailed
        log.error("worker_ended", worker=worker.process.pid, status=worker.process.exitcode)
        # One that never served would probably fail again at once.
        self._next_start_at = 0.0 if worker.serves else time.monotonic() + RESTART_PAUSE_S

    def _stop(self, sig: int, _frame: FrameType | None) -> None:
        if self._stopping:
            if sig == signal.SIGHUP:
                return
            raise SystemExit(128 + sig)
        self._signal = STOP_WITHOUT_DELAY if sig == signal.SIGINT else signal.SIGTERM
        self._kill_at = time.monotonic() + self.settings.drain_delay_s + IN_FLIGHT_S + CLOSING_S + 1
        for worker in self.workers:
            _send(worker, self._signal)

    def _kill(self) -> None:
        for worker in self.workers:
            _send(worker, signal.SIGKILL)
        for worker in self.workers:
            worker.process.join()


def _send(worker: Worker, sig: int) -> None:
    if worker.process.exitcode is None and worker.process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(worker.process.pid, sig)


def _run_worker(
    settings: Settings,
    level: logs.Level,
    listener: socket.socket,
    pipe: connection.Connection,
    last_request_at: ctypes.c_double,
) -> None:
    """Run one worker process."""
    logs.configure(level)
    server = partial(Server, settings, last_request_at=last_request_at)
    try:
        server(ready=lambda: pipe.send(True)).run(sockets=[listener])
    except Exception:
        log.error("worker_failed", exc_info=True)
        sys.exit(1)
