"""The machine of a measurement: enough to compare runs, nothing that identifies it."""

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "markscheme",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "asyncpg",
    "aiosqlite",
    "redis",
    "openai",
    "aiohttp",
    "httpx",
    "pydantic",
)


def describe(packages: Sequence[str] = PACKAGES, **servers: str) -> dict[str, Any]:
    """Return cores, memory, Python, package versions and load; `servers` are added as given."""
    return {
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "cpu": _first(Path("/proc/cpuinfo"), r"^model name\s*: (.*)$"),
        "memory_gib": round(int(_first(Path("/proc/meminfo"), r"^MemTotal:\s*(\d+)") or 0) / 2**20),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "packages": {name: _version(name) for name in packages},
        **servers,
    }


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two descriptions may be of one machine: only then figures are compared."""
    return all(
        one.get(key) == other.get(key)
        for key in ("cores", "cores_allowed", "cpu", "memory_gib", "system")
    )


def sentence(machine: dict[str, Any]) -> str:
    """Return the description as one line for a report."""
    packages = ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if version
    )
    servers = "".join(
        f", {name} {machine[name.lower()]}"
        for name in ("PostgreSQL", "Redis")
        if name.lower() in machine
    )
    allowed = (
        ""
        if machine["cores_allowed"] == machine["cores"]
        else f" ({machine['cores_allowed']} of them allowed)"
    )
    return (
        f"{machine['cores']} cores{allowed} of {machine['cpu'] or 'an unnamed CPU'}, "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}{servers}; "
        f"{packages}; load average {machine['load_at_start']} at the start"
    )


def _first(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text(), re.MULTILINE) if path.exists() else None
    return found.group(1) if found else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
