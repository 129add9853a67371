"""Test the shipped compose file: build both images, train the demo, and kill parts of it.

    python -m deployment.compose

Needs a Docker engine with Compose 2.24 or later, but neither a GPU nor an API key. The project is
called ``markscheme-test``, so that other deployments on the machine are not touched. Everything
except the images is removed at the end, even after a failure. On an engine without a bridge
network, ``host-network.yml`` is added to the compose file.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from service.machine import describe, sentence
from service.report import markdown_table, today, write

PROJECT = "markscheme-test"
POSTGRES = "postgres:17"
"""Default image of the compose file; if it cannot be pulled, a local image is used instead."""
ADDRESS = "127.0.0.1:58321"
ROOM = Path("build/compose-test")
RESULT = Path("benchmarks/results/compose")
OVERRIDE = Path(__file__).with_name("host-network.yml")
RUN = "/checkpoints/demo"
OUTAGE_S = 30
"""How long the service stays away: longer than a step on two cores, so that one has to wait."""
KILL_SERVICE_AT, KILL_TRAINER_AT = 2, 7
"""Steps; the demo saves every fifth."""
KILL = """
import os, signal
for name in os.listdir("/proc"):
    if name.isdigit() and name not in ("1", str(os.getpid())):
        if b"markscheme" in open(f"/proc/{name}/cmdline", "rb").read():
            os.kill(int(name), signal.SIGKILL)
"""
"""Kills the container's processes from inside, like a crash.

The engine does not restart a container that is killed from outside.
"""
HOLDERS = {
    "POSTGRES_PASSWORD": {"postgres", "migrate"},
    "POSTGRES_APP_PASSWORD": {"migrate", "trainer-key", "rubric"},
    "REDIS_PASSWORD": {"redis", "rubric"},
    "MARKSCHEME_API_KEY": {"rubric"},
    "MARKSCHEME_KEY_PEPPER": {"trainer-key", "rubric"},
}
"""The secrets of .env, and the services whose containers have each."""
FROM_FILES = {
    "redis": {"REDIS_PASSWORD_FILE": "REDIS_PASSWORD"},
    "migrate": {
        "MARKSCHEME_DATABASE_PASSWORD_FILE": "POSTGRES_APP_PASSWORD",
        "MARKSCHEME_MIGRATION_PASSWORD_FILE": "POSTGRES_PASSWORD",
    },
    "trainer-key": {
        "MARKSCHEME_DATABASE_PASSWORD_FILE": "POSTGRES_APP_PASSWORD",
        "MARKSCHEME_KEY_PEPPER_FILE": "MARKSCHEME_KEY_PEPPER",
    },
    "rubric": {
        "MARKSCHEME_API_KEY_FILE": "MARKSCHEME_API_KEY",
        "MARKSCHEME_DATABASE_PASSWORD_FILE": "POSTGRES_APP_PASSWORD",
        "MARKSCHEME_REDIS_PASSWORD_FILE": "REDIS_PASSWORD",
        "MARKSCHEME_KEY_PEPPER_FILE": "MARKSCHEME_KEY_PEPPER",
    },
}
"""By service, the variables that name a file, and the secret in it."""
FORBIDDEN = (
    "ALTER TABLE rubrics ADD COLUMN x int",
    "ALTER TABLE rubrics DISABLE ROW LEVEL SECURITY",
    "DROP TABLE verdicts",
    "TRUNCATE verdicts",
    "CREATE TABLE x (y int)",
    "CREATE ROLE x",
    "SET ROLE markscheme",
    "ALTER ROLE markscheme_app BYPASSRLS",
    "DELETE FROM audit_entries",
    "UPDATE audit_entries SET action = 'x'",
    "DELETE FROM alembic_version",
    "SELECT rolpassword FROM pg_authid",
    "COPY rubrics TO PROGRAM 'id'",
)
STATEMENTS = """
import asyncio, json, sys
import sqlalchemy as sa
from markscheme_server.config import Settings
from sqlalchemy.ext.asyncio import create_async_engine

