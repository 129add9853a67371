"""``markscheme score``: null rewards are asked for again, and the summary says what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from client.scripted import GROUP, SUMMARY, Reply, ScriptedService, refusal
from fakes.processes import NotYet, eventually
from markscheme.cli.app import app
from markscheme.cli.score import ScoredLine, drop_superseded, read_scored, scored_file

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
    return [json.loads(line) for line in lines if line]


def test_the_view_is_sent(service: ScriptedService, score: Callable[..., Result]) -> None:
    service.replies = [Reply(lines=[group(rollout("r0", 0.5), rollout("r1", 1.0)), SUMMARY])]
    assert score("--view", "full").exit_code == 0
    assert service.asked[0][2]["view"] == "full"


def test_groups_with_null_rewards_are_asked_for_again(
    service: ScriptedService, score: Callable[..., Result], tmp_path: Path
) -> None:
    known = group(rollout("r0", 0.5), rollout("r1", 1.0), name="full")
    partial = group(rollout("r0", 0.5), rollout("r1", None, "budget"))
    whole = group(rollout("r0", 0.5), rollout("r1", 0.25))
    service.replies = [Reply(lines=[known, partial, SUMMARY]), Reply(lines=[whole, SUMMARY])]
    rows = [ROW | {"id": "full"}, ROW]
    first = score(rows=rows)
    assert first.exit_code == 3
    assert "1 of 4 rollouts unscored" in first.stderr
    assert "1 budget: A hard budget is spent." in first.stderr
    assert "Run the command again" in first.stderr
    second = score(rows=rows)
    assert second.exit_code == 0
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
    assert read_scored(target) == {"a": ScoredLine(True, {}), "b": ScoredLine(True, {})}
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


def test_a_rubric_given_for_all_is_sent_where_a_row_names_none(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    replies = [group(rollout("r0", 0.5), rollout("r1", 1.0), name=name) for name in "ab"]
    service.replies = [Reply(lines=[*replies, SUMMARY])]
    rows = [ROW | {"id": "a", "rubric_id": "rub_own"}, ROW | {"id": "b"}]
    assert score("--rubric", "rub_all", rows=rows).exit_code == 0
    assert [g["rubric_id"] for g in service.asked[0][2]["groups"]] == ["rub_own", "rub_all"]


def test_a_group_that_is_refused_fails_alone(
    service: ScriptedService, score: Callable[..., Result], tmp_path: Path
) -> None:
    good = group(rollout("r0", 0.5), rollout("r1", 1.0), name="good")
    missing = refusal(404, "rubric_not_found")
    service.replies = [missing, missing, Reply(lines=[good, SUMMARY])]
    done = score(rows=[ROW | {"id": "bad", "rubric_id": "rub_none"}, ROW | {"id": "good"}])
    assert done.exit_code == 3
    assert "group bad: scripted" in done.stderr
    assert "1 groups refused" in done.stderr
    assert [line["id"] for line in scored(tmp_path)] == ["good"]


def test_a_refusal_of_every_group_ends_it(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    service.replies = [refusal(422, "invalid_value")]
    assert score(rows=[ROW | {"id": f"g{i}"} for i in range(40)]).exit_code == 1
    assert len(service.asked) == 33


def test_one_group_that_is_refused_is_not_asked_for_again(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    service.replies = [refusal(422, "invalid_value")]
    done = score()
    assert done.exit_code == 1
    assert "scripted" in done.stderr
    assert len(service.asked) == 1


def test_a_rollout_may_be_the_list_of_its_messages(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    service.replies = [Reply(lines=[group(rollout("r0", 0.5), rollout("r1", 1.0)), SUMMARY])]
    messages = [{"role": "assistant", "content": "x"}]
    assert score(rows=[ROW | {"rollouts": [messages, "y"]}]).exit_code == 0
    (sent,) = service.asked[0][2]["groups"]
    assert [(r.get("messages"), r.get("text")) for r in sent["rollouts"]] == [
        (messages, None),
        (None, "y"),
    ]


def test_a_file_of_scores_that_holds_something_else_is_named_and_kept(
    service: ScriptedService, score: Callable[..., Result], tmp_path: Path
) -> None:
    other = '{"prompt": "p"}\n{"prompt": "q"}\n'
    (tmp_path / "r.scored.jsonl").write_text(other)
    done = score()
    assert done.exit_code == 1
    assert "r.scored.jsonl, line 1: not a scored group" in done.stderr
    assert (tmp_path / "r.scored.jsonl").read_text() == other
    assert service.asked == []


def test_the_scores_of_a_folder_lie_beside_it_and_those_of_a_data_set_here(
    service: ScriptedService, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    service.replies = [Reply(lines=[group(rollout("r0", 0.5), rollout("r1", 1.0)), SUMMARY])]
    done = CliRunner().invoke(app, ["score", f"{folder}/", "--url", service.url])
    assert done.exit_code == 0, done.stderr
    (line,) = (tmp_path / "rows.scored.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "g"
    assert scored_file("org/name:train[:10]") == Path("org-name-train-10.scored.jsonl")


def test_what_a_rollout_holds_that_cannot_travel_is_made_visible(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    service.replies = [Reply(lines=[group(rollout("r0", 0.5), rollout("r1", 1.0)), SUMMARY])]
    assert score(rows=[ROW | {"rollouts": ["a\0b", "c\ud83d"]}]).exit_code == 0
    (sent,) = service.asked[0][2]["groups"]
    assert [r["text"] for r in sent["rollouts"]] == ["a\ufffdb", "c\ufffd"]


def test_a_parquet_table_with_its_own_columns_is_scored_beside_it(
    service: ScriptedService, tmp_path: Path
) -> None:
    file = tmp_path / "r.parquet"
    row = {"id": 7, "question": "p", "rollouts": ["x", "y"], "ref": "t", "source": "web"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    answer = group(rollout("r0", 0.5), rollout("r1", 1.0), name="7")
    service.replies = [Reply(lines=[answer, SUMMARY])]
    words = ["--prompt-column", "question", "--teacher-column", "ref", "--url", service.url]
    done = CliRunner().invoke(app, ["score", str(file), *words])
    assert done.exit_code == 0, done.stderr
    (sent,) = service.asked[0][2]["groups"]
    assert (sent["id"], sent["prompt"], sent["teacher_responses"]) == ("7", "p", ["t"])
    assert [line["id"] for line in scored(tmp_path)] == ["7"]


def test_two_groups_of_one_id_are_refused_before_anything_is_asked(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    done = score(rows=[ROW, ROW])
    assert done.exit_code == 1
    assert "line 2: the id 'g' is that of" in done.stderr
    assert service.asked == []


@pytest.mark.parametrize("rest", ['{"id": "g", "rollou', '{"id": "h", "rollouts": []}', "\n"])
def test_a_file_whose_writer_was_killed_is_gone_on_with(
    rest: str, service: ScriptedService, score: Callable[..., Result], tmp_path: Path
) -> None:
    whole = group(rollout("r0", 0.5), rollout("r1", 0.25))
    first = json.dumps(group(rollout("r0", 1.0), name="known")) + "\n"
    (tmp_path / "r.scored.jsonl").write_text(first + rest)
    service.replies = [Reply(lines=[whole, SUMMARY])]
    done = score(rows=[ROW | {"id": "known", "rollouts": ["x"]}, ROW])
    assert done.exit_code == 0, done.stderr
    assert [g["id"] for g in service.asked[0][2]["groups"]] == ["g"]
    names = [line["id"] for line in scored(tmp_path)]
    assert [name for name in names if name != "h"] == ["known", "g"]


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C until the process ends; return its standard error.

    Python loses an interrupt that comes just before it begins to wait for a socket.
    """
    for attempt in eventually(every_s=0):
        with attempt:
            process.send_signal(signal.SIGINT)
            try:
                _, stderr = process.communicate(timeout=10)
            except subprocess.TimeoutExpired as error:
                raise NotYet from error
    return stderr


