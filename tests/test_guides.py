"""The guides are run: their `bash` and `python` blocks, in order, against a real service.

Where a `text` block follows, it is compared with what its block printed. A `…` in it stands for
anything, also for several lines. `markscheme` is forked from a process that has made its imports.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fakes import fork_server

DOCS = Path(__file__).parents[1] / "docs"
PEPPER = "a pepper for the guides"
BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "=== end of block ==="


def run(page: Path, url: str, home: Path) -> list[tuple[str, str | None]]:
    """Run a page's blocks as one script; all must succeed.

    Returns:
        For each block what it printed, and what the page says that it prints, if it says so.
    """
    script, shown = "", []
    for language, text in BLOCK.findall(page.read_text("utf-8")):
        if language == "text":
            shown[-1] = text
            continue
        shown.append(None)
        command = text if language == "bash" else f"python3 - <<'PYTHON'\n{text}PYTHON\n"
        script += f"{command}echo '{END}'\n"
    for address in ("localhost:8321", "127.0.0.1:8321"):
        script = script.replace(address, url.removeprefix("http://"))
    (commands := home / "commands").mkdir()
    server, variables = fork_server.for_scripts(commands)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=home,
        pass_fds=[server],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "MARKSCHEME_HOME": str(home),
            "MARKSCHEME_URL": url,
            "MARKSCHEME_KEY_PEPPER": PEPPER,
            **variables,
        },
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{END}\n")[:-1]
    return list(zip(printed, shown, strict=True))


def assert_as_shown(blocks: list[tuple[str, str | None]]) -> None:
    """Compare what was printed with what the page shows, white space aside."""
    for printed, shown in blocks:
        if shown is not None:
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in shown.split("…"))
            pattern = pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*")
            assert re.fullmatch(pattern, " ".join(printed.split())), f"{shown}\n---\n{printed}"


def test_the_quickstart_prints_what_it_shows(service: str, tmp_path: Path) -> None:
    blocks = run(DOCS / "quickstart.md", service, tmp_path)
    assert len([shown for _, shown in blocks if shown is not None]) == 8
    assert_as_shown(blocks)


def test_the_sdk_guide_prints_what_it_shows(service: str, tmp_path: Path) -> None:
    blocks = run(DOCS / "sdk.md", service, tmp_path)
    assert all(shown is not None for _, shown in blocks)
    assert len(blocks) == 7
    address = service.removeprefix("http://")
    assert_as_shown(
        [(printed.replace(address, "127.0.0.1:8321"), shown) for printed, shown in blocks]
    )


def test_two_teams_share_one_rubric(serve: Callable[..., str], tmp_path: Path) -> None:
    blocks = run(DOCS / "teams.md", serve(key_pepper=PEPPER), tmp_path)
    said = "".join(printed for printed, _ in blocks).splitlines()
    begin = said.index("blue reads it: 404")
    erased = said.index("team red is erased; this command removed:")
    (
        shared,
        found,
        chosen,
        origin,
        reward,
        forked,
        edge,
        hidden,
        cost,
        spent,
        taken_back,
        revoked,
        *listed,
    ) = said[begin + 1 : erased]
    assert (shared, origin, reward, forked, taken_back) == (
        "['blue']",
        "reused",
        "1.0",
        "blue",
        "[]",
    )
    assert (cost, spent) == ("0.0", "0.0")
    assert re.fullmatch(r"rub_[0-9a-f]+", chosen)
    assert (found, edge, hidden) == (chosen, "'fork'", "[]")
    assert re.fullmatch(r"mk_\w{8} of team blue is revoked", revoked)
    assert ["revoked" in line for line in listed] == [False, True, False]
    assert "blue's trainer" in listed[2]
    assert {name: int(rows) for rows, name in (line.split() for line in said[erased + 1 : -1])}[
        "rubrics"
    ] == 0
    assert said[-1].startswith("1 rubrics remain as ids"), "blue scored by it, and forked it"
