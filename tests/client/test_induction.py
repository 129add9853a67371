"""Rubrics ahead of training: what is there is skipped, the rest is made, costs are stated."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.judge import RUBRIC, ScriptedJudge, offered, text_of, verdicts
from fakes.shell import command
from markscheme import Client
from markscheme.errors import InvalidRequest
from markscheme.induction import InductionReport, Inductions
from markscheme.student import PromptRefused, Student, StudentFailed

PROMPT = "Describe autumn. Do not use any commas."
ROW = {
    "prompt": PROMPT,
    "teacher_responses": ["Golden leaves fall"],
    "student_responses": ["red, brown"],
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def induce(url: str, file: Path, *words: str, **settings: Any) -> Any:
    return command(
        "induce", str(file), "--url", url, *words, directory=file.parent, settings=settings
    )


def said(done: Any) -> str:
    return " ".join(done.stderr.split())


def test_missing_rubrics_are_made_and_those_there_are_skipped(
    service: str, client: Client, tmp_path: Path
) -> None:
    mine = client.create_rubric("mine", [{"text": "It is blue.", "points": 1}])
    chat = [{"role": "system", "content": "Use no commas."}, {"role": "user", "content": PROMPT}]
    file = write(
        tmp_path / "p.jsonl",
        ROW,
        ROW | {"prompt": chat, "student_responses": [{"text": "a, b", "truncated": True}]},
        ROW | {"prompt": "mine"},
        ROW | {"student_responses": ["another"]},
    )
    done = induce(service, file)
    assert done.returncode == 0, done.stderr
    assert "4 rows, 1 repeat a prompt; 1 prompts have a rubric, 2 have none" in said(done)
    assert "builtin (rules): no model is asked, nothing to pay" in said(done)
    assert "2 rubrics induced, 0 rows failed" in said(done)
    made = client.rubrics(limit=100).data
    assert {rubric.origin for rubric in made if rubric.id != mine.id} == {"induced"}
    assert len(made) == 3
    again = induce(service, file)
    assert again.returncode == 0
    assert "3 prompts have a rubric, 0 have none" in said(again)
    assert len(client.rubrics(limit=100).data) == 3


def test_the_view_is_that_of_the_rubrics(service: str, client: Client, tmp_path: Path) -> None:
    assert induce(service, write(tmp_path / "p.jsonl", ROW), "--view", "full").returncode == 0
    assert [rubric.view for rubric in client.rubrics().data] == ["full"]


def test_a_row_without_a_rubric_fails_alone_and_the_status_says_so(
    service: str, client: Client, tmp_path: Path
) -> None:
    file = write(tmp_path / "p.jsonl", ROW | {"prompt": "Tell me about the sea."}, ROW)
    done = induce(service, file)
    assert done.returncode == 3
    assert f"{file}, line 1: " in done.stderr
    assert "1 rubrics induced, 1 rows failed" in said(done)
    assert [rubric.prompt[0].content for rubric in client.rubrics().data] == [PROMPT]


@pytest.mark.parametrize(
    ("row", "words", "message"),
    [
        ({"prompt": "a"}, (), "line 2: student_responses: is missing; the row has 'prompt'"),
        (ROW | {"student_responses": []}, (), "line 2: student_responses: must not be empty"),
        (
            {"prompt": "a", "s": [3]},
            ("--student-column", "s"),
            "line 1: s: is missing; the row has 'prompt', 'student_responses', "
            "'teacher_responses': name its column with --student-column, or have the student",
        ),
        (ROW, ("--student", "http://127.0.0.1:1/v1"), "go together"),
        (ROW, ("--student", "127.0.0.1:1", "--student-model", "m"), "must begin with http"),
        (ROW, ("--teacher-column", "t"), "no column 't', which --teacher-column names"),
    ],
)
def test_a_bad_row_or_option_is_said_before_anything_is_asked(
    row: Any, words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = induce("http://127.0.0.1:1", write(tmp_path / "p.jsonl", ROW, row), *words)
    assert done.returncode == 1
    assert message in said(done)
    assert "rubrics induced" not in said(done)


@pytest.fixture
def priced(serve: Callable[..., str], model_settings: dict[str, Any]) -> str:
    return serve(**model_settings, judge_price_input=1.0, judge_price_output=10.0)


def test_the_cost_is_stated_from_the_prices_of_the_judge(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    rows = [ROW | {"prompt": f"p{i}", "teacher_responses": ["x" * 4000]} for i in range(4)]
    file = write(tmp_path / "p.jsonl", *rows)
    with Client(priced) as client:
        inductions = Inductions(client, file)
        estimate = inductions.estimate(inductions.survey(concurrency=2))
        (listed,) = (each for each in client.judges().data if each.kind == "openai")
    assert judge.requests == []
    assert (listed.model, listed.roles) == ("scripted", ["rubricator", "verifier"])
    assert (estimate.calls, estimate.reply_tokens, estimate.is_free) == (4, 1800, False)
    assert 6600 <= estimate.prompt_tokens <= 6700
    assert estimate.cost_usd == pytest.approx((estimate.prompt_tokens + 18_000) / 10**6)
    done = induce(priced, file)
    assert done.returncode == 0, done.stderr
    assert "rubricator default (scripted): 4 calls, about 6,6" in said(done)
    assert "about 0.02 USD" in said(done)
    assert len(judge.requests) == 4


def test_rubrics_are_made_for_a_view_of_trajectories(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"season": "autumn"}}}
    done = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "golden"},
        {"role": "assistant", "content": "It is golden"},
    ]
    file = write(tmp_path / "p.jsonl", ROW | {"student_responses": [done]})
    assert induce(priced, file, "--view", "full").returncode == 0
    assert 'look_up({"season":"autumn"})' in text_of(judge.requests[0])
    with Client(priced) as client:
        assert [rubric.view for rubric in client.rubrics().data] == ["full"]


def test_a_judge_that_there_is_not_is_said_before_anything_is_asked(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    file = write(tmp_path / "p.jsonl", ROW)
    done = induce(priced, file, "--judge", "nope")
    assert done.returncode == 1
    assert "there is no judge 'nope'; there are: builtin, default" in said(done)
    assert judge.requests == []
    assert induce(priced, file).returncode == 0
    assert induce(priced, file, "--judge", "nope").returncode == 1  # also with nothing to induce


def test_on_a_terminal_it_asks_before_it_pays(
    priced: str, judge: ScriptedJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def confirm(text: str, **options: Any) -> None:
        asked.append(options)
        raise InterruptedError("no")  # an OSError, as an unexpected end

    monkeypatch.setattr("markscheme.cli.induce.typer.confirm", confirm)
    monkeypatch.setattr("markscheme.cli.induce._is_terminal", lambda: True)
    file = write(tmp_path / "p.jsonl", ROW)
    assert induce(priced, file).returncode == 1
    assert (asked, judge.requests) == ([{"abort": True, "err": True}], [])
    assert induce(priced, file, "--yes").returncode == 0
    assert (len(asked), len(judge.requests)) == (1, 1)


def test_one_unreadable_reply_fails_its_row_and_no_other(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    judge.script = lambda request, number: (
        "no rubric" if "bad" in text_of(request) else json.dumps(RUBRIC)
    )
    rows = [ROW | {"prompt": f"{word} prompt"} for word in ("good", "bad", "fine")]
    done = induce(priced, write(tmp_path / "p.jsonl", *rows))
    assert done.returncode == 3
    assert "p.jsonl, line 2: " in done.stderr
    assert "2 rubrics induced, 1 rows failed" in said(done)


def test_a_judge_that_is_away_stops_it_and_running_it_again_goes_on(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    working = threading.Event()
    working.set()
    judge.script = lambda request, number: (
        json.dumps(RUBRIC) if "first" in text_of(request) or not working.is_set() else 401
    )
    file = write(tmp_path / "p.jsonl", *(ROW | {"prompt": p} for p in ("first", "second")))
    done = induce(priced, file, "--concurrency", "1")
    assert done.returncode == 1
    assert "1 rubrics induced, 0 rows failed; run the command again to go on" in said(done)
    working.clear()
    again = induce(priced, file)
    assert again.returncode == 0, again.stderr
    assert "1 prompts have a rubric, 1 have none" in said(again)


def test_the_student_is_sampled_for_rows_without_responses(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    judge.script = lambda request, number: (
        json.dumps(RUBRIC) if request["model"] == "scripted" else f"student says {number}"
    )
    judge.finish = lambda request: "length" if request["model"] == "tiny" else "stop"
    given = {"prompt": "given", "student_responses": ["given response"]}
    file = write(tmp_path / "p.jsonl", {"prompt": "sampled"}, given)
    done = induce(
        priced,
        file,
        *("--student", judge.url, "--student-model", "tiny", "--samples", "3"),
        *("--max-tokens", "77", "--concurrency", "1"),
        student_api_key="sk-student",
    )
    assert done.returncode == 0, done.stderr
    sampled = [r for r in judge.requests if r["model"] == "tiny"]
    assert [r["max_tokens"] for r in sampled] == [77, 77, 77]
    assert {r["messages"][0]["content"] for r in sampled} == {"sampled"}
    keys = {key for r, key in zip(judge.requests, judge.keys, strict=True) if r["model"] == "tiny"}
    assert keys == {"Bearer sk-student"}
    shown = [text_of(r) for r in judge.requests if r["model"] == "scripted"]
    assert "student says 2" in shown[0]
    assert "given response" in shown[1]
    assert "student: 3 responses, up to 231 tokens" in said(done)
    assert "sk-student" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (400, PromptRefused),
        (401, StudentFailed),
        ((200, {"choices": []}), StudentFailed),
        ((200, {"error": "x"}), StudentFailed),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, StudentFailed),
        (
            b"HTTP/1.1 400 X\r\ncontent-type: text/html; charset=hex\r\n\r\n<html>",
            PromptRefused,
        ),
    ],
)
def test_a_student_that_refuses_says_whether_it_is_the_prompt(
    answer: Any, error: type[Exception], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: answer
    with Student(judge.url, "tiny", max_tokens=5) as student, pytest.raises(error):
        student.sample("p", 1)


def test_no_more_prompts_are_worked_on_at_once_than_asked(tmp_path: Path) -> None:
    """A client in place of the service: each call waits until as many are under way as may be."""
    together, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(3)

    class Watched:
        def induce(self, prompt: str, *, reuse: str = "if_fresh", **_: Any) -> None:
            nonlocal together, most
            if reuse == "frozen":
                raise InvalidRequest("none", status=422, code="no_rubric")
            with lock:
                together += 1
                most = max(most, together)
            full.wait(30)
            with lock:
                together -= 1

        def judges(self) -> None: ...

    file = write(tmp_path / "p.jsonl", *(ROW | {"prompt": f"p{i}"} for i in range(9)))
    inductions, report = Inductions(Watched(), file), InductionReport()  # type: ignore[arg-type]
    inductions.induce(inductions.survey(concurrency=3), report, concurrency=3)
    assert (report.induced, most) == (9, 3)


def test_rubrics_made_ahead_are_reused_when_frozen(
    priced: str, judge: ScriptedJudge, tmp_path: Path
) -> None:
    judge.script = lambda request, number: (
        verdicts(request) if offered(request) else json.dumps(RUBRIC)
    )
    induce(priced, write(tmp_path / "p.jsonl", ROW))
    rollouts = [{"id": "r", "text": "x"}]
    with Client(priced) as client:
        batch = client.score(
            [
                {"id": "a", "prompt": PROMPT, "rollouts": rollouts},
                {"id": "b", "prompt": "another", "rollouts": rollouts},
            ],
            reuse="frozen",
        )
    assert batch.groups[0].rubric is not None
    assert batch.groups[0].rubric.origin == "reused"
    assert batch.groups[1].rollouts[0].reason == "no_rubric"
    assert len([r for r in judge.requests if not offered(r)]) == 1
