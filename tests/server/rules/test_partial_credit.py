"""Rungs are easier than the check they stand below, and nothing else."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from markscheme import checks as wire
from markscheme_server.rules.checks import run_check, validate_check
from markscheme_server.rules.partial_credit import easier_checks

Check = dict[str, Any]
EXAMPLES: list[tuple[Check, str]] = [
    ({"kind": "count", "of": "commas", "max": 0}, "none"),
    ({"kind": "count", "of": "sentences", "min": 3}, "A. B! C? D."),
    ({"kind": "count", "of": "sentences", "max": 1}, "One only."),
    ({"kind": "count", "of": "bullets", "min": 4, "max": 4}, "* a\n* b\n* c\n* d"),
    ({"kind": "count", "of": "starred_parts", "min": 2, "max": 2}, "a *** b"),
    ({"kind": "count", "of": "responses", "min": 2, "max": 2}, "a ****** b"),
    ({"kind": "min_words", "value": 40}, "word " * 40),
    ({"kind": "max_words", "value": 4}, "one two"),
    ({"kind": "occurrences", "text": "sea", "min": 4}, "sea sea sea sea"),
    ({"kind": "occurrences", "text": "sea", "max": 1}, "a sea"),
    ({"kind": "letter_count", "letter": "q", "min": 4}, "qqqq"),
    ({"kind": "letter_count", "letter": "q", "max": 0}, "none"),
    ({"kind": "contains", "texts": ["salt", "sea"]}, "sea salt"),
    ({"kind": "uppercase"}, "LOUD"),
    ({"kind": "lowercase"}, "quiet"),
    ({"kind": "quoted"}, '"said"'),
    ({"kind": "title"}, "<<Tea>>"),
    ({"kind": "json_valid"}, '```json\n{"a": 1}```'),
    (
        {"kind": "starts_with", "text": "Tell me:\nwhat is tea made of?"},
        "Tell me:\nwhat is tea made of? Leaf.",
    ),
    ({"kind": "ends_with", "text": "Goodbye."}, "Well, goodbye."),
    ({"kind": "sections", "marker": "PART", "min": 3}, "PART 1 PART 2 PART 3"),
    ({"kind": "paragraph_start", "paragraphs": 2, "paragraph": 2, "word": "then"}, "a\n\nThen b"),
    ({"kind": "one_of", "options": ["My answer is yes.", "My answer is no."]}, "My answer is no."),
]


@pytest.mark.parametrize(("check", "text"), EXAMPLES)
def test_who_meets_the_check_meets_its_rungs(check: Check, text: str) -> None:
    assert run_check(check, text).met
    steps = easier_checks(check)
    assert 1 <= len(steps) <= 2
    assert all(run_check(step.check, text).met for step in steps)


@given(
    st.lists(
        st.sampled_from(
            ["sea", "Salt", ",", ".", "* ", "\n", '"', "***", "q", "A", " ", "PART 1 ", "<<t>>"]
        ),
        max_size=20,
    ).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_rungs_are_implied_on_any_text(text: str) -> None:
    for check, _ in EXAMPLES:
        if check["kind"] != "json_valid" and run_check(check, text).met:
            assert all(run_check(step.check, text).met for step in easier_checks(check)), check


def test_rungs_are_valid_checks_with_statements() -> None:
    for check, _ in EXAMPLES:
        for step in easier_checks(check):
            TypeAdapter(wire.Check).validate_python(dict(step.check))
            validate_check(step.check)
            assert step.text.endswith(".")


def test_commas_give_a_slope_that_brevity_alone_does_not_climb() -> None:
    commas = [
        {"kind": "count", "of": "commas", "max": 0},
        *(s.check for s in easier_checks({"kind": "count", "of": "commas", "max": 0})),
    ]

    def met(text: str) -> int:
        return sum(run_check(check, text).met for check in commas)

    assert [met("a " * 40), met("a, " + "a " * 40), met("a, b, c"), met("a, " * 20)] == [3, 2, 1, 0]


def test_no_slope_where_there_is_none() -> None:
    assert easier_checks({"kind": "postscript", "marker": "P.S."}) == []
    assert easier_checks({"kind": "excludes", "texts": ["sea"]}) == []
    assert (
        easier_checks(
            {"kind": "one_of", "options": ["a b " * 300 + "x", "a b " * 300 + "y" * 1200]}
        )
        == []
    )