async def allowed(url, statement):
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execute(sa.text(statement))
            await connection.rollback()
    except Exception as error:
        if getattr(getattr(error, "orig", error), "sqlstate", None) not in ("42501", "28P01"):
            raise
        return False
    finally:
        await engine.dispose()
    return True

async def main():
    url = sa.make_url(Settings().sqlalchemy_url)
    tries = [(url, statement) for statement in sys.argv[1:]]
    tries += [(url.set(username="markscheme"), "SELECT 'the owner'")]
    passed = [statement for as_whom, statement in tries if await allowed(as_whom, statement)]
    print(json.dumps(passed))

asyncio.run(main())
"""
"""Prints the statements that the service's role may execute; each is rolled back.

Runs in the service's container with its settings. One statement is tried as the owner, with the
service's password.
"""
CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print(address)
    except OSError:
        pass
"""
"""Prints the addresses to which a connection succeeds."""
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


def main() -> int:
    """Run all checks and write the result; the exit status says whether they passed."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    console = Console()
    try:
        run = prepare(console)
    except CannotRun as error:
        console.print(str(error), style="red", markup=False)
        return 1
    started, failure = time.monotonic(), None
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # what was started is taken down then, too
    try:
        go_through(run)
    except (CannotRun, httpx.HTTPError) as error:
        failure = f"{type(error).__name__}: {error}"
        console.print(failure, style="red", markup=False)
    except KeyboardInterrupt:
        failure = "stopped by hand"
    finally:
        console.print("Taking everything down …")
        run.compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)
    mine = ("--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
    left = run.docker("ps", "--all", *mine).stdout.split()
    volumes = run.docker("volume", "ls", *mine).stdout.split()
    run.expect(
        "everything is taken down",
        not left and not volumes,
        f"{len(left)} containers, {len(volumes)} volumes",
    )
    if failure == "stopped by hand":
        return 130
    for path in save(run, seconds=time.monotonic() - started, failure=failure):
        console.print(f"result: {path}")
    return int(failure is not None or not all(passed for _, passed, _ in run.checks))


def prepare(console: Console) -> Run:
    """Find the engine, choose the images, and write the settings of a temporary deployment."""
    if shutil.which("docker") is None:
        raise CannotRun(
            "there is no `docker` here: this test needs a Docker engine with Compose 2.24 or later"
        )
    shutil.rmtree(ROOM, ignore_errors=True)
    ROOM.mkdir(parents=True)
    # The passwords contain characters that would break an unquoted URL or configuration line. The
    # user's own settings must not reach the containers.
    given = {
        "POSTGRES_PASSWORD": f"p@ss:/{secrets.token_hex(12)}?#%",
        "POSTGRES_APP_PASSWORD": f"a@ss:/{secrets.token_hex(12)}?#%",
        "REDIS_PASSWORD": f'r"\\{secrets.token_hex(12)}?#%',
        "MARKSCHEME_KEY_PEPPER": secrets.token_hex(16),
        "MARKSCHEME_API_KEY": secrets.token_urlsafe(24),
    }
    write_settings(given)
    ours = (
        "MARKSCHEME_",
        "OPENAI_",
        "COMPOSE_",
        "TRAIN_",
        "POSTGRES_PASSWORD",
        "POSTGRES_APP_PASSWORD",
        "REDIS_PASSWORD",
        "HF_",
    )
    run = Run(
        console,
        {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"DOCKER_BUILDKIT": "1"},
        [],
        given,
    )
    if run.docker("info", check=False).returncode != 0:
        raise CannotRun("no Docker engine answers: start one, or set DOCKER_HOST")
    if run.docker("compose", "version", check=False).returncode != 0:
        raise CannotRun("`docker compose` is missing: install the Compose plugin, 2.24 or later")
    run.files = ["-f", "docker-compose.yml"]
    if not run.docker("network", "ls", "--quiet", "--filter", "driver=bridge").stdout.strip():
        console.print("The engine has no bridge network: the services use the host's.")
        run.files += ["-f", str(OVERRIDE)]
    stated = "POSTGRES_IMAGE" in run.environment
    if not stated and run.docker("image", "inspect", POSTGRES, check=False).returncode != 0:
        local = run.docker(
            "images", "--format", "{{.Repository}}:{{.Tag}}", "postgres"
        ).stdout.split()
        if local:
            run.environment["POSTGRES_IMAGE"] = local[0]
    find_torch(console)
    return run


def write_settings(given: dict[str, str]) -> None:
    """Write the .env of the deployment: these secrets, and what is the same each time."""
    lines = {**given, "MARKSCHEME_PUBLISH": ADDRESS, "COMPOSE_PROFILES": "cpu-demo"}
    (ROOM / "env").write_text("".join(f"{name}='{value}'\n" for name, value in lines.items()))


def find_torch(console: Console) -> None:
    """Place PyTorch's CPU wheel where the image build looks first, if pip finds one."""
    place = Path("wheels/cpu")
    if list(place.glob("*.whl")):
        return
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(ROOM / "torch"),
            "torch==2.13.0",
        ],
        check=False,
        capture_output=True,
    )
    for wheel in (ROOM / "torch").glob("*+cpu*.whl"):
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(wheel, place / wheel.name)
        console.print(f"PyTorch for the image: {wheel.name}")


