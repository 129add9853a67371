"""Running the service, as one process or as several on one socket, and ending it without breaking a request.

SIGTERM, or SIGHUP when its terminal is closed: ``/readyz`` says 503 at once, so that a balancer sends no more here;
requests are still taken for
``drain_delay_s``, the time the balancer needs to notice; then the socket closes, what is in flight gets
``IN_FLIGHT_S`` to finish, resources are closed, and the exit status is 0. Whatever hangs, it is over within
``drain_delay_s + IN_FLIGHT_S + CLOSING_S``, less than the 30 s that orchestrators allow.

The delay is left out where nobody would use it: on SIGINT (a person at a terminal waits for nothing but requests in
flight), and when no request, a balancer's probe included, came within the last ``RECENT_S``. A second signal ends
everything at once, but for SIGHUP: a closing terminal sends it more than once. Under ``nohup`` it is ignored.

With several workers the first process serves nothing: it owns the socket, starts a worker again when one dies, and
passes signals on. uvicorn's own supervisor is not used: it looks at signals every half second, waits seconds for a
frozen worker while the others wait for their signal, and has no place for this ending.
"""

import asyncio
import gc
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
"""Before a worker that never came up is tried again: its database may be away for a while."""
SWITCH_S = 0.0005
"""How long a thread that runs checks keeps the interpreter from the event loop, which lets go of it whenever it sends
or receives. At Python's 5 ms a probe that takes 2 ms took 97 ms beside two such threads, on a busy machine."""
HURRY = signal.SIGUSR1
"""From the first process to its workers: end without the delay. The terminal's own SIGINT is kept from them."""

log = structlog.get_logger()


class StartFailed(Exception):
    """A worker ended before it ever served; its log line says why."""


class Server(uvicorn.Server):
    """uvicorn's server with the ending that this module describes. ``ready`` is called once it serves."""

    def __init__(
        self, settings: Settings, *, ready: Callable[[], None], worker: bool = False
    ) -> None:
        from markscheme_server.api.connections import Connection, Waiting, most_connections
        from markscheme_server.app import (
            create_app,  # a first process with workers needs none of it
        )

        self.drain = Drain()
        self.waiting = Waiting(
            most_connections(sum(judge.concurrency for judge in settings.judges.values()))
        )
        super().__init__(
            uvicorn.Config(
                create_app(settings, drain=self.drain),
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=64 * 1024,
                ws="none",
                http=cast(Any, partial(Connection, waiting=self.waiting)),
                timeout_graceful_shutdown=IN_FLIGHT_S,
            )
        )
        self.delay_s, self.ready, self.worker = settings.drain_delay_s, ready, worker
        self._stop_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _settle_memory()
        sys.setswitchinterval(SWITCH_S)
        self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals; unlike uvicorn's, do not raise them again at the end: a drained process exits with 0."""
        handled = (
            (signal.SIGTERM, HURRY) if self.worker else (signal.SIGTERM, signal.SIGINT, *_hangup())
        )
        before = {each: signal.signal(each, self.handle_exit) for each in handled}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. Nothing is logged here: the interrupted code may hold the log's lock."""
        if self.drain.draining:
            if sig == signal.SIGHUP:
                return
            os._exit(128 + sig)
        self.drain.draining = True
        now, last = time.monotonic(), self.drain.last_request_at
        watched = last is not None and now - last < RECENT_S
        delay_s = self.delay_s if sig in (signal.SIGTERM, signal.SIGHUP) and watched else 0.0
        self._stop_at = now + delay_s
        signal.signal(signal.SIGALRM, _cut_short)
        signal.setitimer(signal.ITIMER_REAL, delay_s + IN_FLIGHT_S + CLOSING_S)

    async def on_tick(self, counter: int) -> bool:
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


def _settle_memory() -> None:
    """Spare the collector what stays for the process's life, and let it look less often.

    A batch makes tens of thousands of objects and hardly a cycle; at the default thresholds every third batch of
    stored verdicts waited 0.2 s, three times its own time, for a full collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _hangup() -> tuple[signal.Signals, ...]:
    """SIGHUP, unless whoever started the process had it ignored."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


