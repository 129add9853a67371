"""Build both images, and look at what is in them."""

import json
import os
import subprocess
import time

from deployment.project import ROOM, Run


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
