"""``markscheme teach``: the file, ROPD's index, going on after a stop, what it says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.judge import ScriptedJudge
from fakes.shell import command
from markscheme import Client
from markscheme.teaching import read_prompts, ropd_prompt_hash


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_and_what_they_bring(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"prompt": "a", "teacher_responses": ["x"], "id": 7},
        {"prompt": [{"role": "user", "content": "b"}]},
    )
    lines = read_prompts(file)
    assert [line.teacher_responses for line in lines] == [["x"], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: "),
        (json.dumps({"prompt": ""}), "line 2: prompt"),
        (json.dumps({"text": "x"}), "line 2: prompt"),
    ],
)
def test_a_bad_line_is_named(row: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n" + row + "\n")
    with pytest.raises(ValueError, match=message):
        read_prompts(file)


def test_ropds_index_finds_its_prompts(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "Name a colour."}, {"prompt": "b"})
    own = ropd_prompt_hash("Name a colour.")
    index = write(
        tmp_path / "i.jsonl",
        {
            "schema_version": "ropd.teacher_index.v1",
            "uid": "0",
            "raw_prompt_hash": own,
            "teacher_answer": "Red.",
        },
        {
            "schema_version": "ropd.teacher_index.v2",
            "uid": "1",
            "raw_prompt_hash": own,
            "teacher_answers": [" Blue. ", "Red."],
        },
    )
    assert [line.teacher_responses for line in read_prompts(file, index)] == [["Red.", "Blue."], []]
    other = write(tmp_path / "o.jsonl", {"prompt": "c"})
    with pytest.raises(ValueError, match="no prompt of .* is one of the 1 in"):
        read_prompts(other, index)
    with pytest.raises(ValueError, match="line 1: not a line of a ROPD teacher index"):
        read_prompts(file, file)


def index_line(prompt: str, model: Any, *texts: str) -> dict[str, Any]:
    return {
        "schema_version": "ropd.teacher_index.v2",
        "uid": "0",
        "raw_prompt_hash": ropd_prompt_hash(prompt),
        "teacher_answers": list(texts),
        "teacher_fingerprint": {"provider": "x", "model": model},
    }


def test_answers_of_ropds_index_keep_their_model_apart(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"prompt": "a"},
        {"prompt": "b", "teacher_responses": ["Mine."], "teacher_model": "own"},
        {"prompt": "c", "teacher_responses": ["Mine."]},
    )
    index = write(
        tmp_path / "i.jsonl",
        index_line("a", "big", "1"),
        index_line("a", "small", "2"),
        index_line("b", "big", "3"),
        index_line("b", "own", "4"),
        index_line("c", None, "5"),
    )
    assert [
        (e.prompt, e.teacher_model, e.teacher_responses) for e in read_prompts(file, index)
    ] == [
        ("a", "big", ["1"]),
        ("a", "small", ["2"]),
        ("b", "own", ["Mine.", "4"]),
        ("b", "big", ["3"]),
        ("c", None, ["Mine.", "5"]),
    ]
    with pytest.raises(ValueError, match="line 1: teacher_fingerprint.model must be a text"):
        read_prompts(file, write(tmp_path / "bad.jsonl", index_line("a", 7, "x")))


def test_the_hash_is_ropds() -> None:
    """Of JSON with sorted keys, spaces after colons and commas, and letters as they are."""
    import hashlib

    text = '[{"content": "Größe?", "role": "user"}]'
    assert ropd_prompt_hash("Größe?") == hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def service_url(
    serve: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> str:
    judge.script = lambda request, number: f"Response {number}."
    return serve(**model_settings, teacher_model="t", teacher_base_url=judge.url)


def test_the_command_fills_the_bank_and_goes_on(
    tmp_path: Path, service_url: str, judge: ScriptedJudge
) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"prompt": "a", "teacher_responses": ["Mine.", "Mine."]},
        {"prompt": "b"},
    )
    first = command(
        "teach", str(file), "--count", "2", "--url", service_url, directory=tmp_path, settings={}
    )
    assert first.returncode == 0, first.stderr
    said = " ".join(first.stderr.split())
    assert (
        "2 prompts done: 2 responses from the file (1 were there already), "
        "3 from the teacher in 3 calls" in said
    )
    again = command(
        "teach", str(file), "--count", "2", "--url", service_url, directory=tmp_path, settings={}
    )
    assert "0 from the teacher in 0 calls" in " ".join(again.stderr.split())
    assert len(judge.requests) == 3
    with Client(service_url) as client:
        assert {len(client.teacher_responses(prompt).data) for prompt in ("a", "b")} == {2}


def test_a_prompt_with_answers_of_two_models_is_asked_for_once(
    tmp_path: Path, service_url: str, judge: ScriptedJudge
) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "a"})
    index = write(tmp_path / "i.jsonl", index_line("a", "big", "1"), index_line("a", "small", "2"))
    words = ("teach", str(file), "--ropd-index", str(index), "--count", "3", "--url", service_url)
    done = command(*words, directory=tmp_path, settings={})
    assert "1 prompts done: 2 responses from the file" in " ".join(done.stderr.split())
    assert len(judge.requests) == 1
    with Client(service_url) as client:
        found = {each.text: each.model for each in client.teacher_responses("a").data}
    assert (found["1"], found["2"], len(found)) == ("big", "small", 3)


def test_a_failure_stops_it_and_what_is_done_stays(
    tmp_path: Path, service_url: str, judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: (
        400 if "bad" in request["messages"][0]["content"] else f"R {number}."
    )
    file = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "bad"}, {"prompt": "c"})
    failed = command(
        "teach",
        str(file),
        "--count",
        "1",
        "--concurrency",
        "1",
        "--url",
        service_url,
        directory=tmp_path,
        settings={},
    )
    assert failed.returncode == 1
    assert re.search(r"1\s+prompts done", failed.stderr)
    with Client(service_url) as client:
        assert len(client.teacher_responses("a").data) == 1


def test_without_a_teacher_the_file_alone_is_brought(tmp_path: Path, service: str) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "a", "teacher_responses": ["Mine."]})
    none = command(
        "teach", str(file), "--count", "0", "--url", service, directory=tmp_path, settings={}
    )
    assert none.returncode == 0
    asked = command("teach", str(file), "--url", service, directory=tmp_path, settings={})
    assert asked.returncode == 1
    assert "MARKSCHEME_TEACHER_MODEL" in " ".join(asked.stderr.split())
