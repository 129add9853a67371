"""The Compose project under test: how to talk to it, and what was found."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

PROJECT = "markscheme-test"
ADDRESS = "127.0.0.1:58321"
ROOM = Path("build/compose-test")
OVERRIDE = Path(__file__).with_name("host-network.yml")
RUN = "/checkpoints/demo"
COUNTED = ("rubrics", "verdicts", "assignments", "rollouts", "prompts", "texts")


class CannotRun(Exception):
    """What is missing, and what to do."""


@dataclass
class Run:
    """One pass through the pipeline: how to talk to it, and what was found."""

    console: Console
    environment: dict[str, str]
    files: list[str]
    secrets: dict[str, str]
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    def compose(
        self, *words: str, check: bool = True, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``docker compose`` on the test's project.

        Raises :class:`CannotRun` with the engine's error output.
        """
        return self.docker(
            "compose",
            "-p",
            PROJECT,
            "--env-file",
            str(ROOM / "env"),
            *self.files,
            *words,
            check=check,
            **options,
        )

    def docker(
        self, *words: str, check: bool = True, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``docker``. Raises :class:`CannotRun` if it fails and ``check`` is true."""
        done = subprocess.run(
            ["docker", *words],
            env=self.environment,
            text=True,
            check=False,
            **{"capture_output": True, **options},
        )
        if check and done.returncode != 0:
            raise CannotRun(
                f"docker {' '.join(words)} ended with {done.returncode}:\n"
                f"{(done.stderr or '')[-2000:]}"
            )
        return done

    def state(self, service: str) -> dict[str, Any]:
        """Return what the engine reports of a service's container."""
        found: dict[str, Any] = json.loads(self.docker("inspect", self.container(service)).stdout)[
            0
        ]
        return found

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return what the engine reports of all containers, also stopped ones, by service."""
        found = json.loads(
            self.docker("inspect", *self.compose("ps", "--all", "--quiet").stdout.split()).stdout
        )
        return {
            container["Config"]["Labels"]["com.docker.compose.service"]: container
            for container in found
        }

    def holders(self, secret: str) -> set[str]:
        """Return the services whose containers reveal this text through the engine."""
        text = json.dumps(secret)[1:-1]
        return {
            service for service, found in self.containers().items() if text in json.dumps(found)
        }

    def python(self, service: str, code: str, *words: str) -> str:
        """Run a script in a service's container and return its output."""
        return self.compose("exec", "-T", service, "python", "-c", code, *words).stdout

    def call(self, method: str, path: str, key: str) -> httpx.Response:
        """Send a request to the service from outside; an empty ``key`` sends no key."""
        return httpx.request(
            method,
            f"http://{ADDRESS}{path}",
            trust_env=False,
            timeout=30,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def query(self, sql: str) -> str:
        """Run a query as the database's owner and return its output."""
        return self.compose(
            "exec", "-T", "postgres", "psql", "-U", "markscheme", "-At", "-c", sql
        ).stdout.strip()

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table in ``COUNTED``."""
        return {table: int(self.query(f"SELECT count(*) FROM {table}")) for table in COUNTED}  # noqa: S608

    def steps(self) -> list[dict[str, Any]]:
        """Return the records of the steps that the running trainer has finished."""
        read = self.compose("exec", "-T", "demo", "cat", f"{RUN}/run/steps.jsonl", check=False)
        return [json.loads(line) for line in read.stdout.splitlines() if line.endswith("}")]

    def log(self, service: str = "demo") -> str:
        """Return what a service has printed."""
        # Compose's own `logs` command would add prefixes.
        return self.docker("logs", self.container(service)).stdout

    def expect(self, what: str, passed: bool, detail: str) -> None:
        """Record and print whether a check passed."""
        self.checks.append((what, passed, detail))
        self.console.print(f"  {'[green]ok[/]' if passed else '[red]FAILED[/]'}  {what}: ", end="")
        self.console.print(detail, markup=False, highlight=False)

    def figure(self, what: str, value: str) -> None:
        """Record and print a measured value."""
        self.figures.append((what, value))
        self.console.print(f"      {what}: {value}", markup=False, highlight=False)

    def wait(self, until: Callable[[], bool], *, within_s: float, what: str) -> float:
        """Wait until a condition holds, and return the seconds that took.

        Raises :class:`CannotRun` when time runs out.
        """
        started = time.monotonic()
        while not until():
            if time.monotonic() - started > within_s:
                raise CannotRun(
                    f"{what}: not within {within_s:.0f} s. The trainer's last words:\n"
                    f"{self.log()[-2000:]}"
                )
            time.sleep(1)
        return time.monotonic() - started