def go_through(run: Run) -> None:
    """Run all checks, from the first start to the last stop of the deployment."""
    console = run.console
    console.print("Unfilled settings …")
    (ROOM / "empty").write_text("")
    refused = run.docker(
        "compose", "-p", PROJECT, "--env-file", str(ROOM / "empty"), *run.files, "up", check=False
    )
    run.expect(
        "without a filled .env nothing starts",
        refused.returncode != 0 and "fill in" in refused.stderr,
        refused.stderr.strip().splitlines()[-1].rpartition(": ")[2],
    )
    build(run)
    start_alone(run)
    start_demo(run)
    lose_the_service(run)
    lose_the_trainer(run)
    finish(run)
    renew_the_key(run)
    back_up_and_restore(run)
    secrets_from_files(run)
    stop(run)


def build(run: Run) -> None:
    """Both images, and what is in them."""
    run.console.print("Building both images (minutes the first time) …")
    for service, forbidden, needed in (
        ("rubric", ("torch", "transformers", "trl", "pip"), "markscheme_server.app"),
        ("demo", ("sqlalchemy", "fastapi", "redis", "openai"), "markscheme_train.training"),
    ):
        started = time.monotonic()
        with (ROOM / f"build-{service}.log").open("w") as log:
            run.compose(
                "build", service, capture_output=False, stdout=log, stderr=subprocess.STDOUT
            )
        image = json.loads(run.compose("config", "--format", "json").stdout)["services"][service][
            "image"
        ]
        what = json.loads(run.docker("image", "inspect", image).stdout)[0]
        base = json.loads(
            run.docker(
                "image", "inspect", os.environ.get("PYTHON_IMAGE", "python:3.11-slim")
            ).stdout
        )[0]
        run.figure(
            f"image {image}",
            f"{what['Size'] / 1e6:.0f} MB, {(what['Size'] - base['Size']) / 1e6:.0f} MB of it "
            f"above its Python image; built in {time.monotonic() - started:.0f} s",
        )
        seen = run.docker(
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "python",
            image,
            "-c",
            (
                "import os, importlib, importlib.util as u\n"
                f"importlib.import_module({needed!r})\n"
                f"print(os.getuid(), *[n for n in {forbidden!r} if u.find_spec(n)])"
            ),
        ).stdout.split()
        run.expect(
            f"{image} imports {needed}, has no {', '.join(forbidden)}, and is not root",
            seen[0] != "0" and len(seen) == 1,
            f"user {seen[0]}, found {seen[1:] or 'none of them'}",
        )


