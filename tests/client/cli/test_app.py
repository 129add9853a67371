"""The commands as a person runs them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fakes import shell
from fakes.judge import RUBRIC, ScriptedJudge, offered, text_of, verdicts
from fakes.processes import COMMAND, command
from markscheme import __version__
from markscheme.cli import app as cli

ROWS = [
    {
        "prompt": "Describe a tree. Do not use any commas.",
        "teacher_responses": ["A tall oak stands alone here"],
        "rollouts": ["A tall tree stands in the field", "A tree, tall, green, in the field"],
    },
    {
        "id": "mine",
        "prompt": "Tell me about the sea.",
        "rollouts": [{"text": "Deep.", "truncated": True}],
    },
]


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return shell.run(*words, directory=Path.cwd(), variables=os.environ | environment)


def test_score_writes_scored_lines_and_goes_on_where_it_stopped(
    service: str, tmp_path: Path
) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = run("score", str(file), "--url", service)
    assert done.returncode == 3, done.stderr
    lines = [
        json.loads(line) for line in (tmp_path / "rollouts.scored.jsonl").read_text().splitlines()
    ]
    assert [line["id"] for line in lines] == ["line-1", "mine"]
    rewards = [r["reward"] for r in lines[0]["rollouts"]]
    assert rewards[0] > rewards[1]
    assert (lines[1]["rollouts"][0]["reward"], lines[1]["rollouts"][0]["reason"]) == (
        None,
        "no_rubric",
    )
    assert "1 of 3 rollouts unscored" in done.stderr
    again = run("score", str(file), "--url", service)
    assert "1 groups are in" in again.stderr
    assert "1 with null rewards are asked for again" in again.stderr
    assert "1 no_rubric: There is no rubric" in again.stderr
    assert len((tmp_path / "rollouts.scored.jsonl").read_text().splitlines()) == 2


def test_score_names_the_bad_line_and_the_missing_service(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    done = run("score", str(file))
    assert done.returncode == 1
    assert "bad.jsonl, line 2" in done.stderr
    file.write_text(json.dumps(ROWS[0]) + "\n")
    done = run("score", str(file), "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "markscheme serve" in done.stderr


def test_doctor_says_what_works(judge: ScriptedJudge, tmp_path: Path) -> None:
    settings = {
        "MARKSCHEME_HOME": str(tmp_path),
        "OPENAI_BASE_URL": judge.url,
        "OPENAI_API_KEY": "sk-hidden",
        "OPENAI_MODEL": "scripted",
    }
    judge.script = lambda request, number: (
        verdicts(request, lambda c, t: c == "c1")
        if offered(request)
        else "It is mild."
        if "weather" in text_of(request)
        else json.dumps(RUBRIC)
    )
    done = run("doctor", **settings)
    assert done.returncode == 0, done.stdout
    assert "structured output: json_schema: accepted but ignored" in done.stdout
    assert "writes a rubric of 4 criteria" in done.stdout
    judge.script = lambda request, number: 401
    done = run("doctor", **settings)
    assert done.returncode == 1
    assert "MARKSCHEME_JUDGE_API_KEY" in done.stdout
    assert "sk-hidden" not in done.stdout + done.stderr


def test_serve_says_where_it_listens_and_ends_on_a_signal(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MARKSCHEME_HOME": str(tmp_path)},
    )
    assert process.stdout is not None
    assert re.fullmatch(r"listening on http://127\.0\.0\.1:\d+\n", process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_settings_that_cannot_work_are_explained(tmp_path: Path) -> None:
    done = command("serve", "--host", "0.0.0.0", directory=tmp_path, settings={"home": tmp_path})
    assert done.returncode == 1
    assert "MARKSCHEME_API_KEY" in done.stderr
    hidden = {"home": tmp_path, "judge_api_key": "sk-hidden"}
    done = command("serve", directory=tmp_path, settings=hidden)
    assert done.returncode == 1
    assert "MARKSCHEME_JUDGE_MODEL" in done.stderr
    assert "sk-hidden" not in done.stderr
    wrong = {"home": tmp_path, "judge_timeout_s": -1}
    done = command("serve", directory=tmp_path, settings=wrong)
    assert "MARKSCHEME_JUDGE_TIMEOUT_S" in done.stderr


def test_the_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"markscheme {__version__}\n")


def test_commands_of_other_packages_come_last_and_a_broken_one_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [
        EntryPoint("hello", "platform:python_version", cli.ENTRY_POINTS),
        EntryPoint("broken", "no_such_module:command", cli.ENTRY_POINTS),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: found)
    listed = run("--help")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.partition("\nOther:\n")[2].split()[:2] == ["hello", "broken"]
    assert run("hello").returncode == 0
    broken = run("broken", "--any", "option")
    assert (broken.returncode, broken.stderr) == (
        1,
        "'markscheme broken' cannot be loaded: No module named 'no_such_module'\n",
    )


def test_a_reader_that_left_ends_it_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["markscheme", "--version"])
    reading, writing = os.pipe()
    os.close(reading)
    output = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # both are replaced by what hears no errors
    with pytest.raises(SystemExit) as ended:
        cli.main()
    with contextlib.suppress(BrokenPipeError):
        output.close()
    assert ended.value.code == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MARKSCHEME_URL": "ftp://x"}, "--url (or MARKSCHEME_URL): "),
        ({"MARKSCHEME_API_KEY": "ключ"}, "MARKSCHEME_API_KEY"),
    ],
)
@pytest.mark.parametrize("words", [("runs",), ("rubrics", "import", "r.jsonl")])
def test_an_address_or_a_key_that_cannot_be_used_is_named(
    words: tuple[str, ...], variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "p"}\n')
    done = shell.run(*words, directory=tmp_path, variables=os.environ | variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
