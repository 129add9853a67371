"""What `markscheme` needs beside trainers: `make test-resolve` asks the package index."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TRAINERS = ["verl==0.9.1", "vllm==0.33.0", "unsloth==2026.10.9"]
FOREIGN = ["torch", "trl", "transformers", "datasets", "accelerate", "tenacity", "numpy"]


def resolve(tmp_path: Path, trainer: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask uv for versions that fit Markscheme and a trainer; nothing is installed."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv is not None, "needs uv: run `make test-resolve`"
    wanted = tmp_path / "trainer.in"
    wanted.write_text(trainer + "\n")
    return subprocess.run(
        [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate",
         "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28",
         str(ROOT / "pyproject.toml"), str(wanted), *options],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_markscheme_resolves_beside_a_trainer(trainer: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, trainer)
    assert found.returncode == 0, found.stderr
    resolved = dict(line.split("==") for line in found.stdout.split() if "==" in line)
    assert resolved[trainer.partition("==")[0]] == trainer.partition("==")[2]
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {requirement.partition(">=")[0] for requirement in base} <= resolved.keys()


@pytest.mark.slow
def test_the_trainer_resolves_with_vllm(tmp_path: Path) -> None:
    found = resolve(tmp_path, "trl", "--extra", "vllm")
    assert found.returncode == 0, found.stderr
    assert "\nvllm==0." in found.stdout


@pytest.mark.slow
def test_what_the_image_for_gpus_installs_is_complete_and_fits_together(tmp_path: Path) -> None:
    """Every dependency is in its locks: with hashes uv takes nothing that is not."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv is not None, "needs uv: run `make test-resolve`"
    locks = [f"--requirements=lock/{name}.txt" for name in ("vllm", "torch", "build")]
    found = subprocess.run(
        [uv, "pip", "install", "--dry-run", "--require-hashes", "--target", str(tmp_path),
         "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", *locks],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert " + vllm==0." in found.stderr


@pytest.mark.slow
def test_the_trainers_own_extra_does_not(tmp_path: Path) -> None:
    """Otherwise the reward would need no module of its own."""
    found = resolve(tmp_path, TRAINERS[0], "--extra", "train")
    assert found.returncode != 0
    assert "unsatisfiable" in found.stderr


def test_the_reward_imports_nothing_but_the_sdks_own_dependencies() -> None:
    code = f"""
import sys
for name in {FOREIGN}:
    sys.modules[name] = None  # an import of it fails
from types import SimpleNamespace
from markscheme import Client
from markscheme.integrations.trl import RubricReward

client = Client("http://127.0.0.1:9")
reward = RubricReward(client, num_generations=1, run_id="run", max_outage_s=0.0)
try:
    reward(prompts=["p"], completions=["a"], trainer_state=SimpleNamespace(global_step=0))
except Exception as error:
    assert type(error).__name__ == "ConnectionFailed", error
else:
    raise AssertionError("there is no service")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