def start_alone(run: Run) -> None:
    """Start the service as documented, without a trainer, and check who gets access."""
    run.console.print("Starting PostgreSQL, Redis and the service …")
    started = time.monotonic()
    run.compose("up", "--detach", "--wait", "rubric")
    run.figure(
        "start of PostgreSQL, Redis and the service, until it is ready",
        f"{time.monotonic() - started:.0f} s",
    )
    states = {service: found["State"] for service, found in run.containers().items()}
    run.expect(
        "`docker compose up rubric` starts the service, what it needs, and nothing else",
        set(states) == {"postgres", "redis", "migrate", "rubric"}
        and states["migrate"]["ExitCode"] == 0,
        ", ".join(f"{service} {state['Status']}" for service, state in sorted(states.items())),
    )
    judges = [line for line in run.log("rubric").splitlines() if line.startswith("judge")]
    run.expect(
        "the service says at its start which judge it has", len(judges) == 1, "; ".join(judges)
    )
    keys = (run.secrets["MARKSCHEME_API_KEY"], "wrong", "")
    codes = [run.call("GET", "/v1/rubrics", key).status_code for key in keys]
    run.expect(
        "the service answers to the operator's key and to no other",
        codes == [200, 401, 401],
        f"{codes[0]} with it, {codes[1]} with another, {codes[2]} without",
    )
    held = run.query(
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.rolname = a.usename "
        "WHERE r.rolname = 'markscheme_app' AND NOT (r.rolsuper OR r.rolbypassrls)"
    )
    run.expect(
        "the service works as a role that row-level security holds for",
        int(held) > 0,
        f"{held} connections as markscheme_app",
    )
    allowed = json.loads(run.python("rubric", STATEMENTS, "SELECT 1", *FORBIDDEN))
    run.expect(
        "the service's role can change no table, role or audit entry, and its password is not "
        "the owner's",
        allowed == ["SELECT 1"],
        f"refused: {len(FORBIDDEN)} statements, and to log in as the owner"
        if allowed == ["SELECT 1"]
        else f"allowed: {allowed}",
    )
    password = run.secrets["REDIS_PASSWORD"]
    said = [redis_says(run, given) for given in ("", "wrong", password)]
    shown = password in run.docker("top", run.container("redis"), "-eo", "pid,args").stdout
    run.expect(
        "Redis refuses who has no password or another, and no command line shows it",
        "NOAUTH" in said[0] and "WRONGPASS" in said[1] and said[2] == "PONG" and not shown,
        "; ".join(words[:60] for words in said),
    )


def redis_says(run: Run, password: str) -> str:
    """Return Redis's answer to a ping with this password; an empty one sends none."""
    return " ".join(
        run.compose(
            "exec",
            "-T",
            "-e",
            f"REDISCLI_AUTH={password}",
            "redis",
            "sh",
            "-c",
            'test -n "$REDISCLI_AUTH" || unset REDISCLI_AUTH; '
            'redis-cli -p "${REDIS_PORT:-6379}" ping 2>&1',
        ).stdout.split()
    )


def start_demo(run: Run) -> None:
    """Start the training, and look at how every container is held."""
    run.console.print("Training SmolLM2 in a container (about ten minutes) …")
    run.compose("up", "--detach", "demo")
    run.wait(lambda: bool(run.log().strip()), within_s=60, what="the trainer's first line")
    first = run.log().splitlines()[0]
    run.expect(
        "the trainer says what it will do before it does it",
        first.startswith("Trains SmolLM2-135M") and "judge in .env: none" in first,
        first,
    )
    run.expect(
        "every container is confined: no capabilities but PostgreSQL's to start, none to be "
        "gained, bounded logs, a read-only root but for the demo's",
        *confinement(run),
    )
    run.expect(
        "no container runs as root, none has a capability, and none can write to its root",
        *processes(run),
    )
    wrong = [
        f"{name} in {', '.join(sorted(found))}"
        for name, holders in HOLDERS.items()
        if (found := run.holders(run.secrets[name])) != holders
    ]
    run.expect(
        "each secret is in the containers that need it: the owner's of the database in PostgreSQL "
        "and `migrate` only, the operator's key in the service only",
        not wrong,
        "; ".join(wrong)
        or f"{len(HOLDERS)} secrets, searched for in all that the engine knows of a container",
    )
    trainers_key(run)
    reach(run)


