"""Test which files provide settings; a key is sent only to a URL from the same file."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fakes import shell
from fakes.judge import ScriptedJudge
from fakes.processes import environment
from fakes.shell import command
from markscheme_server.config import Settings

SHELLS = "sk-of-the-shell"
URL, KEY = "MARKSCHEME_JUDGE_BASE_URL", "MARKSCHEME_JUDGE_API_KEY"


def run(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in someone else's folder, with a separate home."""
    (folder.parent / "home").mkdir(exist_ok=True)
    kept = environment({"home": folder.parent / "home"})
    return shell.run(*words, directory=folder, variables=kept | variables)


def logged(done: subprocess.CompletedProcess[str], event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "downloaded"
    made.mkdir()
    return made


@pytest.mark.parametrize("words", [("doctor",), ("migrate",), ("teams", "list")])
def test_files_of_the_working_directory_are_not_read_and_that_is_said(
    words: tuple[str, ...], folder: Path, judge: ScriptedJudge
) -> None:
    if words == ("teams", "list"):
        run("migrate", folder=folder, MARKSCHEME_JUDGE="builtin")
    (folder / ".env").write_text(
        f"{URL}={judge.url}\nMARKSCHEME_JUDGE_MODEL=m\nMARKSCHEME_DATABASE_URL=sqlite:///x.db\n"
    )
    (folder / "markscheme.toml").write_text(
        f'[judges.evil]\nbase_url = "{judge.url}"\nmodel = "m"\n'
    )
    done = run(*words, folder=folder, OPENAI_API_KEY=SHELLS, MARKSCHEME_JUDGE="builtin")
    assert judge.requests == []
    assert not (folder / "x.db").exists()
    assert {Path(line["file"]).name for line in logged(done, "settings_not_read")} == {
        ".env",
        "markscheme.toml",
    }
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("migrate", "--env-file", "mine"),
        ("teams", "list", "--env-file", "mine"),
        ("teams", "--env-file", "mine", "list"),
        ("keys", "list", "--env-file", "mine"),
        ("doctor", "--env-file", "mine"),
        ("prune", "--older-than", "1d", "--yes", "--env-file", "mine"),
    ],
)
def test_a_file_is_read_where_it_is_named(words: tuple[str, ...], folder: Path) -> None:
    (folder / "mine").write_text(
        "MARKSCHEME_DATABASE_URL=sqlite:///named.db\nMARKSCHEME_JUDGE=builtin\n"
    )
    made = command("migrate", "--env-file", "mine", directory=folder, settings={})
    assert made.returncode == 0
    done = run(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "named.db").exists()
    assert [Path(line["file"]).name for line in logged(done, "settings_read")] == ["mine"]
    assert not (folder.parent / "home" / "markscheme.db").exists()


def test_files_of_the_home_are_read(folder: Path) -> None:
    home = folder.parent / "home"
    home.mkdir()
    (home / ".env").write_text("MARKSCHEME_WORKERS=none\n")
    done = run("migrate", folder=folder)
    assert done.returncode == 1
    assert "MARKSCHEME_WORKERS" in done.stderr
    (home / ".env").write_text("MARKSCHEME_JUDGE=builtin\n")
    (home / "markscheme.toml").write_text("[judges\n")
    assert "is not TOML" in run("migrate", folder=folder).stderr


def test_a_variable_for_all_of_a_teacher_is_said_to_be_none(folder: Path) -> None:
    done = run("migrate", folder=folder, MARKSCHEME_TEACHER="gpt-5")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "MARKSCHEME_TEACHER is not known; docs/configuration.md has those of a judge and a teacher"
    )


