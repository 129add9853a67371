"""Help and tables of the server's commands at 80 columns."""

import asyncio
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from markscheme_server.cli.doctor import doctor
from markscheme_server.cli.keys import keys
from markscheme_server.cli.migrate import migrate
from markscheme_server.cli.prune import prune
from markscheme_server.cli.serve import serve
from markscheme_server.cli.teams import teams
from markscheme_server.store.maintenance.migrate import prepare

PEPPER = "a pepper for the tests"


def application() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    for command in (serve, doctor, migrate, prune):
        app.command(command.__name__)(command)
    app.add_typer(teams, name="teams")
    app.add_typer(keys, name="keys")
    return app


def run(*words: str, **variables: str) -> str:
    done = CliRunner().invoke(
        application(), words, env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"} | variables
    )
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    "words", [(), ("serve",), ("doctor",), ("migrate",), ("prune",), ("teams",), ("keys",)]
)
def test_no_sentence_of_the_help_is_cut(words: tuple[str, ...]) -> None:
    shown = run(*words, "--help")
    assert not re.search(r"[ a-z,]\.\.\.$", shown, re.MULTILINE)
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_key_is_listed_with_its_whole_prefix_and_team(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'm.db'}"
    asyncio.run(prepare(f"sqlite+aiosqlite:///{tmp_path / 'm.db'}"))
    settings = {"MARKSCHEME_DATABASE_URL": url, "MARKSCHEME_KEY_PEPPER": PEPPER}
    team = "a-team-with-quite-a-long-name"
    run("teams", "create", team, **settings)
    made = run(
        *("keys", "create", "--team", team, "--scope", "read,score,induce,admin"),
        *("--label", "the training cluster of the second floor"),
        **settings,
    ).split()[-1]
    assert made[:11] in run("keys", "list", **settings)
    assert team in run("keys", "list", **settings)


def test_an_error_names_the_database_that_was_looked_in(tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    asyncio.run(prepare(f"sqlite+aiosqlite:///{database}"))
    for words in (
        ("teams", "budget", "nosuch"),
        ("keys", "create", "--team", "nosuch", "--scope", "read"),
    ):
        done = CliRunner().invoke(
            application(),
            words,
            env={
                "MARKSCHEME_DATABASE_URL": f"sqlite:///{database}",
                "MARKSCHEME_KEY_PEPPER": PEPPER,
            },
        )
        assert done.exit_code == 1
        assert "there is no team 'nosuch'" in done.output
        assert str(database) in done.output


def test_a_short_pepper_is_refused_in_words(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        application(),
        ["keys", "list"],
        env={"MARKSCHEME_HOME": str(tmp_path), "MARKSCHEME_KEY_PEPPER": "short"},
    )
    assert done.exit_code == 1
    assert "MARKSCHEME_KEY_PEPPER must have at least 16 characters" in done.output
