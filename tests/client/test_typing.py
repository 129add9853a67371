"""A user's file is accepted by type checkers, which find the types in the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

USER = Path(__file__).with_name("typed_user.py")
ROOT = Path(__file__).parents[2]
PACKAGES = ("client/markscheme", "client/markscheme_train", "services/markscheme_server")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Lay the SDK out as an installation does; a link would be followed to its sources."""
    shutil.copytree(ROOT / "client/markscheme", tmp_path / "site/markscheme")
    return tmp_path / "site"


def test_mypy_accepts_a_users_file(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-markscheme.*]\nfollow_imports = silent\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", USER],
        cwd=tmp_path,
        env={"MYPYPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("pyright") is None, reason="no pyright on the PATH")
def test_pyright_accepts_a_users_file(installed: Path, tmp_path: Path) -> None:
    config = {"typeCheckingMode": "strict", "extraPaths": [str(installed)], "include": [USER.name]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    shutil.copy(USER, tmp_path)
    done = subprocess.run(
        ["pyright", "-p", ".", "--pythonpath", sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