def test_a_file_of_another_encoding_is_named(folder: Path) -> None:
    (folder / "latin.env").write_bytes(b"MARKSCHEME_JUDGE_MODEL=\xe9\n")
    done = run("teams", "list", "--env-file", "latin.env", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "latin.env is not UTF-8"


def test_a_file_that_is_named_and_not_there_is_an_error(folder: Path) -> None:
    done = run("migrate", "--env-file", "absent", folder=folder)
    assert done.returncode == 2
    assert "absent" in done.stderr


@pytest.mark.parametrize(
    ("in_environment", "in_file", "url", "key"),
    [
        ({"OPENAI_API_KEY": SHELLS}, {URL: "http://elsewhere/v1"}, "http://elsewhere/v1", None),
        ({KEY: SHELLS}, {URL: "http://elsewhere/v1"}, "http://elsewhere/v1", None),
        ({"OPENAI_API_KEY": SHELLS}, {URL: "http://a/v1", KEY: "k-file"}, "http://a/v1", "k-file"),
        ({"OPENAI_API_KEY": SHELLS}, {"OPENAI_BASE_URL": "http://a/v1"}, "http://a/v1", None),
        ({"openai_api_key": SHELLS}, {URL: "http://a/v1"}, "http://a/v1", None),
        ({URL: "http://a/v1"}, {KEY: "k-file"}, "http://a/v1", None),
        ({URL: "http://a/v1", KEY: "k"}, {URL: "http://b/v1", KEY: "k-file"}, "http://a/v1", "k"),
        (
            {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k"},
            {KEY: "k-file"},
            "http://a/v1",
            "k",
        ),
        ({"OPENAI_API_KEY": SHELLS}, {"MARKSCHEME_JUDGE_MODEL": "m"}, None, SHELLS),
        ({}, {KEY: "k-file"}, None, "k-file"),
    ],
)
def test_key_and_url_come_from_one_source(
    in_environment: dict[str, str],
    in_file: dict[str, str],
    url: str | None,
    key: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "settings"
    file.write_text("".join(f"{name}={value}\n" for name, value in in_file.items()))
    monkeypatch.setenv("MARKSCHEME_JUDGE", "builtin")
    for name, value in in_environment.items():
        monkeypatch.setenv(name, value)
    found = Settings(_env_file=file)  # type: ignore[call-arg]
    given = found.default_judge.api_key
    assert found.default_judge.base_url == url
    assert (given.get_secret_value() if given else None) == key


def test_the_teachers_key_follows_its_url_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings"
    file.write_text("MARKSCHEME_TEACHER_BASE_URL=http://elsewhere/v1\n")
    monkeypatch.setenv("MARKSCHEME_TEACHER_API_KEY", SHELLS)
    assert Settings(_env_file=file).teacher.api_key is None  # type: ignore[call-arg]


def test_openais_key_goes_to_openai_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SHELLS)
    file = tmp_path / "judges.toml"
    file.write_text(
        '[judges.a]\nmodel = "m"\nbase_url = "http://elsewhere/v1"\n'
        'api_key_env = "OPENAI_API_KEY"\n'
        '[judges.b]\nmodel = "m"\napi_key_env = "OPENAI_API_KEY"\n'
        '[judges.c]\nmodel = "m"\nbase_url = "https://api.openai.com/v1"\n'
        'api_key_env = "OPENAI_API_KEY"\n'
    )
    found = Settings(config=file, judge="builtin")
    for name in ("b", "c"):
        key = found.key_of(name)
        assert key is not None
        assert key.get_secret_value() == SHELLS
    with pytest.raises(ValueError, match="a variable of its own"):
        found.key_of("a")


def test_doctor_sends_no_key_of_the_shell_to_a_url_of_a_file(
    folder: Path, judge: ScriptedJudge
) -> None:
    (folder / "theirs").write_text(f"{URL}={judge.url}\nMARKSCHEME_JUDGE_MODEL=scripted\n")
    done = run("doctor", "--env-file", "theirs", folder=folder, OPENAI_API_KEY=SHELLS)
    assert judge.requests != []
    assert SHELLS not in str(judge.keys)
    assert [line["key"] for line in logged(done, "key_not_used")] == ["OPENAI_API_KEY"]
    assert SHELLS not in done.stderr + done.stdout


@pytest.mark.parametrize("length", [3, 5, 8, 11, 20, 46])
def test_a_key_is_named_by_any_beginning_that_no_other_has(length: int, folder: Path) -> None:
    pepper = {"MARKSCHEME_KEY_PEPPER": "p" * 32}
    run("migrate", folder=folder)
    run("teams", "create", "red", folder=folder, **pepper)
    made = [
        run(
            "keys", "create", "--team", "red", "--scope", "read", folder=folder, **pepper
        ).stdout.split()[-1]
        for _ in range(2)
    ]
    done = run("keys", "revoke", made[0][:length], folder=folder, **pepper)
    shared = len(os.path.commonprefix(made))
    assert done.returncode == (0 if length > shared else 1)
    assert (made[0][:11] if length > shared else "begin like this") in done.stdout + done.stderr
    assert made[0] not in done.stdout + done.stderr
    if length > shared:
        rotated = run("keys", "rotate", made[1][:length], folder=folder, **pepper)
        assert rotated.returncode == 0, rotated.stderr
        assert made[1] not in rotated.stdout + rotated.stderr
    assert "no key" in run("keys", "revoke", "mk_!", folder=folder, **pepper).stderr
