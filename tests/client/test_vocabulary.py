"""What each reason means, whether it passes, and that the commands say so."""

import json
from pathlib import Path

import pytest

from fakes.shell import command
from markscheme.vocabulary import REASON_HELP, TRANSIENT_REASONS, UnscoredReason, describe_reasons


@pytest.mark.parametrize("reason", UnscoredReason)
def test_each_reason_says_what_it_means_and_what_to_do(reason: UnscoredReason) -> None:
    meaning, *what_to_do = REASON_HELP[reason].split(". ")
    assert meaning
    assert what_to_do
    assert ("Wait; if it stays so" in REASON_HELP[reason]) is (reason in TRANSIENT_REASONS)


def test_only_what_passes_by_waiting_may_pass() -> None:
    assert {reason.value for reason in TRANSIENT_REASONS} == {
        "timeout",
        "rate_limited",
        "unavailable",
    }


def test_the_most_frequent_reason_comes_first() -> None:
    said = describe_reasons({"refused": 1, "timeout": 2, "quota": 1})
    assert [line.partition(":")[0] for line in said] == ["2 timeout", "1 quota", "1 refused"]


def test_score_sums_up_why_rollouts_are_unscored(service: str, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"Tell me about the sea{i}.", "rollouts": ["Deep.", "Wet."]})
            + "\n"
            for i in range(2)
        )
    )
    done = command("score", str(file), "--url", service, directory=tmp_path, settings={})
    assert done.returncode == 3, done.stderr
    said = done.stderr.strip().split("\n")[-3:]
    assert said[0].endswith("; 4 of 4 rollouts unscored")
    assert said[1] == f"4 no_rubric: {REASON_HELP[UnscoredReason.NO_RUBRIC]}"
    assert "Run the command again" in said[2]


def test_score_goes_on_after_a_line_without_its_end(service: str, tmp_path: Path) -> None:
    file, scored = tmp_path / "r.jsonl", tmp_path / "r.scored.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": f"g{i}", "prompt": "Do not use any commas.", "rollouts": ["a"]})
            + "\n"
            for i in range(2)
        )
    )
    scored.write_bytes('\ufeff{"id": "g0", "note": "\u2028"}'.encode())
    done = command("score", str(file), "--url", service, directory=tmp_path, settings={})
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in scored.read_text("utf-8-sig").strip("\n").split("\n")]
    assert [row["id"] for row in rows] == ["g0", "g1"]
    scored.write_bytes(b'{"id": "g0"}\n{"id": "g1", "ro')
    done = command("score", str(file), "--url", service, directory=tmp_path, settings={})
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in scored.read_text().strip("\n").split("\n")]
    assert [row["id"] for row in rows] == ["g0", "g1"]
