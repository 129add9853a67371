"""``markscheme induce`` and ``teach``: what is printed of failures, and of Ctrl-C."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fakes.shell import command
from markscheme import teaching
from markscheme.cli import induce
from markscheme.induction import Inductions

NO_RULES = {"teacher_responses": ["Deep."], "student_responses": ["Blue."]}
"""Of prompts about the sea; the rules know no criterion for them."""


def run(service: str, folder: Path, *words: str, rows: int = 1) -> Any:
    lines = [NO_RULES | {"prompt": f"Tell me about sea {n}."} for n in range(rows)]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    name, *options = words
    return command(name, "p.jsonl", *options, directory=folder, settings={"url": service})


def interrupt(*_arguments: object, **_options: object) -> NoReturn:
    raise KeyboardInterrupt


def test_of_many_rows_that_fail_the_first_are_shown_and_all_counted(
    shared_service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(induce, "SHOWN_FAILURES", 2)
    done = run(shared_service, tmp_path, "induce", "--concurrency", "1", rows=4)
    assert done.returncode == 3
    assert [f"p.jsonl, line {n}: " in done.stderr for n in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert "0 rubrics induced, 4 rows failed" in " ".join(done.stderr.split())


def test_ctrl_c_says_how_to_go_on(
    shared_service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inductions, "induce", interrupt)
    monkeypatch.setattr(teaching, "teach_all", interrupt)
    for name in ("induce", "teach"):
        done = run(shared_service, tmp_path, name)
        assert (done.returncode, done.stdout) == (130, "")
        assert "stopped; run the command again to go on. 0 " in done.stderr