def test_ctrl_c_leaves_a_file_that_is_gone_on_with(
    service: ScriptedService, tmp_path: Path
) -> None:
    names = [f"g{i}" for i in range(33)]
    answers = [group(rollout("r0", 1.0), name=name) for name in names]
    service.replies = [
        Reply(lines=[*answers[:32], SUMMARY]),
        Reply(lines=[answers[32], SUMMARY], wait_s=60),
        Reply(lines=[answers[32], SUMMARY]),
    ]
    file = tmp_path / "r.jsonl"
    rows = [{"id": name, "prompt": "p", "rollouts": ["x"]} for name in names]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = "from markscheme.cli import main; main()"
    words = [sys.executable, "-c", code, "score", str(file), "--url", service.url]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    while len(service.asked) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    stderr = interrupt(process)
    assert process.returncode == 130
    assert "Run the command again to go on." in " ".join(stderr.split())
    assert [line["id"] for line in scored(tmp_path)] == names[:32]
    again = CliRunner().invoke(app, ["score", str(file), "--url", service.url])
    assert again.exit_code == 0
    assert [g["id"] for g in service.asked[2][2]["groups"]] == ["g32"]
    assert [line["id"] for line in scored(tmp_path)] == names


def test_the_view_and_the_clamp_are_asked_for(
    service: ScriptedService, score: Callable[..., Result]
) -> None:
    service.replies = [Reply(lines=[group(rollout("r0", -0.5), rollout("r1", 1.0)), SUMMARY])]
    assert score("--view", "full", "--clamp", "signed").exit_code == 0
    asked = service.asked[0][2]
    assert (asked["view"], asked["clamp"]) == ("full", "signed")


def test_groups_that_were_scored_with_other_options_are_scored_again(
    service: ScriptedService, score: Callable[..., Result], tmp_path: Path
) -> None:
    service.replies = [
        Reply(lines=[group(rollout("r0", reward), rollout("r1", 1.0)), SUMMARY])
        for reward in (0.0, -0.5, 0.25)
    ]
    assert score().exit_code == 0
    assert "options" not in scored(tmp_path)[0]
    signed = score("--clamp", "signed")
    assert "0 groups are in" in signed.stderr
    assert "1 were scored with other options and are scored again" in signed.stderr
    (line,) = scored(tmp_path)
    assert (line["rollouts"][0]["reward"], line["options"]) == (-0.5, {"clamp": "signed"})
    assert "1 groups are in" in score("--clamp", "signed").stderr
    assert len(service.asked) == 2
    assert score("--view", "full", "--rubric", "rub_1").exit_code == 0
    assert scored(tmp_path)[0]["options"] == {"rubric": "rub_1", "view": "full"}
    # A row that names its rubric is scored by that one, whatever --rubric says.
    rows = [ROW | {"rubric_id": "rub_1"}]
    service.replies = [*service.replies, service.replies[0]]
    assert score("--rubric", "rub_2", rows=rows).exit_code == 0
    assert "1 groups are in" in score("--rubric", "rub_3", rows=rows).stderr
