"""``markscheme runs``, ``runs watch``, ``findings`` and ``open``, at 80 columns."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.scripted import RUN, Reply, ScriptedService, refusal
from client.scripted import RUN_DETAIL as DETAIL
from markscheme import Client
from markscheme.cli import runs
from markscheme.cli.app import app

ID = RUN["id"]
FINDINGS = {
    "object": "list",
    "data": [
        {
            "object": "finding",
            "kind": "inverted",
            "level": "alarm",
            "sentence": "A criterion is inverted: “Ends with an offer”. Students meet it in 98 % "
            "of rollouts, teachers in 41 % of their responses, since step 560.",
            "since_step": 560,
            "criterion": "k",
            "values": {"now": 0.98, "teacher": 0.41},
            "groups": {"first_step": 559, "last_step": 999, "criterion": "k", "sort": "newest"},
        }
    ],
}
NO_FINDINGS = {"object": "list", "data": []}


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


def invoke(service: ScriptedService, *words: str, columns: int = 80) -> Any:
    return CliRunner().invoke(
        app, [*words, "--url", service.url], env={"COLUMNS": str(columns), "TERM": "dumb"}
    )


@pytest.mark.parametrize("columns", [80, 200])
def test_runs_are_listed_with_whole_ids(service: ScriptedService, columns: int) -> None:
    page = {"object": "list", "data": [RUN, RUN | {"id": "short"}], "has_more": True}
    service.replies = [Reply(lines=[page])]
    done = invoke(service, "runs", columns=columns)
    assert done.exit_code == 0, done.output
    for part in (ID, "running", "1,000 of 2,000", "0.44", "0.70", "$15.05", "!1 △2", "▄·▅"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "raise --limit" in done.stdout


def test_an_empty_list_says_what_makes_a_run(service: ScriptedService) -> None:
    service.replies = [Reply(lines=[{"object": "list", "data": [], "has_more": False}])]
    done = invoke(service, "runs")
    assert done.exit_code == 0
    assert "markscheme train CONFIG.yaml" in done.stdout


def test_findings_are_sentences_and_the_address(service: ScriptedService) -> None:
    service.replies = [Reply(lines=[FINDINGS])]
    done = invoke(service, "findings", ID)
    assert done.exit_code == 0, done.output
    assert " ".join(done.stdout.split()).startswith("! A criterion is inverted: “Ends with")
    assert f"{service.url}/pages/runs/{ID}" in done.stdout


def test_a_run_without_findings_says_so(service: ScriptedService) -> None:
    service.replies = [Reply(lines=[NO_FINDINGS])]
    assert "Nothing needs a look." in invoke(service, "findings", "r").stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("runs",), {"object": "list", "data": [RUN], "has_more": False}),
        (("findings", ID), FINDINGS),
    ],
)
def test_json_is_the_services_answer(
    service: ScriptedService, words: tuple[str, ...], answer: dict[str, Any]
) -> None:
    service.replies = [Reply(lines=[answer])]
    assert json.loads(invoke(service, *words, "--json").stdout) == answer


def test_open_prints_the_address_and_opens_it(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    service.replies = [Reply(lines=[DETAIL]), Reply(lines=[DETAIL])]
    address = f"{service.url}/pages/runs/{ID}"
    assert invoke(service, "open", ID, "--no-browser").stdout.strip() == address
    assert opened == []
    assert invoke(service, "open", ID).stdout.strip() == address
    assert opened == [address]


def test_open_says_that_there_is_no_such_run(service: ScriptedService) -> None:
    service.replies = [refusal(404, "not_found")]
    done = invoke(service, "open", "nope")
    assert done.exit_code == 1
    assert "scripted" in done.stderr


def test_watch_prints_a_line_a_step_and_ends_with_the_run(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    ended = DETAIL | {"state": "failed", "reason": "out of memory", "last_step": 1001}
    looks = [DETAIL, DETAIL, ended]
    service.replies = [Reply(lines=[x]) for run in looks for x in (run, FINDINGS)]
    done = invoke(service, "runs", "watch", ID)
    assert done.exit_code == 0, done.output
    steps = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == [
        "step 1,000 of 2,000",
        "step 1,002 of 2,000",
    ]
    assert "failed: out of memory" in steps[1]
    assert waits == [runs.WATCH_S] * 2
    assert "A criterion is inverted" in done.stdout


def test_watch_draws_on_a_terminal_within_its_width(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(
        force_terminal=True, width=80, height=24, record=True, markup=False, highlight=False
    )
    monkeypatch.setattr(runs, "screen", lambda: console)
    many = {"object": "list", "data": FINDINGS["data"] * 20}
    ended = DETAIL | {"state": "finished"}
    service.replies = [Reply(lines=[ended]), Reply(lines=[many])]
    done = invoke(service, "runs", "watch", ID)
    assert done.exit_code == 0, done.output
    lines = console.export_text().splitlines()
    text = "\n".join(lines)
    for part in (ID, "finished", "0.44 → 0.70", "0.85", "640 unavailable", "14 more"):
        assert part in text
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert len(lines) <= 26


def test_ctrl_c_ends_the_view_without_a_trace(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    service.replies = [Reply(lines=[DETAIL]), Reply(lines=[FINDINGS])]
    done = invoke(service, "runs", "watch", ID)
    assert done.exit_code == runs.INTERRUPTED
    assert "Traceback" not in done.output


def test_without_a_browser_the_address_is_still_there(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    service.replies = [Reply(lines=[DETAIL])]
    done = invoke(service, "open", ID)
    assert (done.exit_code, done.stdout) == (0, f"{service.url}/pages/runs/{ID}\n")
    assert "there is no browser here: open the address in one" in done.stderr


def test_watch_says_that_the_service_is_away_and_goes_on(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(runs, "connect", lambda url: Client(url, max_retries=0))
    ended = DETAIL | {"state": "finished"}
    looks = [Reply(lines=[DETAIL]), Reply(lines=[FINDINGS])]
    service.replies = [*looks, refusal(503, "draining"), Reply(lines=[ended]), looks[1]]
    done = invoke(service, "runs", "watch", ID)
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("no answer at ")
    assert "scripted" in done.stderr
    assert "finished" in done.stdout


def test_a_run_that_has_no_step_yet_shows_no_numbers(service: ScriptedService) -> None:
    new = {"last_step": None, "first_step": None, "last_scored_at": None, "curve": []}
    unknown = {"reward_first": None, "reward_now": None}
    page = {"object": "list", "data": [RUN | new | unknown | {"findings": {}}], "has_more": False}
    service.replies = [Reply(lines=[page])]
    lines = invoke(service, "runs").stdout.splitlines()
    assert [line.strip() for line in lines] == [
        ID,
        "running  step –  reward – → –  $15.05  never",
    ]
