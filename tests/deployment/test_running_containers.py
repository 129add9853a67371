"""The shipped compose file in a Docker engine; `make compose-test` is the same run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def engine_answers() -> bool:
    """Whether there is a Docker engine with Compose."""
    return shutil.which("docker") is not None and all(
        subprocess.run(["docker", *words], capture_output=True, check=False, timeout=60).returncode
        == 0
        for words in (("info",), ("compose", "version"))
    )


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_whole_pipeline_in_confined_containers(
    record_property: Callable[[str, str], None],
) -> None:
    if not engine_answers():
        pytest.skip("no Docker engine with Compose")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'benchmarks'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "deployment.compose"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    result = json.loads((ROOT / "benchmarks/results/compose.json").read_text("utf-8"))
    record_property("figure", f"{len(result['checks'])} checks in running containers")
