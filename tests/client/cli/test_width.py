"""What the commands print fits 80 columns, and cuts no id and no key."""

import json
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


def usage_of(total: dict[str, Any], *data: dict[str, Any], truncated: bool = False) -> Reply:
    report = {"object": "usage", "since": None, "until": None, "data": list(data), "total": total}
    return Reply(lines=[report | {"truncated": truncated}])


def test_usage_without_keys_is_one_line_of_figures(service: ScriptedService) -> None:
    service.replies = [usage_of(BUCKET)]
    heading, figures = shown(service, "usage", "--group-by", "", columns=120)
    assert heading.split()[:2] == ["calls", "failed"]
    assert figures.split() == ["12", "0", "123,456", "0", "3,210", "0.0123", "40", "0.0456"]


def test_usage_says_what_is_cut_off_and_what_has_no_known_cost(service: ScriptedService) -> None:
    total = BUCKET | {"unpriced_calls": 3}
    service.replies = [usage_of(total, BUCKET | {"run": "a"}, truncated=True)]
    lines = shown(service, "usage", "--group-by", "run")
    assert "There are more rows than are shown; the total counts them all." in lines
    assert " ".join(lines[-2:]).startswith("The cost of 3 calls is not known:")


def test_usage_too_wide_for_a_table_is_sentences_without_zeros(service: ScriptedService) -> None:
    busy = BUCKET | {"run": "b" * 60, "failed_calls": 2, "cached_tokens": 7}
    idle = dict.fromkeys(BUCKET, 0) | {"cost_usd": 0.0, "saved_usd": 0.0, "run": "a", "calls": 1}
    service.replies = [usage_of(BUCKET, busy, idle)]
    text = " ".join(" ".join(shown(service, "usage", "--group-by", "run", columns=60)).split())
    assert (
        "12 calls; 2 failed; tokens 123,456 in (7 cached), 3,210 out; 0.0123 USD; "
        "40 verdicts reused; 0.0456 USD saved a 1 calls; 0.0000 USD total" in text
    )


def test_usage_as_json_is_the_services_answer(service: ScriptedService) -> None:
    answer = usage_of(BUCKET)
    service.replies = [answer]
    printed = json.loads("\n".join(shown(service, "usage", "--json")))
    assert printed["total"].items() >= answer.lines[0]["total"].items()


def test_a_lineage_that_is_cut_off_says_so(service: ScriptedService) -> None:
    counts = {"met": 0, "not_met": 0, "not_applicable": 2, "unscored": 1, "criteria": []}
    use = {"groups": 1, "other_teams_groups": 0, "quality": None}
    lineage = {"object": "lineage", "rubric_id": ID, "nodes": [], "edges": []}
    service.replies = [Reply(lines=[lineage | {"verdicts": counts, "use": use, "truncated": True}])]
    lines = shown(service, "rubrics", "lineage", ID, columns=160)
    assert lines[0].endswith("0 met, 0 not met, 2 not applicable, 1 rollouts unscored")
    assert lines[1:] == ["there is more than is shown"]


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
