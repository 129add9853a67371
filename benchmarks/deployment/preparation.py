"""Find the engine and the images, and write the settings of a temporary deployment."""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from deployment.project import ADDRESS, OVERRIDE, ROOM, CannotRun, Run

POSTGRES = "postgres:17"
"""Default image of the compose file; if it cannot be pulled, a local image is used instead."""


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
