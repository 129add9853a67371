"""Test the shipped compose file: build both images, train the demo, and kill parts of it.

    python -m deployment.compose

Needs a Docker engine with Compose 2.24 or later, but neither a GPU nor an API key. The project is
called ``markscheme-test``, so that other deployments on the machine are not touched. Everything
except the images is removed at the end, even after a failure. On an engine without a bridge
network, ``host-network.yml`` is added to the compose file.

In order: `preparation`, `images`, `access`, `training` (which calls `containment`), `upkeep`.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console

from deployment import access, images, training, upkeep
from deployment.preparation import POSTGRES, prepare
from deployment.project import OVERRIDE, PROJECT, ROOM, CannotRun, Run
from service.machine import describe, sentence
from service.report import markdown_table, today, write

RESULT = Path("benchmarks/results/compose")


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
    images.build(run)
    access.start_alone(run)
    training.start_demo(run)
    training.lose_the_service(run)
    training.lose_the_trainer(run)
    training.finish(run)
    upkeep.renew_the_key(run)
    upkeep.back_up_and_restore(run)
    upkeep.secrets_from_files(run)
    upkeep.stop(run)


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
