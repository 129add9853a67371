"""`markscheme teams`, `keys` and `usage`, as a shell runs them."""

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fakes import processes
from fakes.shell import command
from fakes.stores import PostgresServer
from markscheme import Client
from markscheme_server import logs
from markscheme_server.cli import teams as administration
from markscheme_server.cli.teams import teams
from markscheme_server.domain import keys
from server.deployment import CALL_USD, CRITERIA, Deployment, run, score
from server.organisation import PEPPER, PROMPT


@pytest.fixture
def home(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """Create a folder with a database, as the service or ``migrate`` leaves it."""
    shutil.copy(migrated_sqlite, tmp_path / "markscheme.db")
    return tmp_path


class TestCommands:
    """``markscheme teams`` and ``markscheme keys``, as a shell runs them."""

    def run(self, folder: Path, *words: str, pepper: str | None = PEPPER) -> Any:
        settings = {"home": folder} | ({"key_pepper": pepper} if pepper else {})
        if words[0] == "serve":  # if it did start, only a process of its own could be ended
            return processes.command(*words, directory=folder, settings=settings)
        return command(*words, directory=folder, settings=settings)

    def test_make_list_rotate_revoke(self, home: Path) -> None:
        assert "red" in self.run(home, "teams", "create", "red").stdout
        again = self.run(home, "teams", "create", "red")
        assert (again.returncode, "already" in again.stderr) == (1, True)
        made = self.run(
            home,
            "keys",
            "create",
            "--team",
            "red",
            "--scope",
            "read,score",
            "--scope",
            "induce",
            "--expires",
            "90d",
            "--label",
            "anna",
        )
        key = made.stdout.splitlines()[-1]
        assert keys.is_well_formed(key)
        assert key not in made.stderr
        new = self.run(
            home, "keys", "rotate", keys.prefix(key), "--overlap", "1h"
        ).stdout.splitlines()[-1]
        assert "revoked" in self.run(home, "keys", "revoke", keys.prefix(key)).stdout
        listed = self.run(home, "keys", "list", "--team", "red").stdout.splitlines()
        assert [line.split()[0] for line in listed] == [
            "prefix",
            keys.prefix(new),
            keys.prefix(key),
        ]
        assert "read,score,induce" in listed[1]
        assert "revoked" in listed[2]
        assert [
            line.split()[0] for line in self.run(home, "teams", "list").stdout.splitlines()
        ] == ["team", "default", "red"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (
                ("keys", "create", "--team", "nobody", "--scope", "read"),
                "database: .*markscheme.db\nthere is no team 'nobody'\n",
            ),
            (
                ("keys", "list", "--team", "defualt"),
                r"there is no team 'defualt'; did you mean 'default'\?",
            ),
            (("teams", "limit", "defalt", "--rpm", "5"), r"did you mean 'default'\?"),
            (("teams", "budget", "defalt"), r"did you mean 'default'\?"),
            (("teams", "budget", "defalt", "--remove"), "there is no team 'defalt'"),
            (("teams", "budget", "default", "--run", "r7"), "no budget of a run 'r7'"),
            (("teams", "erase", "nobody", "--yes"), "there is no team 'nobody'"),
            (("keys", "create", "--team", "default", "--scope", "all"), "there is no scope 'all'"),
            (
                ("keys", "create", "--team", "default", "--scope", "read", "--expires", "soon"),
                "give an age such as",
            ),
            (
                (
                    "keys",
                    "create",
                    "--team",
                    "default",
                    "--scope",
                    "read",
                    "--expires",
                    "2001-01-01",
                ),
                "is in the past",
            ),
            (
                ("keys", "create", "--team", "default", "--scope", "read", "--label", ""),
                "--label: give 1 to 200 characters",
            ),
            (("teams", "erase", "default"), "there is no terminal to ask at: add --yes to erase"),
            (("keys", "revoke", "mk_12345678"), "there is no key"),
            (("teams", "create", "Red Team"), "cannot be a team"),
        ],
    )
    def test_what_cannot_be_done_is_said(
        self, words: tuple[str, ...], said: str, home: Path
    ) -> None:
        done = self.run(home, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.search(said, done.stderr)

    def test_a_key_that_has_expired_is_listed_as_such(self, home: Path) -> None:
        words = ("keys", "create", "--team", "default", "--scope", "read", "--expires")
        for age in ("90d", "1h"):
            assert self.run(home, *words, age).returncode == 0
        with closing(sqlite3.connect(home / "markscheme.db")) as database, database:
            database.execute(
                "UPDATE api_keys SET expires_at = '2026-01-31 10:00:00.000000' "
                "WHERE expires_at = (SELECT min(expires_at) FROM api_keys)"
            )
        newer, older = self.run(home, "keys", "list").stdout.splitlines()[1:]
        assert "expired 2026-01-31 " in newer
        assert re.search(r"until 20\d\d-\d\d-\d\d \d\d:\d\d ", older)

    def test_without_a_pepper(self, home: Path) -> None:
        done = self.run(home, "keys", "create", "--team", "default", "--scope", "read", pepper=None)
        assert (done.returncode, done.stdout) == (1, "")
        assert "MARKSCHEME_KEY_PEPPER" in done.stderr

    def test_the_service_does_not_start_where_it_could_not_guard(self, home: Path) -> None:
        beyond = self.run(home, "serve", "--host", "0.0.0.0", "--port", "0")
        assert (beyond.returncode, "without a key" in beyond.stderr) == (1, True)
        self.run(home, "keys", "create", "--team", "default", "--scope", "read")
        unpeppered = self.run(home, "serve", "--port", "0", pepper=None)
        assert (unpeppered.returncode, "MARKSCHEME_KEY_PEPPER" in unpeppered.stderr) == (1, True)


COMMANDS = [
    ("teams", "list"),
    ("teams", "create", "red"),
    ("teams", "budget", "default"),
    ("keys", "list"),
    ("keys", "create", "--team", "default", "--scope", "read"),
    ("prune", "--older-than", "9d", "--yes"),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_makes_no_database_in_passing(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "markscheme.db"
    settings = {"home": file.parent, "key_pepper": PEPPER}
    done = command(*words, directory=tmp_path, settings=settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no database {file}" in done.stderr
    assert "'markscheme migrate' creates it" in done.stderr
    assert not file.exists()


@pytest.mark.parametrize("words", COMMANDS)
def test_a_database_without_tables_is_not_filled_in_passing(
    words: tuple[str, ...], tmp_path: Path, postgres: PostgresServer
) -> None:
    name = f"without_tables_{COMMANDS.index(words)}"
    settings = {"database_url": postgres.create(name), "key_pepper": PEPPER}
    done = command(*words, directory=tmp_path, settings=settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"/{name} has no tables of Markscheme" in done.stderr
    assert (
        postgres.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name)
        == []
    )


def test_a_postgresql_database_that_does_not_exist_is_not_made(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    done = command(
        "teams", "list", directory=tmp_path, settings={"database_url": postgres.url("x")}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "MARKSCHEME_DATABASE_URL" in done.stderr
    assert postgres.query("SELECT datname FROM pg_database WHERE datname = 'x'") == []


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_says_which_database_it_opened(
    words: tuple[str, ...], database_url: str, tmp_path: Path
) -> None:
    settings = {"database_url": database_url, "key_pepper": PEPPER}
    done = command(*words, directory=tmp_path, settings=settings)
    assert done.returncode == 0, done.stderr
    name = database_url.removeprefix("sqlite:///")
    assert f"database: {name}\n" in done.stderr


def test_the_password_of_the_database_is_not_said(database_url: str, tmp_path: Path) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has no passwords")
    settings = {"database_url": database_url.replace("markscheme@", "markscheme:planted@")}
    done = command("teams", "list", directory=tmp_path, settings=settings)
    assert "database: postgresql://markscheme" in done.stderr
    assert "planted" not in done.stderr + done.stdout


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_commands_show_usage_and_set_budgets(deployment: Deployment, tmp_path: Any) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        client.create_rubric(PROMPT, CRITERIA)
    score(url, red, ["Red."], run=run("nightly"))
    shown = command(
        "usage", "--group-by", "run", "--url", url, directory=tmp_path, settings={"api_key": red}
    )
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"nightly +1 +0 +10 +4 +5 +{CALL_USD:.4f}", shown.stdout)
    settings = {"database_url": deployment.url}
    made = command(
        "teams",
        "budget",
        "red",
        "--hard-usd",
        "2",
        "--window",
        "day",
        directory=tmp_path,
        settings=settings,
    )
    assert re.search(rf"\(all\) +day +2 +- +{CALL_USD:.4f} +20", made.stdout), made.stderr
    for words, said in (
        (("red", "--hard-usd", "1", "--soft-usd", "2"), "cannot be larger"),
        (("green", "--hard-usd", "1"), "there is no team"),
        (("red", "--window", "day"), "give --hard-usd"),
        (("red", "--remove", "--run", "r"), "no budget of a run 'r'"),
    ):
        refused = command("teams", "budget", *words, directory=tmp_path, settings=settings)
        assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
    assert deployment.admin(url, "GET", "/v1/teams/red/budget").json()["hard_usd"] == 2.0
    run_budget = ("red", "--run", "nightly", "--soft-usd", "3")
    command("teams", "budget", *run_budget, directory=tmp_path, settings=settings)
    of_run = command(
        "teams", "budget", "red", "--run", "nightly", directory=tmp_path, settings=settings
    )
    (line,) = of_run.stdout.splitlines()[1:]
    assert line.split()[:4] == ["nightly", "total", "-", "3"]
    command("teams", "budget", *run_budget[:3], "--remove", directory=tmp_path, settings=settings)
    gone = command("teams", "budget", "red", "--remove", directory=tmp_path, settings=settings)
    assert "no budget" in gone.stdout
    wrong = command(
        "usage", "--group-by", "colour", "--url", url, directory=tmp_path, settings={"api_key": red}
    )
    assert wrong.returncode == 1
    assert "'colour' is not one of team, run" in wrong.stderr


def test_the_command_sets_how_far_a_team_reuses(home: Path) -> None:
    def run(*words: str) -> str:
        return command("teams", *words, directory=home, settings={"home": home}).stdout

    assert run("set", "default", "--reuse-scope", "own") == "team default has the reuse scope own\n"
    assert run("list").splitlines()[1].split() == ["default", "-", "own"]
    run("set", "default", "--default")
    assert run("list").splitlines()[1].split() == ["default", "-", "-"]


@pytest.mark.parametrize(
    "words", [(), ("--reuse-scope", "own", "--default"), ("--reuse-scope", "mine")]
)
def test_a_command_that_sets_nothing_or_what_there_is_not_fails(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(teams, ["set", "default", *words])
    assert done.exit_code != 0
    assert "--reuse-scope" in done.stderr


def test_the_command_limits_a_team(home: Path) -> None:
    def run(*words: str) -> str:
        return command("teams", *words, directory=home, settings={"home": home}).stdout

    assert (
        run("limit", "default", "--rpm", "600") == "team default may send 600 requests a minute\n"
    )
    assert run("list").splitlines()[1].split() == ["default", "600", "-"]


@pytest.mark.parametrize("words", [(), ("--rpm", "5", "--default"), ("--rpm", "0")])
def test_a_command_that_says_no_limit_or_two_does_nothing(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(teams, ["limit", "default", *words])
    assert done.exit_code != 0
    assert "--rpm" in done.stderr


def test_the_command_asks_and_erases(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)  # where no .env lies
    monkeypatch.setenv("MARKSCHEME_HOME", str(home))
    monkeypatch.setattr(logs, "configure", lambda level="info": None)

    def run(*words: str, answer: str | None = None) -> Any:
        monkeypatch.setattr(administration, "_is_terminal", lambda: answer is not None)
        return CliRunner().invoke(administration.teams, words, input=answer)

    assert run("create", "red").exit_code == 0
    for unwilling, said in (
        (run("erase", "red"), "--yes"),
        (run("erase", "red", answer="n\n"), "nothing was erased"),
    ):
        assert (unwilling.exit_code, said in unwilling.output) == (1, True)
    assert "red" in run("list").output
    done = run("erase", "red", answer="y\n")
    assert (done.exit_code, "team red is erased" in done.output) == (0, True)
    assert [line.split()[0] for line in run("list").stdout.splitlines()] == ["team", "default"]
    own = run("erase", "default", "--yes")
    assert (own.exit_code, "markscheme prune" in own.output) == (1, True)
