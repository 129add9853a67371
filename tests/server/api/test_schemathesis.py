"""Schemathesis drives the service from its own OpenAPI document (slow: ``make fuzz``)."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_service_keeps_its_contract(service: str, tmp_path: Path, seed: int) -> None:
    """All checks but one: a body may fit the schema and still contradict itself (two groups of one id)."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), "run", f"{service}/openapi.json", "--phases",
         "examples,coverage,fuzzing", "-n", "40", "--checks", "all", "--exclude-checks", "positive_data_acceptance",
         "--seed", str(seed)], capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