def confinement(run: Run) -> tuple[bool, str]:
    """How the engine holds each container of the project."""
    faults = []
    found = run.containers()
    for service, container in found.items():
        host = container["HostConfig"]
        held = {
            "read-only root": host["ReadonlyRootfs"] or service == "demo",
            "drops all capabilities": host["CapDrop"] == ["ALL"],
            "adds none": service == "postgres" or not host["CapAdd"],
            "no-new-privileges": "no-new-privileges:true" in host["SecurityOpt"]
            and not host["Privileged"],
            "bounded logs": {"max-size", "max-file"} <= set(host["LogConfig"]["Config"]),
        }
        faults += [f"{service}: {what}" for what, so in held.items() if not so]
    return not faults, f"not so: {faults}" if faults else ", ".join(sorted(found))


def processes(run: Run) -> tuple[bool, str]:
    """As whom the first process of each running container runs, and what it may do."""
    faults, users = [], []
    for service, container in sorted(run.containers().items()):
        if not container["State"]["Running"]:
            continue
        status = run.compose("exec", "-T", service, "cat", "/proc/1/status").stdout.splitlines()
        fields = {
            name: value.split() for name, _, value in (line.partition(":") for line in status)
        }
        users.append(f"{service} {fields['Uid'][0]}")
        held = {
            "root": "0" in fields["Uid"],
            "capabilities": int(fields["CapEff"][0], 16) != 0,
            "can gain privileges": fields["NoNewPrivs"] != ["1"],
            "writes to its root": run.compose(
                "exec", "-T", service, "sh", "-c", "echo > /probe", check=False
            ).returncode
            == 0,
        }
        faults += [f"{service}: {what}" for what, so in held.items() if so]
    return not faults, f"{faults}" if faults else "users: " + ", ".join(users)