def _cut_short(_sig: int, _frame: FrameType | None) -> None:
    os.write(2, b'{"event": "end_cut_short", "level": "warning"}\n')
    os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one. Raises :class:`OSError` when the address cannot be had.

    Its connections send at once. asyncio would see to that, but not for a socket that was made outside of it, and
    then the body of a short answer waits 40 ms for the other side to confirm the head.
    """
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def run_one(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve on ``listener`` in this process until a signal ends it."""
    Server(settings, ready=ready).run(sockets=[listener])


def run_workers(
    settings: Settings, level: logs.Level, listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve with ``settings.workers`` processes until a signal ends them; ``ready`` is called when all serve.

    Raises :class:`StartFailed` when one cannot begin. Their metrics are files of a folder that goes with us.
    """
    with tempfile.TemporaryDirectory(prefix="markscheme-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        Supervisor(settings, level, listener, folder).run(ready)


@dataclass(slots=True)
class Worker:
    """One worker process, and the end of the pipe on which it says that it serves."""

    process: SpawnProcess
    says: connection.Connection
    serves: bool = False


class Supervisor:
    """Keeps as many workers as the settings ask for, and ends them."""

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
        self._give_up_at: float | None = None
        self._signal = 0
        self._next_start_at = 0.0

    def run(self, ready: Callable[[], None]) -> None:
        for each in (signal.SIGTERM, signal.SIGINT, *_hangup()):
            signal.signal(each, self._end)
        announced = False
        try:
            while self.workers or not self._ending:
                if not self._ending and time.monotonic() >= self._next_start_at:
                    self._fill()
                connection.wait(
                    [w.process.sentinel for w in self.workers]
                    + [w.says for w in self.workers if not w.serves],
                    timeout=0.2,
                )
                for worker in list(self.workers):
                    self._look_at(worker, failing_is_fatal=not announced)
                if not announced and not self._ending and all(w.serves for w in self.workers):
                    announced = True
                    ready()
                if self._ending:
                    self.listener.close()
                if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
                    return
        finally:
            self._kill()

    @property
    def _ending(self) -> bool:
        return self._give_up_at is not None

    def _fill(self) -> None:
        while len(self.workers) < self.settings.workers:
            receiving, sending = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(
                target=_work, args=(self.settings, self.level, self.listener, sending)
            )
            # A blocked signal stays so in what is started here: a terminal sends these two to the whole group, and
            # what the workers should hear of it comes from us.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
            process.start()
            self.workers.append(Worker(process, receiving))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
            sending.close()
            if (
                self._ending
            ):  # the signal came while it was being started, and was passed on to the others only
                return _send(self.workers[-1], self._signal)
        return None

    def _look_at(self, worker: Worker, *, failing_is_fatal: bool) -> None:
        """Note whether it serves now, or has ended: then its place is free."""
        if not worker.serves and worker.says.poll():
            with suppress(EOFError):
                worker.serves = worker.says.recv()
        if worker.process.is_alive():
            return
        from prometheus_client.multiprocess import mark_process_dead

        self.workers.remove(worker)
        worker.says.close()
        mark_process_dead(worker.process.pid, self.metrics_folder)  # type: ignore[no-untyped-call]
        if self._ending:
            return
        if failing_is_fatal and not worker.serves:
            raise StartFailed
        log.error("worker_ended", worker=worker.process.pid, status=worker.process.exitcode)
        self._next_start_at = 0.0 if worker.serves else time.monotonic() + RESTART_PAUSE_S

    def _end(self, sig: int, _frame: FrameType | None) -> None:
        if self._ending:
            if sig == signal.SIGHUP:
                return
            raise SystemExit(128 + sig)
        self._signal = HURRY if sig == signal.SIGINT else signal.SIGTERM
        self._give_up_at = (
            time.monotonic() + self.settings.drain_delay_s + IN_FLIGHT_S + CLOSING_S + 1
        )
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


def _work(
    settings: Settings, level: logs.Level, listener: socket.socket, says: connection.Connection
) -> None:
    """A worker's whole life."""
    logs.configure(level)
    try:
        Server(settings, ready=lambda: says.send(True), worker=True).run(sockets=[listener])
    except Exception:
        log.error("worker_failed", exc_info=True)
        sys.exit(1)
