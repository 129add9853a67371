"""Start `markscheme` commands without their imports, which take three seconds of CPU.

As a script, this is a process that has imported the service. It forks a child for each request, and
the child runs the command as if the test had started it: in a session, a folder and an environment
of its own, with the test's umask and limit of open files.

`CONSTANTS` in the environment holds other values for constants of the service, as JSON:
`{"markscheme_server.app.CLAIM_LEASE_S": 1}`.

The workers of `serve --workers` are forked too, from their supervisor. Prometheus' client decides
when it is imported whether several processes count together, so these commands have a server of
their own.
"""

import atexit
import gc
import json
import multiprocessing
import os
import pkgutil
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any, BinaryIO

INHERITED = "TEST_FORK_SERVER"
"""The variable that holds the descriptor of an inherited server."""
COUNTS_TOGETHER = "PROMETHEUS_MULTIPROC_DIR"


class ForkedProcess:
    """A command in a process of its own, with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: BinaryIO,
        errors: BinaryIO | None = None,
    ) -> None:
        """Start it. Without `errors` both streams go to `output`."""
        self.returncode: int | None = None
        self._reports, theirs = socket.socketpair()
        umask = os.umask(0)
        os.umask(umask)
        inherited = {"umask": umask, "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)}
        request = json.dumps(
            {"words": list(words), "cwd": str(cwd), "env": dict(env)} | inherited
        ).encode()
        server = _server("--workers" in words)
        with theirs:
            length = len(request).to_bytes(8, "big")
            files = [theirs, output, errors or output]
            socket.send_fds(server, [length], [file.fileno() for file in files])
            server.sendall(request)
        self.pid = self._read()

    def _read(self) -> int:
        """Read what is reported: the process id, later the exit status."""
        report = self._reports.recv(8, socket.MSG_WAITALL)
        if len(report) < 8:
            raise RuntimeError("the fork server has ended")
        return int.from_bytes(report, "big", signed=True)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; negative: the signal that ended the process."""
        if self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("markscheme", timeout or 0.0)
            self.returncode = self._read()
            self._reports.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status, or `None` while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, sent: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def for_scripts(folder: Path) -> tuple[int, dict[str, str]]:
    """Write a command `markscheme` that a shell script of the test finds in `folder`.

    Returns:
        The descriptor that the script must inherit, and variables of its environment.
    """
    command = folder / "markscheme"
    client = Path(__file__).with_name("markscheme_command.py")
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={client.parents[1]} exec {sys.executable} -S {client} "$@"\n'
    )
    command.chmod(0o755)
    server = _server(False)
    return server.fileno(), {INHERITED: str(server.fileno())}


@cache
def _server(several: bool) -> socket.socket:
    """Start this process's server at its first use, or take the one that it inherits.

    `several`: for commands whose processes count together.
    """
    if INHERITED in os.environ:
        return socket.socket(fileno=int(os.environ[INHERITED]))
    ours, theirs = socket.socketpair()
    folder = tempfile.TemporaryDirectory()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | ({COUNTS_TOGETHER: folder.name} if several else {}),
        )

    def close() -> None:
        ours.close()
        process.wait()
        folder.cleanup()

    atexit.register(close)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request until the other side closes; return in the children only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the test's process ends this one
    while True:
        length, descriptors, _flags, _address = socket.recv_fds(requests, 8, 3)
        if not length:
            sys.exit()
        request = json.loads(requests.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        child = os.fork()
        if child == 0:
            requests.close()
            return _become(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # removes what has ended


def _become(request: dict[str, Any], reports: int, output: int, errors: int) -> None:
    """Fork the command's process and return in it; the other one reports its id and its end."""
    process = os.fork()
    if process:
        os.write(reports, process.to_bytes(8, "big", signed=True))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.write(reports, status.to_bytes(8, "big", signed=True))
        os._exit(0)
    os.setsid()
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    os.umask(request["umask"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["open_files"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # as the new environment has it
    for standard, file in ((sys.stdout, output), (sys.stderr, errors)):
        os.dup2(file, standard.fileno())
        standard.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for descriptor in (reports, output, errors):
        os.close(descriptor)
    sys.argv = ["markscheme", *request["words"]]


class _Worker(ForkProcess):
    def run(self) -> None:
        """Serve, with signals as a process has them that was started anew."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        super().run()


class _Workers(ForkContext):
    Process = _Worker


def _set_constants() -> None:
    for name, value in json.loads(os.environ.get("CONSTANTS", "{}")).items():
        module, _, constant = name.rpartition(".")
        setattr(pkgutil.resolve_name(module), constant, value)


if __name__ == "__main__":
    import markscheme_server.api.connections
    import markscheme_server.app
    import markscheme_server.cli.server  # noqa: F401
    from markscheme.cli import main

    # Otherwise each child, at its end, goes through all that is imported: a second of CPU.
    gc.collect()
    gc.freeze()
    forks_workers = COUNTS_TOGETHER in os.environ
    _serve(socket.socket(fileno=int(sys.argv[1])))
    if forks_workers:
        multiprocessing.get_context = lambda method=None: _Workers()
    _set_constants()
    main()
