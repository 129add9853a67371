"""``markscheme replay``: against a real service, and what Ctrl-C leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.scripted import Reply, ScriptedService
from fakes.shell import command
from markscheme import Client
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
