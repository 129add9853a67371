"""The guides are run: every ``bash`` block of a page, in order, as one script against a real service."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs"
PEPPER = "a pepper for the guides"


def run(guide: str, url: str, home: Path) -> list[str]:
    """What the page's commands print, line by line; they must all succeed."""
    script = "\n".join(
        re.findall(
            r"^```bash\n(.*?)^```$", (GUIDES / guide).read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
    )
    done = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script.replace("localhost:8321", url.removeprefix("http://")),
        ],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MARKSCHEME_HOME": str(home),
            "MARKSCHEME_KEY_PEPPER": PEPPER,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_teams_one_rubric(serve: Callable[..., str], tmp_path: Path) -> None:
    said = run("teams.md", serve(key_pepper=PEPPER), tmp_path)
    begin = said.index("blue reads it: 404")
    erased = said.index("team red is erased; removed by this command:")
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
    assert said[-1].startswith("1 rubrics are left as ids"), "blue scored by it, and forked it"
