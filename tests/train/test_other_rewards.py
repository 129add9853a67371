"""Other reward functions from the configuration: found, weighed, and given the data's columns."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from markscheme.data import Columns
from markscheme_train.config import build_config
from markscheme_train.data import as_dataset, check_template, read_examples, within_length
from markscheme_train.errors import DataError
from markscheme_train.training import train
from train.tiny import ScriptedClient, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def test_a_reward_function_beside_the_configuration_gets_the_datas_columns(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "column_rewards.py").write_text(
        "seen = []\n"
        "def matches(completions, answer, **others):\n"
        "    seen.append((list(answer), sorted(others)))\n"
        "    return [1.0 if each else None for each in answer]\n"
        "async def brevity(completions, **others):\n"
        "    return [-float(len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    data = tmp_path / "answers.jsonl"
    rows = [{"prompt": f"w{n}", "answer": {"n": n}, "images": ["x"]} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "w9"}]))
    said: list[str] = []
    records: list[Any] = []
    train(
        build_config(
            settings
            | {
                "data": str(data),
                "rewards": ["column_rewards:matches", "column_rewards:brevity"],
                "reward_weights": [1.0, 0.5, 0.0],
            }
        ),
        ScriptedClient(lambda place, rollout: place / 4),
        resume=False,
        on_record=records.append,
        on_warning=said.append,
    )
    import column_rewards  # type: ignore[import-not-found]

    answers = [answer for batch, _ in column_rewards.seen for answer in batch]
    assert {str(answer) for answer in answers} == {"{'n': 0}", "{'n': 1}", "{'n': 2}", "None"}
    assert all("images" not in others for _, others in column_rewards.seen)
    assert said[1:] == [
        f"{data}: reward functions do not get the column 'images', whose name has another "
        "meaning: rename it"
    ]
    # The log's reward of a step is the rubric's alone; TRL's is the weighted sum.
    metrics = records[0].metrics
    assert records[0].reward == 0.375
    assert metrics["rewards/matches/mean"] == 1.0
    assert metrics["reward"] == pytest.approx(
        0.375 + 0.5 * metrics_share(column_rewards.seen[0][0])
    )


def metrics_share(answers: list[Any]) -> float:
    return sum(answer is not None for answer in answers) / len(answers)


def test_other_columns_are_kept_only_where_they_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("question,prompt,level\nw1,other,3\nw2,other,4\n")
    columns = Columns(prompt="question")
    plain = as_dataset(read_examples(file, columns), chat=False)
    assert set(plain.column_names) == {"prompt", "teacher_responses", "rubric_id"}
    said: list[str] = []
    kept = as_dataset(read_examples(file, columns, said.append, other_columns=True), chat=False)
    assert [(row["prompt"], row["level"]) for row in kept] == [("w1", 3), ("w2", 4)]
    assert len(said) == 1
    assert "'prompt'" in said[0]


def test_other_columns_may_hold_half_a_character(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "w1", "note": [{"\\ud800": "a\\ud800"}], "\\ud800": 1}\n')
    [row] = as_dataset(read_examples(file, other_columns=True), chat=False)
    assert (row["note"], row["\ufffd"]) == ([{"\ufffd": "a\ufffd"}], 1)


def test_another_column_that_is_nested_too_deeply_is_named_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "w1", "note": ' + "[" * 700 + "]" * 700 + "}\n")
    with pytest.raises(DataError, match="line 1: a column is nested too deeply"):
        read_examples(file, other_columns=True)


def test_a_prompt_that_the_chat_template_refuses_is_named_at_the_start(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    file = tmp_path / "data.jsonl"
    system = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    file.write_text('{"prompt": "w1"}\n{"prompt": "w2"}\n' + json.dumps({"prompt": system}))
    rows = as_dataset(read_examples(file), chat=True)
    with pytest.raises(DataError, match=r"^prompt 3 \(system, user\): .* \(no system role\)$"):
        check_template(rows, tokenizer, {})
    check_template(rows.select([0, 1]), tokenizer, {})


def test_prompts_are_tried_by_the_fields_of_their_messages_too(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{% if message.tool_calls and message.tool_calls | length > 1 %}"
        "{{ raise_exception('one call at once') }}{% endif %}"
        "{% if message.content == 'w9' %}{{ raise_exception('no w9') }}{% endif %}"
        "{{ message.content }}{% endfor %}"
    )

    def prompt(text: str, calls: int) -> str:
        call = {"type": "function", "function": {"name": "add", "arguments": {}}}
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "", "tool_calls": [call] * calls},
            {"role": "user", "content": "w2"},
        ]
        return json.dumps({"prompt": messages}) + "\n"

    file = tmp_path / "data.jsonl"
    file.write_text(prompt("w1", 1) + prompt("w9", 1) + prompt("w1", 2))
    rows = as_dataset(read_examples(file), chat=True)
    with pytest.raises(DataError, match=r"^prompt 3 .* \(one call at once\)$"):
        check_template(rows, tokenizer, {})
    check_template(rows.select([0, 1]), tokenizer, {})
    with pytest.raises(DataError, match=r"^prompt 2 .* \(no w9\)$"):
        within_length(rows, tokenizer, 9, {})


def test_a_prompts_length_counts_its_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "w50 {{ messages[0]['content'] }} {% if tag %}w51 w52{% endif %}"
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "w1"}\n{"prompt": "w1 w2 w3"}\n')
    rows = as_dataset(read_examples(file), chat=True)
    assert len(within_length(rows, tokenizer, 4, {})) == 2
    assert len(within_length(rows, tokenizer, 3, {})) == 1
    assert len(within_length(rows, tokenizer, 4, {"tag": True})) == 1
