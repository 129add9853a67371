"""Test the formats of data sets, each on rows of our own words that differ as real ones do."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.test_exchange import rubric, rubric_of
from markscheme.exchange import Malformed, NotRepresentable, detect_format, dump, load
from markscheme.exchange.paths import same
from markscheme.exchange.promptfoo import config_rows
from markscheme.schema import Criterion, Message
from markscheme.schema.metadata import MAX_METADATA_BYTES
from markscheme.vocabulary import EXCHANGE_FORMATS, ExchangeFormat

ROWS = Path(__file__).parent / "rubric_rows"
MAPPING: Any = {
    "prompt": "task.question",
    "criteria": "checklist",
    "text": "item",
    "points": "worth",
    "reference": "gold",
    "id": "uid",
}
SAMPLES = [
    pytest.param(file.stem, json.loads(line), id=f"{file.stem}-{number}")
    for file in sorted(ROWS.glob("*.jsonl"))
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
]


def read(content: Any, format: ExchangeFormat, **more: Any) -> Any:
    """Load with the prompt or the mapping that the format needs."""
    if format in ("ropd", "verifiers"):
        more = {"prompt": "Be kind."} | more
    if format == "mapped":
        more = {"mapping": MAPPING} | more
    return load(content, format, **more)


def row(format: str, number: int) -> Any:
    return json.loads((ROWS / f"{format}.jsonl").read_text("utf-8").splitlines()[number - 1])


def test_every_row_format_has_samples() -> None:
    assert {file.stem for file in ROWS.glob("*.jsonl")} == set(EXCHANGE_FORMATS) - {"native"}
    assert all(len(f.read_text("utf-8").splitlines()) >= 5 for f in ROWS.glob("*.jsonl"))


@pytest.mark.parametrize(("format", "content"), SAMPLES)
def test_a_published_row_comes_in_without_a_flag_and_goes_out_as_it_was(
    format: ExchangeFormat, content: Any
) -> None:
    found = read(content, format)
    assert found.losses == ()
    exported = dump(rubric_of(found), format)
    assert exported.losses == ()
    assert same(exported.content, content)
    assert read(exported.content, format) == found


@pytest.mark.parametrize(("format", "content"), SAMPLES)
def test_what_was_imported_goes_through_our_own_format(
    format: ExchangeFormat, content: Any
) -> None:
    found = read(content, format)
    native = json.loads(json.dumps(dump(rubric_of(found), "native").content))
    again = load(native, "native")
    assert same(dump(rubric_of(again), format).content, content)


@pytest.mark.parametrize(("format", "content"), SAMPLES)
def test_the_format_is_told_from_the_fields(format: ExchangeFormat, content: Any) -> None:
    if format != "mapped":
        assert detect_format(content) == format


def test_what_is_of_no_format_says_what_it_has() -> None:
    for content, said in (({"a": 1, "b": 2}, "its fields are 'a', 'b'"), ([1], "no object")):
        with pytest.raises(Malformed, match=said):
            detect_format(content)


@pytest.mark.parametrize(
    ("format", "number", "points"),
    [
        ("healthbench", 1, [7, -9, 5]),
        ("healthbench", 6, [5]),
        ("healthbench-professional", 3, [10, -10, 3]),
        ("rar", 4, [5, -1]),
        ("rubrichub", 6, [3, -2]),
        ("researchrubrics", 2, [5, 3, -1]),
        ("researchrubrics", 4, [4, -2]),
        ("wildchecklists", 1, [90, 100]),
        ("wildchecklists", 3, [80, 100]),
        ("wildchecklists", 4, [1, 1]),
        ("wildchecklists", 6, [70, 40]),
        ("promptfoo", 2, [1, 3]),
        ("verifiers", 2, [1, 3]),
        ("verifiers", 5, [4, 1]),
        ("mapped", 5, [2, -1]),
    ],
)
def test_the_points_of_a_row(format: ExchangeFormat, number: int, points: list[int]) -> None:
    assert [c.points for c in read(row(format, number), format).criteria] == points


@pytest.mark.parametrize(
    ("format", "number", "references"),
    [
        ("healthbench", 1, {"human": 1, "healthbench reference": 4}),
        ("healthbench", 2, {}),
        ("healthbench", 3, {"human": 1}),
        ("healthbench-professional", 1, {"human": 1}),
        ("rar", 1, {"rar reference": 1}),
        ("rar", 2, {}),
        ("rar", 4, {"rar reference": 2}),
        ("rubrichub", 3, {"rubrichub answer": 1}),
        ("ifeval", 5, {"own-model": 2}),
        ("mapped", 2, {"reference": 2}),
    ],
)
def test_reference_answers_say_whose_they_are(
    format: ExchangeFormat, number: int, references: dict[str, int]
) -> None:
    found: dict[str, int] = {}
    for reference in read(row(format, number), format).references:
        found[reference.source] = found.get(reference.source, 0) + 1
    assert found == references


def test_what_weighs_nothing_and_what_is_scaled_is_noted() -> None:
    found = read(row("verifiers", 1), "verifiers")
    assert "criteria[1]: 'Is it kind?' weighs 0" in found.notes[0]
    scaled = read(row("verifiers", 2), "verifiers")
    assert "criteria: all points are multiplied by 2" in scaled.notes[0]
    assert scaled.provenance == {"format": "verifiers", "points_factor": 2.0}


def test_a_heading_among_requirements_is_no_criterion() -> None:
    found = read(row("wildchecklists", 6), "wildchecklists")
    assert [c.text for c in found.criteria] == ["Does it name a place?", "Is there a drink?"]
    assert "requirements[1]: 'Does it meet the following criteria:' is a heading" in found.notes[0]


def test_a_name_that_says_how_a_row_was_read_is_a_loss() -> None:
    content = row("rar", 5) | {"$import": {"factor": 7}}
    with pytest.raises(NotRepresentable, match=r"^\$import: this name says how a row was read"):
        read(content, "rar")


def test_instructions_become_checks_where_code_can_decide_them() -> None:
    def kinds(number: int) -> list[Any]:
        return [c.check and c.check.kind for c in read(row("ifeval", number), "ifeval").criteria]

    assert kinds(1) == ["min_words", "count"]
    assert kinds(2) == ["all_of"]
    assert kinds(3) == ["all_of", None]
    assert kinds(4) == ["occurrences"]
    found = read(row("ifeval", 3), "ifeval")
    assert found.criteria[0].text == "It has at least 50 words. It has at most 60 words."
    assert found.notes == (
        "instruction_id_list[1]: there is no check for 'ratio:sentence_balance'; a model judges it",
    )


def test_templates_of_promptfoo_are_filled_in() -> None:
    found = read(row("promptfoo", 1), "promptfoo")
    assert found.prompt[0].content == "Summarise the tides."
    assert [c.text for c in found.criteria] == ["Names the moon", "Is about the tides"]
    chat = read(row("promptfoo", 4), "promptfoo")
    assert [m.role for m in chat.prompt] == ["system", "user"]
    for prompt, said in (
        ("{{ missing }}", "there is no variable 'missing'"),
        ("{% if x %}", "only plain variables"),
        ("file://prompt.txt", "is in another file"),
    ):
        with pytest.raises(Malformed, match=f"^prompt: {said}"):
            read(row("promptfoo", 1) | {"prompt": prompt}, "promptfoo")


def test_a_configuration_of_promptfoo_makes_a_row_for_each_prompt_and_test() -> None:
    config = {
        "prompts": ["Say {{x}}.", {"raw": "Sing {{x}}.", "label": "song"}],
        "defaultTest": {"vars": {"x": "la"}, "assert": [{"type": "llm-rubric", "value": "Short"}]},
        "tests": [
            {"assert": [{"type": "llm-rubric", "value": "Kind"}]},
            {"vars": {"x": "do"}},
        ],
    }
    found = [read(each, "promptfoo") for each in config_rows(config)]
    assert [f.prompt[0].content for f in found] == ["Say la.", "Sing la.", "Say do.", "Sing do."]
    assert [[c.text for c in f.criteria] for f in found[::2]] == [["Kind", "Short"], ["Short"]]
    with pytest.raises(Malformed, match="makes 4 rubrics"):
        read(config, "promptfoo")


def test_a_variable_with_several_values_makes_a_test_of_each() -> None:
    test = {
        "vars": {"x": ["la", "do"], "y": 1},
        "assert": [{"type": "llm-rubric", "value": "{{x}}"}],
    }
    found = [
        read(each, "promptfoo")
        for each in config_rows({"prompts": ["Sing {{x}}."], "tests": [test]})
    ]
    assert [f.prompt[0].content for f in found] == ["Sing la.", "Sing do."]
    assert [f.criteria[0].text for f in found] == ["la", "do"]
    with pytest.raises(
        Malformed, match=r"^vars\.x: is a list, of which promptfoo tries each value"
    ):
        read({"prompt": "Sing {{x}}.", **test}, "promptfoo")


def test_an_assertion_may_refer_to_a_template_of_the_configuration() -> None:
    config: dict[str, Any] = {
        "prompts": "Hi.",
        "assertionTemplates": {"kind": {"type": "llm-rubric", "value": "Is kind"}},
        "tests": [{"assert": [{"$ref": "#/assertionTemplates/kind", "weight": 2}]}],
    }
    (content,) = config_rows(config)
    assert [(c.text, c.points) for c in read(content, "promptfoo").criteria] == [("Is kind", 2)]
    config["assertionTemplates"] = {}
    with pytest.raises(Malformed, match="^assert: the configuration has no '#/assertionTemplates"):
        config_rows(config)


def test_a_scenario_makes_a_test_of_each_of_its_tests_with_each_of_its_data() -> None:
    config = {
        "prompts": ["Say {{word}} in {{language}}."],
        "defaultTest": {"assert": [{"type": "llm-rubric", "value": "Is polite"}]},
        "scenarios": [
            {
                "config": [{"vars": {"language": "French"}}, {"vars": {"language": "German"}}],
                "tests": [
                    {"vars": {"word": "yes"}, "assert": [{"type": "llm-rubric", "value": "A"}]},
                    {"vars": {"word": "no", "language": "Dutch"}},
                ],
            }
        ],
    }
    assert detect_format(config) == "promptfoo"
    found = [load(each, "promptfoo") for each in config_rows(config)]
    assert [each.prompt[0].content for each in found] == [
        "Say yes in French.",
        "Say no in Dutch.",
        "Say yes in German.",
        "Say no in Dutch.",
    ]
    assert [len(each.criteria) for each in found] == [2, 1, 2, 1]
    with pytest.raises(Malformed, match=r"scenarios\[0\].config: are in another file"):
        config_rows(config | {"scenarios": [{"config": "file://x.yaml", "tests": []}]})


def test_the_value_of_an_assertion_may_be_an_object() -> None:
    found = load(row("promptfoo", 6), "promptfoo")
    assert found.criteria[0].text == '{"goal": "Names Bern", "scale": [0, 1]}'


@pytest.mark.parametrize(
    ("weights", "points"),
    [
        ((0.333, 0.333, 0.334), [1, 1, 1]),
        ((0.333, 0.667), [1, 2]),
        ((0.15, 0.35, 0.5), [3, 7, 10]),
        ((33.3, 33.3, -33.4), [1, 1, -1]),
        ((2e9, 1e9), [2, 1]),
    ],
)
def test_weights_are_scaled_to_whole_points_and_come_back(
    weights: tuple[float, ...], points: list[int]
) -> None:
    content = {
        "prompt": "Why?",
        "rubrics": [{"criterion": f"{n}", "weight": w} for n, w in enumerate(weights)],
    }
    found = load(content, "researchrubrics")
    assert [each.points for each in found.criteria] == points
    assert same(dump(rubric_of(found), "researchrubrics").content, content)


def test_rounding_is_said_and_too_fine_proportions_are_refused() -> None:
    found = load(row("researchrubrics", 6), "researchrubrics")
    assert found.provenance["points_factor"] == pytest.approx(1 / 0.334)
    assert "and rounded to whole numbers, which changes none by more than 0.5%" in found.notes[0]
    with pytest.raises(NotRepresentable, match="whatever all of them are multiplied by"):
        load(
            {
                "prompt": "Why?",
                "rubrics": [{"criterion": "a", "weight": 1}, {"criterion": "b", "weight": 0.001}],
            },
            "researchrubrics",
        )


FUNCTION = dict.fromkeys(("N", "quantifier", "word", "options", "section_splitter"))


@pytest.mark.parametrize(
    ("call", "checks"),
    [
        (
            {"func_name": "validate_word_constraint", "N": 20, "quantifier": "around"},
            [{"kind": "min_words", "value": 18}, {"kind": "max_words", "value": 22}],
        ),
        (
            {"func_name": "verify_sentence_constraint", "N": 3, "quantifier": "at most"},
            [{"kind": "count", "of": "sentences", "max": 3}],
        ),
        (
            {"func_name": "verify_keyword_frequency", "word": "tea", "N": 2},
            [{"kind": "occurrences", "text": "tea", "min": 2, "max": 2}],
        ),
        ({"func_name": "validate_no_commas"}, [{"kind": "count", "of": "commas", "max": 0}]),
        (
            {"func_name": "validate_choice", "options": ["a", "b"]},
            [{"kind": "one_of", "options": ["a", "b"]}],
        ),
        ({"func_name": "validate_choice", "options": "a or b"}, []),
        ({"func_name": "new_function", "N": 2}, []),
    ],
)
def test_a_function_of_rlvr_ifeval_becomes_a_check_or_words(
    call: dict[str, Any], checks: list[dict[str, Any]]
) -> None:
    content = {
        "messages": [{"role": "user", "content": "Do it."}],
        "ground_truth": json.dumps(FUNCTION | call),
        "dataset": "ifeval",
    }
    assert detect_format(content) == "ifeval"
    found = load(content, "ifeval")
    check = found.criteria[0].check
    made = [] if check is None else getattr(check, "checks", [check])
    assert [
        each.model_dump(mode="json", exclude_defaults=True) | {"kind": each.kind} for each in made
    ] == checks
    assert bool(found.notes) == (not checks)
    assert same(dump(rubric_of(found), "ifeval").content, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rubrics": [{"criterion": "a", "points": 1}, "b"]}, r"rubrics\[1\]: is a text alone"),
        ({"prompt": []}, "prompt: must hold at least one message"),
        ({"rubrics": [{"criterion": "a", "points": "0x1"}]}, r"rubrics\[0\].points: must be a num"),
        ({"rubrics": [{"points": 1}]}, r"rubrics\[0\].criterion: is missing"),
    ],
)
def test_what_a_row_lacks_is_said_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        load(row("healthbench", 1) | change, "healthbench")


@pytest.mark.parametrize("times", [1, 2])
def test_columns_may_be_json_in_a_text_once_or_twice(times: int) -> None:
    content = row("healthbench", 1)
    encoded = json.dumps(content["rubrics"])
    for _ in range(times - 1):
        encoded = json.dumps(encoded)
    found = load(content | {"rubrics": encoded}, "healthbench")
    assert found.criteria == load(content, "healthbench").criteria
    assert same(dump(rubric_of(found), "healthbench").content, content | {"rubrics": encoded})


def test_a_list_within_a_numbered_line_belongs_to_it() -> None:
    content = {"instruction": "Plan.", "rubric": "1. Names:\n   1) who\n   2) when\n2. Is short."}
    found = read(content, "openrubrics")
    assert [c.text for c in found.criteria] == ["Names:\n   1) who\n   2) when", "Is short."]
    assert same(dump(rubric_of(found), "openrubrics").content, content)
    stripped = read(
        {"instruction": "Plan.", "rubric": "1. Is short.\n  2. Is kind."}, "openrubrics"
    )
    assert [c.text for c in stripped.criteria] == ["Is short.", "Is kind."]


def test_criteria_in_json_may_be_repeated_in_another_column() -> None:
    encoded = [json.dumps(each) for each in row("rar", 1)["rubric"]]
    content = row("rar", 1) | {"rubric": encoded}
    assert same(dump(rubric_of(read(content, "rar")), "rar").content, content)
    content["rubric_list"] = encoded
    assert same(dump(rubric_of(read(content, "rar")), "rar").content, content)


def test_the_ground_truth_of_instructions_may_be_a_text_in_a_list() -> None:
    content = row("ifeval", 4)
    listed = content | {"ground_truth": [content["ground_truth"]], "dataset": ["ifeval"]}
    found = read(listed, "ifeval")
    assert detect_format(listed) == "ifeval"
    assert found.criteria == read(content, "ifeval").criteria
    assert same(dump(rubric_of(found), "ifeval").content, listed)


def test_labels_that_are_more_than_metadata_can_hold_are_refused() -> None:
    large = row("healthbench-meta-eval", 1) | {"completion": "x" * MAX_METADATA_BYTES}
    with pytest.raises(NotRepresentable, match="metadata may take"):
        read(large, "healthbench-meta-eval")


def test_the_rows_of_a_prompt_are_one_rubric_with_its_labels() -> None:
    rows = [row("healthbench-meta-eval", n) for n in (1, 3, 4)]
    found = read(rows, "healthbench-meta-eval")
    assert [c.text for c in found.criteria] == [
        "Says to press on the cut.",
        "Asks when the last tetanus shot was.",
    ]
    labels = found.criteria[0].metadata["healthbench-meta-eval"]["labels"]
    assert [label["binary_labels"] for label in labels] == [[True, True], [False, True]]
    assert found.metadata["healthbench-meta-eval"]["completions"] == {
        "a": "Press on it for ten minutes.",
        "c": "Wash it.",
    }
    assert same(dump(rubric_of(found), "healthbench-meta-eval").content, rows)
    rows[1] = row("healthbench-meta-eval", 2)
    with pytest.raises(Malformed, match=r"^\[1\]\.prompt: is not that of the other rows"):
        read(rows, "healthbench-meta-eval")


@pytest.mark.parametrize(
    ("prompt", "roles"),
    [
        ("A question", ["user"]),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            ["system", "user"],
        ),
        (json.dumps([{"role": "user", "content": "u"}]), ["user"]),
        ({"messages": [{"role": "user", "content": "u"}]}, ["user"]),
        ("[not JSON", ["user"]),
        ("[1, 2]", ["user"]),
    ],
)
def test_a_prompt_may_be_text_or_messages_or_either_in_json(prompt: Any, roles: list[str]) -> None:
    content = {"q": prompt, "c": ["Is good."]}
    found = load(content, "mapped", mapping={"prompt": "q", "criteria": "c"})
    assert [message.role for message in found.prompt] == roles
    assert same(dump(rubric_of(found), "mapped").content, content)


@pytest.mark.parametrize(("format", "content"), SAMPLES)
def test_a_table_of_texts_says_the_same_as_the_rows(format: ExchangeFormat, content: Any) -> None:
    """As a CSV file has it: what is no text is JSON in one, and nothing is an empty text."""
    if format in ("native", "ropd", "verifiers"):
        return
    cells = {
        name: value if isinstance(value, str) else "" if value is None else json.dumps(value)
        for name, value in content.items()
    }
    assert format == "mapped" or detect_format(cells) == format
    found, plain = read(cells, format), read(content, format)
    assert (found.prompt, found.tags) == (plain.prompt, plain.tags)
    assert [(c.text, c.points, c.check) for c in found.criteria] == [
        (c.text, c.points, c.check) for c in plain.criteria
    ]
    assert same(dump(rubric_of(found), format).content, cells)


def test_numbered_columns_are_a_conversation() -> None:
    content = {
        "prompt_0": "One?",
        "response_0": "Two.",
        "prompt_1": "Three?",
        "response_1": "is to be judged",
        "prompt_2": None,
        "c": ["Is good."],
    }
    for path in ("prompt", "prompt_*", "prompt_*+response_*"):
        found = load(content, "mapped", mapping={"prompt": path, "criteria": "c"})
        assert [(m.role, m.content) for m in found.prompt] == [
            ("user", "One?"),
            ("assistant", "Two."),
            ("user", "Three?"),
        ]
        assert same(dump(rubric_of(found), "mapped").content, content)


def test_a_mapping_reaches_into_json_and_takes_the_first_path_that_is_there() -> None:
    content = {
        "history": json.dumps([{"role": "user", "content": "Hi"}]),
        "meta": json.dumps({"rubrics": [{"a": {"weight": 2}, "t": "One."}, {"b": 4, "t": "Two."}]}),
    }
    mapping: Any = {
        "prompt": "history",
        "criteria": "meta.rubrics",
        "text": "t",
        "points": "a.weight|b",
    }
    found = load(content, "mapped", mapping=mapping)
    assert [(c.text, c.points) for c in found.criteria] == [("One.", 2), ("Two.", 4)]
    assert same(dump(rubric_of(found), "mapped").content, content)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"prompt": "q"}, "the mapping says nothing of criteria"),
        ({"prompt": "q", "criteria": "c..d"}, "the mapping of criteria: 'c..d' is no path"),
        ({"prompt": "none", "criteria": "d"}, "none: is missing; give the prompt"),
        ({"prompt": "q", "criteria": "none"}, "none: is missing"),
        ({"prompt": "q", "criteria": "q"}, "q[0]: must be an object|holds"),
        ({"prompt": "q", "criteria": "c", "text": "t"}, "c[1].t: is missing"),
        ({"prompt": "q", "criteria": "c", "text": "s", "points": "p"}, "c[0].p: must be a number"),
    ],
)
def test_a_mapping_that_does_not_fit_names_the_place(mapping: Any, message: str) -> None:
    content = {"q": "A question", "d": ["x"], "c": [{"t": "x", "s": "y", "p": "many"}, {"s": "z"}]}
    if mapping.get("criteria") == "q":
        assert len(load(content, "mapped", mapping=mapping).criteria) == 1
        return
    with pytest.raises(Malformed) as caught:
        load(content, "mapped", mapping=mapping)
    assert str(caught.value).startswith(message)


def test_a_mapping_is_for_rows_of_ones_own_and_they_need_one() -> None:
    with pytest.raises(Malformed, match="needs a mapping"):
        load(row("mapped", 1), "mapped")
    with pytest.raises(Malformed, match="not for rar"):
        load(row("rar", 1), "rar", mapping=MAPPING)
    with pytest.raises(NotRepresentable, match="was not imported with a mapping"):
        dump(rubric(Criterion(text="x", points=1)), "mapped")


def test_an_edited_rubric_is_written_with_its_edits_and_the_rows_other_fields() -> None:
    found = read(row("rar", 1), "rar")
    edited = rubric_of(found).model_copy(
        update={
            "criteria": [
                found.criteria[0].model_copy(update={"points": 3}),
                Criterion(id="c2", text="Names light.", points=2),
            ]
        }
    )
    content = dump(edited, "rar").content
    assert content["rubric"] == [
        {
            "title": "Scattering",
            "description": "Essential Criteria: Names scattering of light.",
            "weight": 3,
        },
        {"title": "c2", "description": "Names light.", "weight": 2},
    ]
    assert (content["rubric_count"], content["question_source"]) == (2, "own")
    assert content["rubric_list"] == [each["description"] for each in content["rubric"]]


def test_an_edited_text_of_numbered_lines_is_written_anew() -> None:
    found = read(row("wildchecklists", 3), "wildchecklists")
    fewer = rubric_of(found).model_copy(update={"criteria": list(found.criteria[:1])})
    content = dump(fewer, "wildchecklists").content
    assert content["requirements"] == "1) Are there three birds? (importance: 80/100)"
    assert content["chosen"] is None


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("Is it\n2) two lines?", "wildchecklists"),
        ("Is short [Principle]", "openrubrics"),
        ("Is {{x}}", "promptfoo"),
    ],
)
def test_a_text_that_the_format_would_read_otherwise_is_refused(
    text: str, format: ExchangeFormat
) -> None:
    with pytest.raises(NotRepresentable, match="would"):
        dump(rubric(Criterion(id="c1", text=text, points=1)), format, allow_loss=True)


def test_metadata_of_another_format_is_a_loss_of_an_export() -> None:
    found = read(row("rar", 1), "rar")
    with pytest.raises(NotRepresentable, match="HealthBench has no place for the metadata: rar"):
        dump(rubric_of(found), "healthbench")
    assert "rubrics" in dump(rubric_of(found), "healthbench", allow_loss=True).content


def test_fields_larger_than_metadata_can_hold_are_a_loss() -> None:
    content = row("rubrichub", 3) | {"rubric_judge_details": "x" * MAX_METADATA_BYTES}
    with pytest.raises(NotRepresentable, match="^rubric_judge_details: takes ") as caught:
        read(content, "rubrichub")
    assert caught.value.allowable
    found = read(content, "rubrichub", allow_loss=True)
    assert set(found.metadata["rubrichub"]) >= {"source", "sample_id", "answer"}
    assert "rubric_judge_details" not in found.metadata["rubrichub"]


@pytest.mark.parametrize(
    "hostile",
    [
        "[" * 100_000,
        "[" * 500 + "]" * 500,
        '[{"description": "\\ud800", "weight": 1}]',
        '[{"description": "x", "weight": NaN}]',
        '[{"description": "x", "weight": ' + "9" * 5000 + "}]",
        [{"description": "x", "weight": "9" * 5000}],
        [{"description": "x", "weight": "1e999"}],
        " " * 200_000 + "[",
    ],
)
def test_hostile_json_in_a_text_is_refused(hostile: Any) -> None:
    with pytest.raises((Malformed, NotRepresentable)):
        load({"question": "Why?", "rubric": hostile}, "rar")


def test_long_runs_of_spaces_take_no_time() -> None:
    spaces = "a" + " " * 300_000 + "b"
    for format, content in (
        (
            "wildchecklists",
            {"prompt": "p", "requirements": f"1) {spaces}\n2) (importance: {spaces}"},
        ),
        ("openrubrics", {"instruction": "p", "rubric": f"1. {spaces}\n{spaces}"}),
        ("promptfoo", {"prompt": "{{" + spaces, "assert": []}),
        ("ifeval", {"prompt": "p", "ground_truth": spaces}),
    ):
        with pytest.raises((Malformed, NotRepresentable)):
            load(content, format)  # type: ignore[arg-type]


def test_up_to_256_criteria() -> None:
    criteria = [{"description": f"{i}.", "weight": 1} for i in range(256)]
    assert len(load({"question": "Why?", "rubric": criteria}, "rar").criteria) == 256
    criteria.append({"description": "x", "weight": 1})
    with pytest.raises(NotRepresentable, match="257 criteria"):
        load({"question": "Why?", "rubric": criteria}, "rar")


NUMBERS = st.integers(-5, 5) | st.sampled_from([0.1, 5e-324, 1e308])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text('ab[{"c', max_size=4)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "index", "item", "$import"]), LEAVES)
JSON = LEAVES | OBJECTS | st.lists(LEAVES, max_size=3) | st.lists(OBJECTS, max_size=3)


@given(
    own=st.dictionaries(
        st.sampled_from(("$import", "rubric_count", "rubric", "question", "x")), JSON, max_size=4
    ),
    how=st.dictionaries(
        st.sampled_from(
            (
                "prompt",
                "prompt_at",
                "criteria",
                "criteria_at",
                "left_out",
                "factor",
                "derived",
                "bare",
                "tags",
                "has_tags",
                "no_prompt",
                "map",
                "points",
                "points_are",
                "text",
                "text_is",
                "plain",
                "no_points",
            )
        ),
        JSON,
        max_size=5,
    ),
    format=st.sampled_from([f for f in EXCHANGE_FORMATS if f != "native"]),
)
def test_metadata_that_anyone_wrote_never_breaks_an_export(
    own: dict[str, Any], how: dict[str, Any], format: ExchangeFormat
) -> None:
    metadata = {format: own | {"$import": how}}
    made = rubric(
        *(Criterion(id=f"c{i}", text=f"{i}", points=1, metadata=metadata) for i in range(1, 5)),
        prompt=(Message(role="user", content="x"),),
    ).model_copy(update={"metadata": metadata})
    try:
        exported = dump(made, format, allow_loss=True)
    except NotRepresentable:
        return
    mapping = how.get("map") if format == "mapped" else None
    with suppress(Malformed):  # it brings its own prompt
        found = load(exported.content, format, prompt="x", mapping=mapping, allow_loss=True)
    with suppress(Malformed):  # it brings none
        found = load(exported.content, format, mapping=mapping, allow_loss=True)
    assert [(c.text, c.points) for c in found.criteria] == [(f"{i}", 1) for i in range(1, 5)]
