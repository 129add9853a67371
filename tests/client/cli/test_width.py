"""What the commands print fits 80 columns, and cuts no id and no key."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from client.scripted import RUBRIC, Reply, ScriptedService
from markscheme.cli.app import COMMANDS, app

ID = "rub_01a2178620a99dfa5178a1b2c3d4e5f6"
BUCKET: dict[str, Any] = {
    "calls": 12,
    "failed_calls": 0,
    "unpriced_calls": 0,
    "prompt_tokens": 123456,
    "cached_tokens": 0,
    "completion_tokens": 3210,
    "cost_usd": 0.0123,
    "cached_verdicts": 40,
    "saved_usd": 0.0456,
}


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


def shown(service: ScriptedService, *words: str, columns: int = 80) -> list[str]:
    """Return the lines that a command prints on a terminal of this width."""
    done = CliRunner().invoke(
        app, [*words, "--url", service.url], env={"COLUMNS": str(columns), "TERM": "dumb"}
    )
    assert done.exit_code == 0, done.output
    return [line.rstrip() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_search_shows_whole_ids_and_all_fields(service: ScriptedService, columns: int) -> None:
    prompt = [{"role": "user", "content": "Describe autumn in a way that takes its time. " * 3}]
    rubric = RUBRIC | {"id": ID, "prompt": prompt, "tags": ["poems", "week-47"]}
    page = {"object": "list", "data": [rubric], "has_more": False, "quality": {ID: 0.5}}
    service.replies = [Reply(lines=[page])]
    lines = shown(service, "rubrics", "search", columns=columns)
    text = "\n".join(lines)
    for part in (ID, "1", "default", "0.50", "poems week-47", "Describe autumn"):
        assert part in text
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("run", ["night-1", "a-rather-long-name-of-a-training-run-2026-11-26-b3"])
def test_usage_shows_its_keys(service: ScriptedService, columns: int, run: str) -> None:
    data = [
        BUCKET | {"run": run, "role": "verifier"},
        BUCKET | {"run": run, "calls": 0, "prompt_tokens": 0, "cost_usd": 0.0},
    ]
    report = {"object": "usage", "since": None, "until": None, "data": data, "total": BUCKET}
    service.replies = [Reply(lines=[report | {"truncated": False}])]
    lines = shown(service, "usage", "--group-by", "run,role", columns=columns)
    text = "\n".join(lines)
    for part in (run, "verifier", "re-use", "total", "123,456", "0.0123", "40"):
        assert part in text
    assert max(map(len, lines)) <= columns


def test_help_lists_commands_by_section_in_whole_sentences() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert text.index("\nRun:\n") < text.index("\nLook:\n")
    assert "..." not in text.partition("[ARGS]...")[2]
    assert "…" not in text
    assert all(len(f"  demo-control  {info.summary}") <= 80 for info in COMMANDS.values())


@pytest.mark.parametrize(
    "words",
    [
        ("score",),
        ("teach",),
        ("usage",),
        ("rubrics", "search"),
        ("runs",),
        ("runs", "watch"),
        ("findings",),
        ("open",),
    ],
)
def test_help_names_the_clients_variables(words: tuple[str, ...]) -> None:
    text = CliRunner().invoke(app, [*words, "--help"]).stdout
    assert "MARKSCHEME_URL" in text
    assert "MARKSCHEME_API_KEY" in text