def trainers_key(run: Run) -> None:
    """Check what the trainer's key can do."""
    key = run.compose("exec", "-T", "demo", "cat", "/keys/trainer").stdout.strip()
    stored = run.query("SELECT team || ': ' || (scopes::text) FROM api_keys")
    others = (
        ("GET", "/v1/rubrics"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/teams"),
    )
    codes = {f"{method} {path}": run.call(method, path, key).status_code for method, path in others}
    run.expect(
        "the trainer has a key of its own, to score and to induce and nothing else",
        stored == 'trainer: ["score", "induce"]' and set(codes.values()) == {403},
        f"{stored}; " + ", ".join(f"{call} {code}" for call, code in codes.items()),
    )


def reach(run: Run) -> None:
    """Check which containers a trainer can connect to, by name and by address.

    The service makes the same attempts and succeeds, which shows that they can succeed.
    """
    what = "a trainer reaches the service, and neither PostgreSQL nor Redis"
    if str(OVERRIDE) in run.files:
        run.figure(what, "not tried: on this engine all containers share the host's network")
        return
    data = ["postgres:5432", "redis:6379"]
    for service, port in (("postgres", 5432), ("redis", 6379)):
        networks = run.containers()[service]["NetworkSettings"]["Networks"].values()
        data += [f"{network['IPAddress']}:{port}" for network in networks]
    reached = {
        service: run.python(service, CONNECT, "rubric:8321", *data).split()
        for service in ("demo", "rubric")
    }
    run.expect(
        what,
        reached["demo"] == ["rubric:8321"] and reached["rubric"] == ["rubric:8321", *data],
        f"of {', '.join(data)} the service reaches {len(reached['rubric']) - 1}, "
        f"the trainer {len(reached['demo']) - 1}",
    )


def lose_the_service(run: Run) -> None:
    """Kill the service between two steps, and bring it back."""
    run.wait(
        lambda: len(run.steps()) >= KILL_SERVICE_AT, within_s=900, what=f"step {KILL_SERVICE_AT}"
    )
    before = run.steps()
    run.console.print(f"Killing the service after step {before[-1]['step']}, for {OUTAGE_S} s …")
    run.compose("kill", "--signal", "KILL", "rubric")
    time.sleep(OUTAGE_S)
    during = run.steps()
    run.compose("up", "--detach", "--wait", "--no-deps", "rubric")
    took = run.wait(
        lambda: len(run.steps()) >= len(during) + 2, within_s=300, what="two steps after the outage"
    )
    state = run.state("demo")
    lines = [
        line for line in run.log().splitlines() if line.startswith("waiting for the rubric service")
    ]
    run.expect(
        "a killed service only delays the training",
        state["State"]["Running"] and state["RestartCount"] == 0 and bool(lines),
        f"the trainer waited ({len(lines)} tries), was not restarted, and had done two more steps "
        f"{took:.0f} s after the service was back",
    )


def lose_the_trainer(run: Run) -> None:
    """Kill the trainer's process during a step; its restart policy must start it again."""
    run.wait(
        lambda: len(run.steps()) >= KILL_TRAINER_AT, within_s=900, what=f"step {KILL_TRAINER_AT}"
    )
    last, rows = run.steps()[-1]["step"], run.counts()["rollouts"]
    run.console.print(f"Killing the trainer's process after step {last} …")
    marks = len(run.log().splitlines())
    run.compose("exec", "-T", "demo", "python", "-c", KILL, check=False)
    run.wait(
        lambda: any(line.startswith("step ") for line in run.log().splitlines()[marks:]),
        within_s=600,
        what="a step of the resumed training",
    )
    first = next(
        line for line in run.log().splitlines()[marks:] if line.startswith("step ")
    ).split()[1]
    step = int(first.partition("/")[0])
    restarts = run.state("demo")["RestartCount"]
    run.expect(
        "a killed trainer is restarted and goes on from its checkpoint",
        restarts == 1 and 1 < step <= last + 1,
        f"killed after step {last}, {restarts} restart, went on with step {step}",
    )
    run.figure("rollouts stored when the trainer was killed", str(rows))


def finish(run: Run) -> None:
    """Wait for the end; look at the rewards and into the database."""
    took = run.wait(
        lambda: not run.state("demo")["State"]["Running"], within_s=1800, what="the end of the demo"
    )
    run.figure("from the resumed step to the end", f"{took:.0f} s")
    state = run.state("demo")
    ended = (
        state["State"]["ExitCode"] == 0
        and not state["State"]["Restarting"]
        and state["RestartCount"] == 1
    )
    run.expect(
        "the trainer ends with 0 and stays ended",
        ended,
        f"status {state['State']['ExitCode']}, {state['RestartCount']} restart",
    )

    def read(name: str) -> str:
        return run.compose(
            "run", "--rm", "--no-deps", "--entrypoint", "cat", "demo", f"{RUN}/{name}"
        ).stdout

    records = [json.loads(line) for line in read("run/steps.jsonl").splitlines()]
    run.expect(
        "every step happened once",
        [r["step"] for r in records] == list(range(1, records[-1]["steps"] + 1)),
        f"{len(records)} steps of {records[-1]['rollouts']} rollouts",
    )
    summary = json.loads(read("summary.json"))
    known = sum(record["rollouts"] - record["unscored"] for record in records)
    explained = all(sum(record["reasons"].values()) == record["unscored"] for record in records)
    run.expect(
        "every reward is known, or null with a reason",
        explained and known > 0,
        f"{known} known, {sum(r['unscored'] for r in records)} null with a reason",
    )
    run.expect(
        "the rewards rose",
        summary["reward_after"] > summary["reward_before"],
        f"{summary['reward_before']:.2f} to {summary['reward_after']:.2f} on the prompts trained "
        f"on (± {summary['reward_after_se']:.2f}), {summary['heldout_before']:.2f} to "
        f"{summary['heldout_after']:.2f} held out",
    )
    counts = run.counts()
    run.expect(
        "rubrics and verdicts are in PostgreSQL",
        counts["rubrics"] > 0 and counts["verdicts"] > 0,
        ", ".join(f"{count:,} {table}" for table, count in counts.items()),
    )
    for service in ("rubric", "postgres", "redis"):
        used = run.docker(
            "stats", "--no-stream", "--format", "{{.MemUsage}}", run.container(service)
        ).stdout
        run.figure(f"memory of `{service}` after the training", used.partition(" /")[0].strip())
    trained = int(
        run.query(
            "SELECT count(*) FROM rollouts r JOIN assignments a ON a.id = r.assignment_id "
            "WHERE a.step IS NOT NULL"
        )
    )
    expected = sum(record["rollouts"] for record in records)
    run.expect(
        "no rollout was stored twice, none was lost",
        trained == expected,
        f"{trained} of the training in the database, {expected} trained on",
    )


def back_up_and_restore(run: Run) -> None:
    """Check the commands of docs/deploy.md for backup and restore."""
    run.console.print("Backing PostgreSQL up, dropping the database, and restoring it …")
    before, dump = run.counts(), ROOM / "markscheme.dump"
    with dump.open("wb") as file:
        run.compose(
            "exec",
            "-T",
            "postgres",
            "pg_dump",
            "-U",
            "markscheme",
            "-Fc",
            "markscheme",
            capture_output=False,
            stdout=file,
        )
    first = rubrics(run)
    run.compose("stop", "rubric")
    for command in ("dropdb", "createdb"):
        run.compose("exec", "-T", "postgres", command, "-U", "markscheme", "markscheme")
    with dump.open("rb") as file:
        run.compose(
            "exec",
            "-T",
            "postgres",
            "pg_restore",
            "-U",
            "markscheme",
            "--exit-on-error",
            "-d",
            "markscheme",
            stdin=file,
        )
    run.compose("up", "--detach", "--wait", "--no-deps", "rubric")
    after = run.counts()
    run.expect(
        "a backup restores everything",
        before == after and rubrics(run) == first,
        f"{dump.stat().st_size / 1e6:.1f} MB, {sum(after.values()):,} rows; the service answers "
        "as before",
    )


def rubrics(run: Run) -> Any:
    """Return the service's list of the newest rubrics."""
    return (
        run.call("GET", "/v1/rubrics", run.secrets["MARKSCHEME_API_KEY"]).raise_for_status().json()
    )


def renew_the_key(run: Run) -> None:
    """Revoke the trainer's key and make a new one, as an operator does after a leak."""
    read = ("run", "--rm", "--no-deps", "--entrypoint", "cat", "demo", "/keys/trainer")
    old = run.compose(*read).stdout.strip()
    run.compose("up", "--no-deps", "trainer-key")
    same = run.compose(*read).stdout.strip() == old
    run.compose("exec", "-T", "rubric", "markscheme", "keys", "revoke", old[:11])
    run.wait(
        lambda: run.call("GET", "/v1/rubrics", old).status_code == 401,
        within_s=5,
        what="the end of a revoked key",
    )
    run.compose("up", "--no-deps", "trainer-key")
    new = run.compose(*read).stdout.strip()
    again = run.call("GET", "/v1/rubrics", new).status_code
    run.expect(
        "the trainer's key stays, and a new one is made when it was revoked",
        same and new != old and again == 403,
        f"the revoked one is answered 401, the new one {again} where it lacks the scope",
    )


def secrets_from_files(run: Run) -> None:
    """Start again with every secret in a file: .env has a word in its place."""
    run.console.print("Starting again with secrets from files …")
    folder = (ROOM / "secrets").resolve()
    folder.mkdir()
    for name, value in run.secrets.items():
        (folder / name).write_text(value + "\n")
    write_settings(dict.fromkeys(run.secrets, "in-a-file"))
    services = {
        service: {
            "environment": {variable: f"/run/secrets/{name}" for variable, name in given.items()},
            "secrets": sorted(set(given.values())),
        }
        for service, given in FROM_FILES.items()
    }
    (ROOM / "secrets.json").write_text(
        json.dumps(
            {
                "services": services,
                "secrets": {name: {"file": str(folder / name)} for name in run.secrets},
            }
        )
    )
    run.files += ["-f", str(ROOM / "secrets.json")]
    run.compose("up", "--detach", "--wait", "rubric")
    run.compose("up", "--no-deps", "trainer-key")
    keys = (run.secrets["MARKSCHEME_API_KEY"], "in-a-file")
    codes = [run.call("GET", "/v1/rubrics", key).status_code for key in keys]
    said = [redis_says(run, given) for given in ("in-a-file", run.secrets["REDIS_PASSWORD"])]
    held = {service for name in HOLDERS for service in run.holders(run.secrets[name])}
    ended = {
        service: run.state(service)["State"]["ExitCode"] for service in ("migrate", "trainer-key")
    }
    run.expect(
        "secrets from files do as well, and then the engine knows none of them",
        codes == [200, 401]
        and "WRONGPASS" in said[0]
        and said[1] == "PONG"
        and not held
        and not any(ended.values()),
        f"the service answers {codes[0]} to the key in the file, {codes[1]} to the word in .env; "
        f"Redis {said[1]} to the password in the file; "
        f"containers that show a secret: {', '.join(sorted(held)) or 'none'}",
    )


def stop(run: Run) -> None:
    """End the service as an operator does."""
    started = time.monotonic()
    run.compose("stop", "rubric")
    took, code = time.monotonic() - started, run.state("rubric")["State"]["ExitCode"]
    run.expect(
        "the service ends by itself within its 30 s",
        code == 0 and took < 30,
        f"status {code} after {took:.0f} s",
    )


def save(run: Run, *, seconds: float, failure: str | None) -> list[Path]:
    """Write the dated result as Markdown and JSON."""
    machine = describe(("markscheme",))
    engine = run.docker("version", "--format", "{{.Server.Version}}").stdout.strip()
    compose = run.docker("compose", "version", "--short").stdout.strip()
    network = (
        "the host's network (the engine has no bridge)"
        if str(OVERRIDE) in run.files
        else "a bridge network"
    )
    lines = [
        f"# `docker compose` for real, {today()}",
        "",
        f"`make compose-test`: Docker {engine}, Compose {compose}, {network}, "
        f"{run.environment.get('POSTGRES_IMAGE', POSTGRES)}; {sentence(machine)}. "
        f"{seconds / 60:.0f} minutes.",
        "",
        *([f"**It did not come to its end:** {failure.splitlines()[0]}", ""] if failure else []),
        *markdown_table(
            ("what should be", "", "what was"),
            [(what, "yes" if passed else "**no**", detail) for what, passed, detail in run.checks],
        ),
        "",
        *markdown_table(("figure", "measured"), run.figures),
    ]
    return write(
        RESULT,
        "\n".join(lines) + "\n",
        {
            "date": today(),
            "machine": machine,
            "docker": engine,
            "compose": compose,
            "seconds": round(seconds),
            "failure": failure,
            "checks": run.checks,
            "figures": run.figures,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
