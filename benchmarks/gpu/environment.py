"""The machine and its packages: what was measured on, and what is missing.

    python -m gpu.environment --check      # print unmet requirements; status 1 if there are any
    python -m gpu.environment --out FILE   # as a part of the benchmark

`--check` imports nothing but `packaging`: it decides whether the carried wheels are installed.
"""

import importlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from gpu.part import Part, run_part

ROOT = Path(__file__).parents[2]
EXTRAS = ("server", "train")
NOT_CARRIED = ("torch",)
"""Used as the machine has it, in any version: a CUDA build is too large to carry."""
NAMED = (
    "torch",
    "triton",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "numpy",
    "pyarrow",
)

IMPORTED = ("trl.experimental.sdpo", "markscheme_train.training", "markscheme_server.app")
"""Packages that fail to import where versions do not fit together."""


def requirements() -> list[Requirement]:
    """Return what the project needs to train and to serve."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [project["optional-dependencies"][extra] for extra in EXTRAS]
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def unmet() -> list[str]:
    """Return requirements that this interpreter does not meet, with what it has."""
    found = [] if version("markscheme") else ["markscheme (missing)"]
    for needed in requirements():
        has = version(needed.name)
        if has is None:
            found.append(f"{needed} (missing)")
        elif needed.name not in NOT_CARRIED and not needed.specifier.contains(
            has, prereleases=True
        ):
            found.append(f"{needed} ({has} is installed)")
    return found


def version(name: str) -> str | None:
    """Return the installed version of a package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def card() -> dict[str, Any]:
    """Return the first CUDA device; its name is `None` without one."""
    import torch

    if not torch.cuda.is_available():
        return {"card": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "card_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver(),
    }


def driver() -> str | None:
    """Return the driver's version."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.splitlines()[0].strip()


def run(part: Part, directory: Path, small: bool) -> None:
    """Write the part."""
    from service.machine import describe

    part.machine = describe(NAMED)
    part.save()
    for line in unmet():
        part.note(f"requirement not met: {line}")
    part.machine |= card()
    part.save()
    for module in IMPORTED:
        importlib.import_module(module)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        missing = unmet()
        print("\n".join(missing))
        sys.exit(1 if missing else 0)
    run_part("gpu.environment", run)
