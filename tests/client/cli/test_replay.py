"""``markscheme replay``: against a real service, and what Ctrl-C leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.scripted import RUN_DETAIL, Reply, ScriptedService
from fakes.shell import command
from markscheme import Client
from markscheme.cli import replay
from markscheme.cli.app import app
from markscheme.cli.runs import INTERRUPTED

ESTIMATE: dict[str, Any] = {
    "object": "replay.estimate",
    "run_id": "night-1",
    "groups": 4,
    "sampled_groups": 4,
    "rollouts": 32,
    "cached_verdicts": 7,
    "calls": 1200,
    "prompt_tokens": 50_000,
    "completion_tokens": 10_000,
    "max_usd": None,
}
REPLAY: dict[str, Any] = {
    "object": "replay",
    "id": "rpl_1",
    "run_id": "night-1",
    "rubric_id": None,
    "judge": "strong",
    "view": None,
    "verify": None,
    "thinking": "auto",
    "clamp": "zero",
    "state": "running",
    "reason": None,
    "groups": 4,
    "done": 1,
    "skipped": 0,
    "calls": 8,
    "cost_usd": 0.5,
    "unpriced_calls": 0,
    "cached_verdicts": 0,
    "saved_usd": 0.0,
    "created_at": "2026-11-27T00:00:00Z",
    "changed_at": "2026-11-27T00:00:00Z",
}
NOTHING = {"value": None, "low": None, "high": None}
COMPARISON = {
    "rollouts": 0,
    "unknown_before": 0,
    "unknown_after": 8,
    "before": None,
    "after": None,
    "difference": NOTHING,
    "rank_agreement": NOTHING,
    "rank_groups": 0,
    "sign_changes": NOTHING,
    "criteria": [],
}
DETAIL = REPLAY | {"comparison": COMPARISON}


def invoke(service: ScriptedService, *words: str) -> Any:
    return CliRunner().invoke(app, ["replay", *words, "--url", service.url], env={"COLUMNS": "80"})


def test_a_run_is_replayed_and_its_replays_are_listed(
    service: str, client: Client, tmp_path: Path
) -> None:
    checks = [{"kind": "max_words", "value": value} for value in (3, 1)]
    words = [[{"text": f"At most {c['value']}.", "points": 1, "check": c}] for c in checks]
    rubric = client.create_rubric("Count.", words[0])
    for step in range(2):
        group = {"prompt": "Count.", "rollouts": ["one two", "one"], "rubric_id": rubric.id}
        client.score([group], run={"id": "night 1", "step": step})
    stricter = client.fork_rubric(rubric, words[1])

    def shown(*options: str) -> Any:
        settings = {"url": service}
        return command("replay", "night 1", *options, directory=tmp_path, settings=settings)

    assert "No replay yet" in shown().stdout
    dry = shown("--rubric", stricter.id, "--dry-run")
    assert "2 groups, 4 rollouts: 0 calls" in dry.stdout
    assert client.replays().data == []
    done = shown("--rubric", stricter.id)
    assert done.returncode == 0, done.stderr
    assert "reward before" in done.stdout
    assert "-0.500 (95 % interval -0.500 to -0.500)" in done.stdout
    (made,) = client.replays("night 1").data
    assert f"{service}/pages/replays/{made.id}" in done.stdout
    assert f"{made.id}  rubric {stricter.id}  2 of 2 groups  $0.00  finished" in shown().stdout
    as_json = json.loads(shown("--json").stdout)
    assert [each["id"] for each in as_json["data"]] == [made.id]


@pytest.fixture
def scripted() -> Any:
    made = ScriptedService()
    yield made
    made.close()


def test_ctrl_c_leaves_the_replay_running_and_says_how_to_look_at_it(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    scripted.replies = [
        Reply(lines=[ESTIMATE]),
        Reply(lines=[REPLAY]),
        Reply(lines=[DETAIL]),
    ]
    done = invoke(scripted, "night-1", "--judge", "strong")
    assert done.exit_code == INTERRUPTED
    assert "The replay goes on" in done.output
    assert f"{scripted.url}/pages/replays/rpl_1" in done.output
    assert "--cancel rpl_1" in done.output
    assert "at most a cost that is not known" in done.output
    assert len(scripted.asked) == 3


def test_what_is_not_known_is_no_number(scripted: ScriptedService) -> None:
    scripted.replies = [
        Reply(lines=[ESTIMATE]),
        Reply(lines=[REPLAY]),
        Reply(lines=[DETAIL | {"state": "failed", "reason": "there is no judge any more"}]),
    ]
    done = invoke(scripted, "night-1", "--judge", "strong")
    assert done.exit_code == 1
    assert "failed (there is no judge any more)" in done.output
    for name in ("reward before", "difference", "advantage changes sign"):
        (line,) = [line for line in done.output.splitlines() if line.startswith(name)]
        assert line.split()[-2:] == ["not", "known"]


def test_a_replay_of_another_run_is_not_cancelled(scripted: ScriptedService) -> None:
    scripted.replies = [Reply(lines=[DETAIL])]
    done = invoke(scripted, "night-2", "--cancel", "rpl_1")
    assert done.exit_code == 1
    assert "is not one of the run night-2" in done.output
    assert len(scripted.asked) == 1


def test_a_replay_is_cancelled_and_its_state_is_said(scripted: ScriptedService) -> None:
    cancelled = REPLAY | {"state": "cancelled"}
    scripted.replies = [Reply(lines=[DETAIL]), Reply(lines=[cancelled])]
    done = invoke(scripted, "night-1", "--cancel", "rpl_1")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "rpl_1  judge strong  1 of 4 groups  $0.50  cancelled\n"


def test_a_pause_is_said_once_and_the_result_is_the_services_as_json(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    paused = DETAIL | {"state": "paused", "reason": "the budget is spent"}
    ended = DETAIL | {"state": "finished", "done": 4}
    scripted.replies = [
        Reply(lines=[each]) for each in (ESTIMATE, REPLAY, DETAIL, paused, paused, ended)
    ]
    done = invoke(scripted, "night-1", "--judge", "strong", "--json")
    assert done.exit_code == 0
    assert done.stderr.count("paused: the budget is spent") == 1
    assert json.loads(done.stdout) == ended


def test_criteria_that_flip_are_shown_the_first_of_many(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "CRITERIA_SHOWN", 2)
    met = {"met_before": 5, "judged_before": 9, "met_after": 2, "judged_after": 9}
    flips = [
        met | {"key": f"k{i}", "text": f"It is {i}.", "lost": 3, "gained": 0, "pairs": 9, "p": p}
        for i, p in enumerate((0.25, None, 0.01, 0.02))
    ]
    comparison = COMPARISON | {"criteria": flips}
    ended = DETAIL | {"state": "finished", "unpriced_calls": 2, "comparison": comparison}
    scripted.replies = [Reply(lines=[ESTIMATE]), Reply(lines=[REPLAY]), Reply(lines=[ended])]
    lines = invoke(scripted, "night-1", "--judge", "strong").stdout.splitlines()
    assert "$0.50 and 2 calls without a price  finished" in lines[0]
    assert [line for line in lines if "It is" in line] == [
        "−3 +0 of 9 (p 0.25)  It is 0.",
        "−3 +0 of 9 (p not known)  It is 1.",
    ]
    assert "2 more criteria have flips: see the page" in lines


def test_a_list_that_is_cut_off_says_so(scripted: ScriptedService) -> None:
    page = {"object": "list", "data": [REPLAY], "has_more": True}
    scripted.replies = [Reply(lines=[RUN_DETAIL]), Reply(lines=[page])]
    done = invoke(scripted, "night-1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "there are more than are shown"
