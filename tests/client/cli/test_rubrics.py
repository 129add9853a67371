"""Test ``markscheme rubrics``.

Covers files in and out, a data set with lines that fail, and the blocks of docs/rubrics.md as
printed.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from fakes.shell import command
from markscheme import Client
from markscheme.schema import Run

PAGE = (Path(__file__).parents[3] / "docs/rubrics.md").read_text("utf-8")
CRITERIA = [{"text": f"It is {i}.", "points": i} for i in range(1, 5)]


def row(question: str, *weights: Any, **change: Any) -> dict[str, Any]:
    return {
        "question": question,
        "rubric": [
            {"title": f"c{i}", "description": f"It is {i}.", "weight": weight}
            for i, weight in enumerate(weights or (5,), 1)
        ],
    } | change


@pytest.fixture
def rubrics(service: str, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    return lambda *words, **settings: command(
        "rubrics", *words, directory=tmp_path, settings={"url": service} | settings
    )


def test_a_rubric_goes_out_into_a_file_and_comes_in(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], client: Client, tmp_path: Path
) -> None:
    made = client.create_rubric("Count.", CRITERIA, tags=["numbers"])
    refused = rubrics("export", made.id, "--format", "ropd", "-o", "r.json")
    assert refused.returncode == 1
    assert "ROPD has no place for tags: numbers" in refused.stderr
    assert not (tmp_path / "r.json").exists()
    done = rubrics("export", made.id, "--format", "ropd", "-o", "r.json", "--allow-loss")
    assert (done.returncode, done.stdout) == (0, "")
    assert "left out: ROPD has no place for tags: numbers" in done.stderr
    brought = rubrics(
        "import", "r.json", "--format", "ropd", "--prompt", "Count.", "--tag", "moved"
    )
    assert brought.stdout.strip() == made.id
    assert "was in the service already; it now has the tags given: moved" in brought.stderr
    assert client.rubric(made.id).tags == ["numbers", "moved"]
    elsewhere = rubrics(
        "import",
        "r.json",
        "--format",
        "ropd",
        "--prompt",
        "Count again.",
        "--tag",
        "a",
        "--tag",
        "b",
    )
    assert client.rubric(elsewhere.stdout.strip()).tags == ["a", "b"]
    shown = rubrics("export", made.id)
    assert json.loads(shown.stdout)["tags"] == ["numbers", "moved"]


def test_rubrics_are_searched(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], client: Client
) -> None:
    for i in range(3):
        client.create_rubric(
            f"Count to {i},\x1b[31m slowly.", CRITERIA[:1], tags=["numbers", f"n{i}"]
        )
    poem = client.create_rubric(
        "Write a [bold]poem.", [CRITERIA[0] | {"category": "observable_quality"}]
    )
    client.score(
        [
            {
                "id": "g",
                "prompt": "Write a [bold]poem.",
                "rubric_id": poem.id,
                "rollouts": [{"id": "a", "text": "x"}],
            }
        ]
    )
    shown = rubrics("search", "counting", "--tag", "numbers", "--limit", "2")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["id", "version", "team", "quality", "tags", "prompt"]
    assert [line.split()[1:6] for line in lines[1:3]] == [
        ["1", "default", "-", "numbers", f"n{i}"] for i in (2, 1)
    ]
    assert "\x1b" not in shown.stdout
    assert "there are more" in lines[3]
    one = json.loads(
        rubrics("search", "--category", "observable_quality", "--team", "default", "--json").stdout
    )
    assert [rubric["id"] for rubric in one["data"]] == [poem.id]
    assert "[bold]poem" in rubrics("search", "poem").stdout
    none = rubrics("search", "zzzz", "--tag", "numbers")
    assert none.stdout == (
        "No rubric that your team may see matches: text 'zzzz', tag 'numbers'.\n"
    )
    assert none.returncode == 0
    refused = rubrics("search", "--tag", "two words")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "tag" in refused.stderr
    assert [
        r.id for r in client.rubrics(text="count", tags=["numbers", "n0"], retired=False).data
    ] == [client.rubrics(tags=["n0"]).data[0].id]


def test_a_lineage_is_shown(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], client: Client
) -> None:
    prompt = "Describe autumn. Do not use any commas."
    made = client.induce(
        prompt, student_responses=["red, brown"], teacher_responses=["Golden\nleaves fall"]
    )
    edited = client.fork_rubric(
        made.id, [CRITERIA[0] | {"check": {"kind": "contains", "texts": ["leaves"]}}]
    )
    for step, text in enumerate(("leaves", "wind")):
        client.score(
            [
                {
                    "id": "g",
                    "prompt": prompt,
                    "rubric_id": edited.id,
                    "rollouts": [{"id": "a", "text": text}, {"id": "b", "text": "leaves, wind"}],
                }
            ],
            run=Run(id="run-7", step=step),
        )
    done = rubrics("lineage", edited.id)
    lines = [line.strip(" │├└─") for line in done.stdout.splitlines()]
    assert lines[0] == f"{made.id}  version 1 of default  quality -  (induced)"
    assert f"* {edited.id}  version 2 of default  quality 0.50  (forked)" in lines
    assert "“Golden leaves fall”" in done.stdout
    assert "student" in done.stdout
    assert "run run-7: 2 groups, 1 with spread, steps 0 to 1, reward 1.00 → 0.50 (-0.50)" in lines
    assert lines[-1] == (
        "2 groups of your team and 0 of others, quality 0.50; verdicts: 2 met, 1 not met, "
        "0 rollouts unscored"
    )
    assert json.loads(rubrics("lineage", edited.id, "--json").stdout)["rubric_id"] == edited.id
    assert "there is no such rubric" in rubrics("lineage", "rub_none").stderr


def test_what_cannot_be_imported_is_explained(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    for content, words, message in (
        ('{"question"', (), "EOF"),
        ("[]", (), "r.json holds no rubrics"),
        ("7", (), "the content must be a JSON object"),
        (json.dumps(row("Why?", 0.333, 0.667)), (), "r.json: rubric: the points are no whole"),
        (json.dumps(row("Why?", "many")), (), "rubric[0].weight: must be a number, not 'many'"),
        (json.dumps(row("Why?")), ("--prompt", "x"), "brings its prompt itself"),
        (json.dumps(row("Why?")), ("--tag", "two words"), "--tag takes up to 64 letters"),
    ):
        file.write_text(content)
        done = rubrics("import", str(file), "--format", "rar", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
    missing = rubrics("import", "none.json", "--format", "rar").stderr
    assert missing == "none.json: No such file or directory\n"
    assert (
        "markscheme serve"
        in rubrics("import", str(file), "--format", "rar", url="http://127.0.0.1:1").stderr
    )
    assert "there is no such rubric" in rubrics("export", "rub_none").stderr
    file.write_text("{}")
    malformed = rubrics("import", str(file), "--format", "ropd", "--prompt", "x").stderr
    assert f"{file}: schema_version" in malformed
    file.write_text(json.dumps(row("Why?", trace="x" * 300_000)))
    assert (
        "--allow-loss goes on without it" in rubrics("import", str(file), "--format", "rar").stderr
    )
    file.write_text('[{"name": "a", "text": "Is it kind?"}]')
    assert "give the one that the rubric is for (--prompt)" in rubrics("import", str(file)).stderr


def test_a_data_set_is_brought_line_by_line_and_again(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], client: Client, tmp_path: Path
) -> None:
    lines = [
        json.dumps(row("One\u2028line?"), ensure_ascii=False),
        "",
        json.dumps(row("Too fine?", 1, 0.001)),
        "{oops",
        json.dumps(row("Two?", 3, -1, trace="x" * 300_000)),
        json.dumps(row("Two?", 4)),
        json.dumps(row("Two?", 3, -1)),
        json.dumps(row("Bad?", -1)),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b"\r\n")
    first = rubrics("import", str(file), "--format", "rar", "--allow-loss", "--tag", "rar")
    assert first.returncode == 1
    for said in (
        "line 3: rubric: the points are no whole numbers",
        "line 4: ",
        "line 8: criteria: a rubric needs at least",
        "4 rubrics are in the service, 3 rows failed; 2 rows have other criteria for the prompt of",
        "line 6, version 2, after ",
        "; 1 losses, the first: ",
        "line 5, trace: takes 300",
    ):
        assert said in first.stderr
    before = client.rubrics().data
    assert sorted(r.prompt[0].content for r in before) == ["One\u2028line?", "Two?", "Two?"]
    again = rubrics("import", str(file), "--format", "rar", "--allow-loss", "--tag", "rar")
    assert again.returncode == 1
    assert client.rubrics().data == before
    assert "4 rubrics are in the service (4 were there already)" in again.stderr
    file.write_text(lines[0])
    assert rubrics("import", str(file), "--format", "rar").returncode == 0
    file.write_text("\n")
    assert "holds no rubrics" in rubrics("import", str(file), "--format", "rar").stderr


def test_a_service_that_is_away_ends_it_at_once(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row(f"{i}?")) + "\n" for i in range(3)))
    done = rubrics("import", str(file), "--format", "rar", url="http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.count("markscheme serve") == 1


def test_the_examples_of_finding_rubrics_work_as_printed(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve(api_key="k")
    with Client(url, api_key="k") as client:
        made = client.create_rubric("Name a primary colour.", CRITERIA[:1], tags=["colours"])
    blocks = [
        re.findall(
            r"^```bash\n(.*?)^```$",
            PAGE[PAGE.index(f"## {name}\n") :],
            re.MULTILINE | re.DOTALL,
        )[0]
        for name in ("Find rubrics", "Lineage")
    ]
    done = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            "".join(blocks).replace("localhost:8321", url.removeprefix("http://")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ID": made.id,
            "KEY": "k",
            "MARKSCHEME_URL": url,
            "MARKSCHEME_API_KEY": "k",
        },
    )
    assert done.returncode == 0, done.stderr
    assert f'"id":"{made.id}"' in done.stdout
    assert f"* {made.id}  version 1 of default" in done.stdout
    assert '"object":"lineage"' in done.stdout


def test_the_examples_of_import_and_export_work_as_printed(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve(api_key="k")
    with Client(url, api_key="k") as client:
        made = client.create_rubric("Name a colour.", CRITERIA)
        section = PAGE[PAGE.index("## Import and export") :]
        block = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]
        (tmp_path / "rows.jsonl").write_text(
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": "My arm is numb."}],
                    "example_tags": ["theme:x"],
                    "rubrics": [
                        {
                            "criterion": "It says to call for help.",
                            "points": 7,
                            "tags": ["axis:accuracy"],
                        }
                    ],
                }
            )
        )
        done = subprocess.run(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                block.replace("localhost:8321", url.removeprefix("http://")),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "MARKSCHEME_URL": url,
                "KEY": "k",
                "MARKSCHEME_API_KEY": "k",
                "ID": made.id,
                **{k: v for k, v in os.environ.items() if k == "PYTHONPATH"},
            },
        )
        assert done.returncode == 0, done.stderr
        first, answer = done.stdout.splitlines()
        assert first == json.loads(answer)["rubric"]["id"] == made.id
        assert len(client.rubrics().data) == 2


def test_rubrics_come_from_the_columns_of_a_table(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], client: Client, tmp_path: Path
) -> None:
    ropd = {
        "schema_version": "ropd.rubric.v1",
        "rubrics": [
            {"criterion_id": f"c{i}", "category": "Task fulfilment", "criterion": f"Is {i}."}
            | {"points": i}
            for i in range(1, 5)
        ],
        "maximum_score": 10,
    }
    rows = [
        {"question": "One?", "rubric": json.dumps(ropd), "answer": "Yes.", "n": 1},
        {"question": "Two?", "rubric": "{", "answer": None, "n": 2},
        {"question": "Three?", "rubric": json.dumps(ropd), "answer": None, "n": 3},
        {"question": None, "rubric": json.dumps(ropd), "answer": None, "n": 4},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    columns = ("--prompt-column", "question", "--teacher-column", "answer")
    done = rubrics("import", "t.parquet", "--format", "ropd", "--rubric-column", "rubric", *columns)
    assert done.returncode == 1
    assert "t.parquet, row 2: rubric: not JSON" in done.stderr
    assert "t.parquet, row 4: " in done.stderr
    assert {r.prompt[0].content for r in client.rubrics().data} == {"One?", "Three?"}
    assert [each.text for each in client.teacher_responses("One?").data] == ["Yes."]


@pytest.mark.parametrize("kind", ["parquet", "csv", "folder"])
def test_a_native_rubric_comes_from_a_row_of_any_source(
    kind: str,
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"],
    client: Client,
    tmp_path: Path,
) -> None:
    own = [
        {
            "schema_version": "markscheme.rubric.v1",
            "prompt": f"Prompt {number}",
            "criteria": [
                CRITERIA[0] | {"check": {"kind": "max_words", "value": 9}},
                CRITERIA[1] | {"check": {"kind": "contains", "texts": ["a"]}},
            ],
        }
        for number in range(3)
    ]
    words: tuple[str, ...] = ()
    if kind == "parquet":  # structs of different checks are padded with nulls
        parquet.write_table(pyarrow.Table.from_pylist(own), tmp_path / "t.parquet")
        name = "t.parquet"
    elif kind == "csv":
        cells = [json.dumps(each).replace('"', '""') for each in own]
        (tmp_path / "t.csv").write_text("rubric\n" + "".join(f'"{cell}"\n' for cell in cells))
        name, words = "t.csv", ("--rubric-column", "rubric")
    else:
        (tmp_path / "t").mkdir()
        for number, each in enumerate(own):
            (tmp_path / f"t/{number}.jsonl").write_text(json.dumps(each) + "\n")
        name = "t"
    for _ in range(2):
        done = rubrics("import", name, "--format", "native", *words)
        assert done.returncode == 0, done.stderr
        assert len(client.rubrics().data) == 3
    assert "4 rubrics are in the service (4 were there already)" in done.stderr
    kinds = [criterion.check.kind for criterion in client.rubrics().data[0].criteria]  # type: ignore[union-attr]
    assert kinds == ["max_words", "contains"]


def test_the_example_of_a_mapping_works_as_printed(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve()
    section = PAGE[PAGE.index("## Import and export") :]
    block = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MARKSCHEME_URL": url,
        },
    )
    assert done.returncode == 0, done.stderr
    with Client(url) as client:
        (made,) = client.rubrics().data
        assert [(c.text, c.points) for c in made.criteria] == [("Names a lake.", 3)]
        assert client.teacher_responses("Name a lake.").data[0].text == "Lake Geneva."


def test_lists_and_objects_stand_in_csv_as_json(
    rubrics: Callable[..., "subprocess.CompletedProcess[str]"], client: Client, tmp_path: Path
) -> None:
    own = Path(__file__).parents[1] / "rubric_rows/healthbench.jsonl"
    rows = [json.loads(line) for line in own.read_text("utf-8").split("\n") if line]
    columns = list(dict.fromkeys(name for each in rows for name in each))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for each in rows:
            cells = [each.get(name) for name in columns]
            table.writerow([c if c is None or isinstance(c, str) else json.dumps(c) for c in cells])
    done = rubrics("import", "t.csv")
    assert done.returncode == 0, done.stderr
    assert len(client.rubrics().data) == len(rows)
