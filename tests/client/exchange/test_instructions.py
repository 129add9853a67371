"""Test the words and the checks of IFEval's instructions, and what a row of them may lack."""

import json
from typing import Any

import pytest

from client.test_exchange import rubric_of
from markscheme.exchange import Malformed, NotRepresentable, dump, load

PROMPT = [{"role": "user", "content": "Do it."}]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("keywords:existence", {"keywords": ["a", "b"]}, "It contains “a”, “b”."),
        ("keywords:forbidden_words", {"forbidden_words": ["a"]}, "It does not contain “a”."),
        (
            "keywords:letter_frequency",
            {"letter": "e", "let_relation": "less than", "let_frequency": 4},
            "The letter “e” occurs at most 3 times.",
        ),
        (
            "change_case:english_lowercase",
            {},
            "It is in lower case. It is in the language “en”.",
        ),
        ("startend:quotation", {}, "It is wrapped in double quotation marks."),
        ("detectable_format:title", {}, "It has a title in <<double angular brackets>>."),
        ("combination:repeat_prompt", {"prompt_to_repeat": "x"}, "It begins by repeating “x”."),
        ("startend:end_checker", {"end_phrase": "Bye."}, "It ends with “Bye.”."),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.S."},
            "It has a postscript that begins with “P.S.”.",
        ),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "Part", "num_sections": 2},
            "It has at least 2 sections headed “Part” and a number.",
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "so"},
            "It has 3 paragraphs, and number 2 begins with “so”.",
        ),
    ],
)
def test_an_instruction_says_in_words_what_its_check_decides(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    row = {"prompt": "Do it.", "instruction_id_list": [name], "kwargs": [arguments]}
    (criterion,) = load(row, "ifeval").criteria
    assert criterion.text == words
    assert criterion.check is not None


@pytest.mark.parametrize("nothing", [None, ""])
def test_instructions_without_arguments_need_none(nothing: Any) -> None:
    row = {"prompt": "Do it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": nothing}
    assert load(row, "ifeval").criteria[0].text == "It has no commas."


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"instruction_id_list": [1]}, "instruction_id_list: must be a list of texts"),
        ({"instruction_id_list": ["a"], "kwargs": [1]}, "kwargs: must be a list of objects"),
        ({"instruction_id_list": ["a"], "kwargs": [{}, {}]}, "kwargs: there are 2 for 1 instr"),
        ({"ground_truth": "instruction_id: x"}, "ground_truth: is neither JSON nor a Python lit"),
        ({"ground_truth": {"kwargs": []}}, "ground_truth: must hold instruction_id and kwargs"),
    ],
)
def test_a_column_that_is_not_of_the_format_is_named(columns: Any, message: str) -> None:
    with pytest.raises(Malformed) as refused:
        load({"prompt": "Do it."} | columns, "ifeval")
    assert str(refused.value).startswith(message)


def test_a_ground_truth_may_be_written_as_python() -> None:
    truth = str([{"instruction_id": ["punctuation:no_comma"], "kwargs": [None]}])
    with pytest.raises(json.JSONDecodeError):
        json.loads(truth)
    found = load({"messages": PROMPT, "ground_truth": truth}, "ifeval")
    assert [c.text for c in found.criteria] == ["It has no commas."]


def test_an_edited_instruction_is_not_written_as_the_one_it_was() -> None:
    row = {"prompt": "Do it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    found = load(row, "ifeval")
    edited = found.criteria[0].model_copy(update={"text": "It has few commas."})
    made = rubric_of(found).model_copy(update={"criteria": [edited]})
    with pytest.raises(NotRepresentable, match="it was edited"):
        dump(made, "ifeval")
