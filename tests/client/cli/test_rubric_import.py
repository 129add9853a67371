"""Test ``markscheme rubrics import`` on data sets: formats, references, mappings, bad rows."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from client.scripted import RUBRIC, Reply, ScriptedService, refusal
from fakes.shell import command
from markscheme import AsyncClient, Client
from markscheme.cli import rubric_import
from markscheme.exchange.paths import same
from markscheme.importing import CONCURRENCY, FileRow, ImportReport, RubricImporter

ROWS = Path(__file__).parents[1] / "rubric_rows"
MAP = ("prompt=task.question", "criteria=checklist", "text=item", "points=worth", "reference=gold")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bring(service: str, tmp_path: Path) -> Run:
    return lambda *words: command(
        "rubrics", "import", *words, directory=tmp_path, settings={"url": service}
    )


def rows(format: str) -> list[Any]:
    return [json.loads(line) for line in (ROWS / f"{format}.jsonl").read_text().splitlines()]


def bank(client: Client, prompt: str) -> list[tuple[str | None, str]]:
    return [(each.model, each.text) for each in client.teacher_responses(prompt).data]


@pytest.mark.parametrize(
    ("format", "words", "count"),
    [
        ("healthbench", (), 6),
        ("healthbench-professional", (), 5),
        ("rar", (), 6),
        ("rubrichub", (), 6),
        ("researchrubrics", (), 6),
        ("wildchecklists", (), 6),
        ("openrubrics", (), 5),
        ("ifeval", (), 7),
        ("promptfoo", (), 6),
        ("mapped", ("--map", *MAP), 5),
    ],
)
def test_a_data_set_comes_in_without_a_flag_and_every_row_goes_out_as_it_was(
    bring: Run, client: Client, format: Any, words: tuple[str, ...], count: int
) -> None:
    done = bring(str(ROWS / f"{format}.jsonl"), *words)
    assert done.returncode == 0, done.stderr
    assert f"{count} rubrics are in the service, 0 rows failed" in done.stderr
    stored = client.rubrics(limit=100).data
    written = [client.export_rubric(each.id, format).content for each in stored]
    for row in rows(format):
        assert any(same(row, each) for each in written), row


def test_reference_answers_go_to_the_teacher_bank_with_their_source(
    bring: Run, client: Client
) -> None:
    done = bring(str(ROWS / "healthbench.jsonl"))
    assert (
        "6 reference answers are in the teacher bank (2 of human, 4 of healthbench reference)"
        in done.stderr
    )
    answers = bank(client, "My nose bleeds every morning.")
    assert ("human", "Dry air is the usual cause. Use a saline spray.") in answers
    assert len(answers) == 5
    again = bring(str(ROWS / "healthbench.jsonl"))
    assert "6 were there already" in again.stderr
    assert "(6 were there already)" in again.stderr
    assert bank(client, "My nose bleeds every morning.") == answers


def test_whose_the_references_are_can_be_said_and_they_can_be_left_out(
    bring: Run, client: Client
) -> None:
    bring(str(ROWS / "rar.jsonl"), "--no-references")
    assert bank(client, "Name a noble gas.") == []
    bring(str(ROWS / "rar.jsonl"), "--teacher-model", "gpt-x")
    assert bank(client, "Name a noble gas.") == [("gpt-x", "Neon.")]


def test_a_single_file_says_what_was_read_and_prints_the_id_alone(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(rows("rar")[0]))
    done = bring("r.json")
    assert client.rubric(done.stdout.strip()).criteria[0].points == 5
    assert "read as rar; 1 reference answer is (1 of rar reference) in the" in done.stderr


def test_a_rubric_that_is_there_gets_the_tag(bring: Run, client: Client, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows("rar")))
    bring("r.jsonl")
    done = bring("r.jsonl", "--tag", "later")
    assert "(6 were there already)" in done.stderr
    assert {tuple(each.tags) for each in client.rubrics().data} == {("later",)}


def test_a_rubric_file_of_verifiers_may_be_toml_or_a_bare_list(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(
        '[[criteria]]\nname = "brevity"\ntext = "Is it short?"\nweight = 0.5\n'
        '[[criteria]]\nname = "tone"\ntext = "Is it kind?"\n'
        '[[criteria]]\nname = "metric"\ntext = "Is it long?"\nweight = 0\n'
    )
    done = bring("r.toml", "--prompt", "Say hello.")
    made = client.rubric(done.stdout.strip())
    assert [(c.text, c.points) for c in made.criteria] == [("Is it short?", 1), ("Is it kind?", 2)]
    assert "note: criteria[2]: 'Is it long?' weighs 0" in done.stderr
    assert "note: criteria: all points are multiplied by 2" in done.stderr
    assert made.provenance.points_factor == 2
    (tmp_path / "r.json").write_text(json.dumps(rows("verifiers")[1]))
    assert bring("r.json", "--prompt", "Say bye.").returncode == 0
    (tmp_path / "c.json").write_text(
        '[{"name": "a", "text": "Is it?", "choices": ["bad", "good"]}]'
    )
    refused = bring("c.json", "--prompt", "Say.")
    assert refused.returncode == 1
    assert "c.json: criteria[0].choices: are 'bad', 'good'; a criterion here is met or" in (
        refused.stderr
    )


def test_a_json_file_may_hold_objects_one_after_the_other(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    lines = [json.dumps(each) for each in rows("rar")[:2]]
    (tmp_path / "r.json").write_text("\n".join(lines))
    assert "2 rubrics are in the service, 0 rows failed" in bring("r.json").stderr
    assert len(client.rubrics().data) == 2
    (tmp_path / "r.json").write_text("\n".join([*lines, '{"question":']))
    broken = bring("r.json")
    assert broken.returncode == 1
    assert "r.json, row 3: not JSON" in broken.stderr
    (tmp_path / "r.json").write_text('{"question":')
    assert "r.json: EOF while parsing" in bring("r.json").stderr


def test_answers_sampled_for_one_prompt_are_one_rubric_and_this_is_said(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    one = rows("rubrichub")[2]
    (tmp_path / "r.jsonl").write_text(
        json.dumps(one) + "\n" + json.dumps(one | {"answer": "Ice.", "sample_id": "s2"})
    )
    done = bring("r.jsonl")
    assert done.returncode == 0, done.stderr
    assert "r.jsonl, line 2, its rubric is that of r.jsonl, line 1; its other fields" in done.stderr
    (made,) = client.rubrics().data
    assert made.metadata["rubrichub"]["sample_id"] == "s2"
    assert sorted(text for _, text in bank(client, one["query"])) == ["Ice.", "Water."]


def test_the_tests_of_promptfoo_are_a_rubric_each(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "promptfooconfig.yaml").write_text(
        "prompts: ['Name a {{thing}}.', 'Draw a {{thing}}.']\n"
        "providers: [openai:x]\n"
        "tests:\n"
        "- vars: {thing: river, swim: no, on: 2026-05-01}\n"
        "  assert: [{type: llm-rubric, value: 'Names a {{thing}}; {{swim}} on {{on}}'}]\n"
        "- vars: {thing: lake}\n"
        "  assert: [{type: cost, threshold: 1}]\n"
    )
    done = bring("promptfooconfig.yaml")
    assert done.returncode == 1
    assert "promptfooconfig.yaml, test 2: assert: holds no criterion that counts" in done.stderr
    assert "test 3" not in done.stderr
    assert [r.criteria[0].text for r in client.rubrics().data] == [
        "Names a river; no on 2026-05-01"
    ] * 2


def test_the_labels_of_a_prompt_come_together_from_anywhere_in_the_file(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    lines = [json.dumps(each) for each in rows("healthbench-meta-eval")]
    lines.insert(2, json.dumps(rows("healthbench-meta-eval")[0] | {"binary_labels": "yes"}))
    (tmp_path / "meta.jsonl").write_text("\n".join(lines))
    done = bring("meta.jsonl")
    assert done.returncode == 1
    assert "meta.jsonl, line 3: binary_labels: must be a list of true and false" in done.stderr
    assert "3 rubrics are in the service, 1 rows failed" in done.stderr
    (thumb,) = (r for r in client.rubrics().data if r.prompt[0].content == "I cut my thumb.")
    assert len(thumb.criteria) == 2


def test_a_bad_row_never_takes_its_neighbours_and_is_named_with_its_field(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    good = rows("healthbench")
    bad = [
        good[0] | {"rubrics": [*good[0]["rubrics"], {"criterion": "x", "points": "five"}]},
        good[1] | {"rubrics": None},
        good[2] | {"prompt": None},
        good[3] | {"example_tags": "theme"},
        {"a": 1},
        [],
        good[4] | {"note": "a\u0000"},
    ]
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps(each) for pair in zip(bad, good, strict=False) for each in pair)
        + "\n"
        + json.dumps(bad[-1])
    )
    done = bring("rows.jsonl")
    assert done.returncode == 1
    for said in (
        "line 1: rubrics[3].points: must be a number, not 'five' (id hb-1)",
        "line 3: rubrics: must be a list, not null",
        "line 5: prompt: is missing; give the prompt that the rubric is for (--prompt)",
        "line 7: example_tags: must be a list of texts, not a text",
        "line 9: rubrics: is missing",
        "line 11: the content must be a JSON object",
        "line 13: the content: note: must not contain the NUL character",
        "6 rubrics are in the service, 7 rows failed",
    ):
        assert said in done.stderr
    assert len(client.rubrics().data) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--map", "prompt=q"), "--map: the mapping says nothing of criteria"),
        (("--map", "prompt=q,criteria=c,colour=x"), "--map 'colour=x' is not PART=PATH"),
        (("--map", "prompt=q", "--format", "rar"), "leave out --format rar"),
        (("--format", "mapped"), "--format mapped needs --map"),
        (("--map", "prompt=q", "prompt=r", "criteria=c"), "says twice where the prompt is"),
        (("other.jsonl",), "give one file, not 2: mapped.jsonl, other.jsonl"),
    ],
)
def test_options_that_do_not_go_together_say_so(
    bring: Run, words: tuple[str, ...], message: str
) -> None:
    done = bring("mapped.jsonl", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--map", *MAP),
        ("--map", " ".join(MAP)),
        ("--map", ",".join(MAP)),
        tuple(word for part in MAP for word in ("--map", part)),
    ],
)
def test_a_mapping_may_be_given_in_one_word_or_in_several(
    bring: Run, client: Client, words: tuple[str, ...]
) -> None:
    done = bring(*words, str(ROWS / "mapped.jsonl"))
    assert "5 rubrics are in the service, 0 rows failed" in done.stderr, done.stderr
    assert bank(client, "Name a lake.") == [("reference", "Lake Geneva.")]


def test_a_column_or_a_path_that_no_row_has_is_said_and_the_rubrics_are_there(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(rows("rar")[0]))
    done = bring("r.jsonl", "--teacher-column", "answr")
    assert done.returncode == 1
    assert "r.jsonl has no column 'answr', which --teacher-column names; its first row" in (
        done.stderr
    )
    done = bring(str(ROWS / "mapped.jsonl"), "--map", *MAP[:-1], "reference=goold")
    assert done.returncode == 1
    assert "no row has a reference answer at 'goold', which --map names" in done.stderr
    assert len(client.rubrics().data) == 6


def test_columns_are_read_of_a_single_object_too(
    bring: Run, client: Client, tmp_path: Path
) -> None:
    content = {"q": "Be kind.", "r": rows("verifiers")[0], "a": "Hello, dear."}
    (tmp_path / "r.json").write_text(json.dumps(content))
    words = ("--prompt-column", "q", "--rubric-column", "r", "--teacher-column", "a")
    done = bring("r.json", *words, "--teacher-model", "gpt-x")
    assert done.returncode == 0, done.stderr
    assert [each.prompt[0].content for each in client.rubrics().data] == ["Be kind."]
    assert bank(client, "Be kind.") == [("gpt-x", "Hello, dear.")]


def test_a_file_of_no_known_format_says_what_it_has_and_what_to_do(
    bring: Run, tmp_path: Path
) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    done = bring("r.jsonl")
    assert done.returncode == 1
    assert (
        "r.jsonl, line 2: none of the known formats looks like this (its fields are 'b'): say "
        "which it is with --format, or where its parts are with --map" in done.stderr
    )


def test_of_very_many_rows_that_fail_the_rest_is_counted(
    bring: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rubric_import, "SHOWN_PROBLEMS", 2)
    bad = rows("rar")[0] | {"question": None}
    (tmp_path / "r.jsonl").write_text(f"{json.dumps(bad)}\n" * 5)
    done = bring("r.jsonl", "--format", "rar")
    assert done.returncode == 1
    assert [name in done.stderr for name in ("line 2:", "line 3:")] == [True, False]
    assert "and 3 more rows failed" in done.stderr
    assert "0 rubrics are in the service, 5 rows failed" in done.stderr


@pytest.fixture
def scripted() -> Iterator[ScriptedService]:
    made = ScriptedService()
    yield made
    made.close()


LISTED = Reply(lines=[{"object": "list", "data": [], "has_more": False, "quality": {}}])
IMPORTED = Reply(lines=[{"object": "rubric.imported", "rubric": RUBRIC, "losses": []}])


def test_reference_answers_that_are_refused_leave_the_rubric_and_are_said(
    scripted: ScriptedService, tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(rows("rar")[0]))
    scripted.replies = [LISTED, IMPORTED, refusal(422, "invalid_value")]
    words = ("rubrics", "import", "r.json")
    done = command(*words, directory=tmp_path, settings={"url": scripted.url})
    assert (done.returncode, done.stdout) == (1, "rub_1\n")
    assert "r.json: its reference answers: scripted" in done.stderr


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_ctrl_c_says_how_to_go_on(
    suffix: str, scripted: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(importer: RubricImporter, content: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RubricImporter, "format_of", interrupt)
    (tmp_path / f"r.{suffix}").write_text(json.dumps(rows("rar")[0]))
    scripted.replies = [LISTED]
    words = ("rubrics", "import", f"r.{suffix}")
    done = command(*words, directory=tmp_path, settings={"url": scripted.url})
    assert (done.returncode, done.stdout) == (130, "")
    assert "stopped; run the command again to go on. 0 rubrics are in" in done.stderr


async def test_an_import_that_was_stopped_goes_on_and_stores_nothing_twice(
    client: Client, service: str
) -> None:
    contents = [rows("rar")[0] | {"question": f"{n}?", "reference_answer": "x"} for n in range(40)]
    lines = [FileRow(f"line {n}", partial(dict, content)) for n, content in enumerate(contents)]
    finished: list[int] = []

    async def bring(most: int) -> ImportReport:
        async with AsyncClient(service) as client:
            importer = RubricImporter(client, None)
            await importer.start()

            def stop() -> None:
                finished.append(importer.report.imported)
                if importer.report.imported == most:
                    running.cancel()

            running = asyncio.create_task(
                importer.import_rows(lines, on_problem=pytest.fail, on_row=stop)
            )
            await asyncio.wait([running])
        assert running.cancelled() == (most < len(lines))
        return importer.report

    stopped = await bring(10)
    # Answers that had arrived together with the tenth are counted as well.
    assert 10 <= stopped.imported < 10 + CONCURRENCY
    assert finished == list(range(1, stopped.imported + 1))
    whole = await bring(len(lines) + 1)
    assert (whole.imported, whole.references) == (40, {"rar reference": 40})
    # The service goes on with what it had begun to store.
    assert stopped.imported <= whole.existing <= stopped.imported + CONCURRENCY
    assert len(list(client.rubrics(limit=100))) == 40
    assert {each.version for each in client.rubrics(limit=100)} == {1}


async def test_a_service_that_has_no_room_is_waited_for() -> None:
    scripted = ScriptedService()
    imported = Reply(lines=[{"object": "rubric.imported", "rubric": RUBRIC, "losses": []}])
    listed = Reply(lines=[{"object": "list", "data": [], "has_more": False, "quality": {}}])
    busy = [refusal(503, "draining", "0"), refusal(429, "rate_limited", "0")]
    scripted.replies = [listed, *busy, *busy, imported]
    async with AsyncClient(scripted.url) as client:
        importer = RubricImporter(client, "rar", references=False)
        await importer.start()
        await importer.import_rows(
            [FileRow("line 1", partial(dict, rows("rar")[0]))], on_problem=pytest.fail
        )
    scripted.close()
    assert importer.report.imported == 1
    assert scripted.header("idempotency-key") == [None] * 6
