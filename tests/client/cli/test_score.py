"""``markscheme score``: null rewards are asked for again, and the summary says what happened."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.scripted import GROUP, SUMMARY, Reply, ScriptedService, refusal
from markscheme.cli.app import app
from markscheme.cli.score import drop_superseded, read_scored

ROW = {"id": "g", "prompt": "p", "rollouts": ["x", "y"]}


def rollout(name: str, reward: float | None, reason: str | None = None) -> dict[str, Any]:
    return {
        "id": name,
        "reward": reward,
        "status": "scored" if reward is not None else "unscored",
        "reason": reason,
        "verdicts": [],
        "feedback": [],
    }


def group(*rollouts: dict[str, Any], name: str = "g", **rubric: Any) -> dict[str, Any]:
    ref = {"id": "rub_1", "version": 1, "content_hash": "h", "origin": "reused", "criteria": []}
    return GROUP | {"id": name, "rollouts": list(rollouts), "rubric": ref | rubric}


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


@pytest.fixture
def score(service: ScriptedService, tmp_path: Path) -> Callable[..., Result]:
    """Run the command on a file of these rows."""
    file = tmp_path / "r.jsonl"

    def run(*words: str, rows: list[dict[str, Any]] | None = None) -> Result:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW]))
        return CliRunner().invoke(app, ["score", str(file), "--url", service.url, *words])

    return run


def scored(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "r.scored.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_groups_with_null_rewards_are_asked_for_again(
    service: ScriptedService, score: Callable[..., Result], tmp_path: Path
) -> None:
    known = group(rollout("r0", 0.5), rollout("r1", 1.0), name="full")
    partial = group(rollout("r0", 0.5), rollout("r1", None, "budget"))
    whole = group(rollout("r0", 0.5), rollout("r1", 0.25))
    service.replies = [Reply(lines=[known, partial, SUMMARY]), Reply(lines=[whole, SUMMARY])]
    rows = [ROW | {"id": "full"}, ROW]
    first = score(rows=rows)
    assert first.exit_code == 0
    assert "1 of 4 rollouts unscored" in first.stderr
    assert "1 budget: A hard budget is spent." in first.stderr
    assert "Run the command again" in first.stderr
    second = score(rows=rows)
    assert "1 groups are in" in second.stderr
    assert "1 with null rewards are asked for again" in second.stderr
    assert "0 of 2 rollouts unscored" in second.stderr
    assert [g["id"] for g in service.asked[1][2]["groups"]] == ["g"]
    assert [[r["reward"] for r in line["rollouts"]] for line in scored(tmp_path)] == [
        [0.5, 1.0],
        [0.5, 0.25],
    ]
    third = score(rows=rows)
    assert "2 groups are in" in third.stderr
    assert len(service.asked) == 2


def test_an_interrupted_retry_keeps_the_newest_line_of_a_group(tmp_path: Path) -> None:
    target = tmp_path / "s.jsonl"
    lines = [
        {"id": "a", "rollouts": [{"reward": None}]},
        {"id": "b", "rollouts": [{"reward": 1}]},
        {"id": "a", "rollouts": [{"reward": 0.5}]},
    ]
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_scored(target) == {"a": True, "b": True}
    drop_superseded(target)
    assert [json.loads(line) for line in target.read_text().splitlines()] == [lines[2], lines[1]]


def test_a_rubric_induced_again_is_explained(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    again = group(rollout("r0", 0.5), rollout("r1", 1.0), origin="induced", version=2)
    service.replies = [Reply(lines=[again, SUMMARY])]
    done = score()
    assert "rubrics: 1 induced" in done.stderr
    assert "1 prompts had a rubric already and got a new one" in done.stderr
    assert "--reuse frozen" in done.stderr


def test_run_and_step_are_sent(service: ScriptedService, score: Callable[..., Result]) -> None:
    service.replies = [Reply(lines=[group(rollout("r0", 0.5), rollout("r1", 1.0)), SUMMARY])]
    assert score("--run", "night", "--step", "3").exit_code == 0
    assert service.asked[0][2]["run"] == {"id": "night", "step": 3}


def test_a_missing_key_names_its_variable(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    service.replies = [refusal(401, "missing_key")]
    done = score()
    assert done.exit_code == 1
    assert "MARKSCHEME_API_KEY" in done.stderr
