"""What `markscheme serve` checks before it serves; `test_server` has it as processes."""

import asyncio
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.judge import ScriptedJudge, text_of
from fakes.service import running
from fakes.shell import command
from markscheme_server.cli import server
from markscheme_server.config import Settings
from markscheme_server.store.store import Store
from server.organisation import PEPPER


@pytest.fixture
def home(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """Create a folder with a database, as ``migrate`` leaves it."""
    shutil.copy(migrated_sqlite, tmp_path / "markscheme.db")
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    """Listen on a port, so that a service which got that far ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_an_address_that_cannot_be_listened_on_is_named(home: Path, taken: int) -> None:
    for host, port, reason in (
        ("127.0.0.1", taken, "Address already in use"),
        ("192.0.2.1", 0, "Cannot assign requested address"),
    ):
        words = ("serve", "--host", host, "--port", str(port))
        settings = {"home": home, "api_key": "k" * 40}
        done = command(*words, directory=home, settings=settings)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == (
            f"cannot listen on {host}:{port}: {reason}; choose another with --host or --port"
        )


def test_a_key_that_is_not_set_is_named_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "markscheme.toml").write_text(
        '[judges.strong]\nmodel = "m"\napi_key_env = "NOT_SET_ANYWHERE"\n'
    )
    settings = {"home": tmp_path, "config": tmp_path / "markscheme.toml"}
    done = command("serve", "--port", "0", directory=tmp_path, settings=settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert "NOT_SET_ANYWHERE" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "markscheme.db").exists()


def test_a_probe_asks_each_judge_stores_what_it_enforces_and_leaves_the_teacher_alone(
    home: Path, judge: ScriptedJudge, taken: int
) -> None:
    def script(request: dict[str, Any], _number: int) -> str | int:
        schema = request.get("response_format", {}).get("json_schema", {}).get("schema", {})
        return 401 if not schema else json.dumps({"word": schema["properties"]["word"]["enum"][0]})

    judge.script = script
    settings = {
        "home": home,
        "judge_base_url": judge.url,
        "judge_model": "m",
        "teacher_base_url": judge.url,
        "teacher_model": "t",
    }
    words = ("serve", "--probe", "--port", str(taken))
    done = command(*words, directory=home, settings=settings)
    assert "ok  judge default: structured output: json_schema: enforced" in done.stderr
    assert [request["model"] for request in judge.requests] == ["m"]
    assert "weather" in text_of(judge.requests[0])

    async def stored() -> str | None:
        store = Store(f"sqlite+aiosqlite:///{home / 'markscheme.db'}")
        try:
            probe = await store.probes.find(judge.url.removeprefix("http://"), "m")
            return probe and probe.json_schema
        finally:
            await store.close()

    assert asyncio.run(stored()) == "enforced"

    judge.script = lambda request, number: 401
    done = command(*words, directory=home, settings=settings)
    assert "FAILED  judge default: the judge refused the key" in done.stderr
    # It serves all the same: scores wait for a judge, pages and rubrics do not.
    assert "cannot listen" in done.stderr


def test_beyond_loopback_a_key_is_asked_for_even_of_a_database_that_has_none(
    home: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Settings] = []

    def remember(settings: Settings, listener: socket.socket, ready: Any) -> None:
        served.append(settings)
        listener.close()

    monkeypatch.setattr(server, "run_one", remember)
    settings = {"home": home, "key_pepper": PEPPER}
    for words in (
        ("keys", "create", "--team", "default", "--scope", "read"),
        ("serve", "--host", "0.0.0.0", "--port", "0"),
    ):
        done = command(*words, directory=home, settings=settings)
        assert done.returncode == 0, done.stderr
    shutil.copy(migrated_sqlite, home / "markscheme.db")
    with running(served[0]) as url:
        assert httpx.get(f"{url}/v1/rubrics").status_code == 401


def test_workers_that_cannot_start_end_the_command_in_words(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_settings: Settings, _level: str, listener: socket.socket, _ready: Any) -> None:
        listener.close()
        raise server.StartFailed  # test_server_workers has when

    monkeypatch.setattr(server, "run_workers", fail)
    done = command(
        "serve", "--port", "0", "--workers", "2", directory=home, settings={"home": home}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "a worker could not start; the log above says why" in done.stderr
