"""What a check asks, in a sentence."""

import typing

import pytest
from pydantic import TypeAdapter

from markscheme import checks
from markscheme.schema import Check
from markscheme_server.pages.check_words import sentence

SENTENCES = [
    ({"kind": "min_words", "value": 1}, "has at least 1 word"),
    ({"kind": "max_words", "value": 1200}, "has at most 1,200 words"),
    ({"kind": "count", "of": "bullets", "min": 3, "max": 3}, "has exactly 3 bullet points"),
    ({"kind": "count", "of": "commas", "max": 0}, "has at most 0 commas"),
    (
        {"kind": "count", "of": "sentences", "min": 1, "max": 2, "per_words": 100},
        "has 1 to 2 sentences for each 100 words",
    ),
    ({"kind": "occurrences", "text": "tea", "min": 2}, "has “tea” at least 2 times"),
    ({"kind": "letter_count", "letter": "q", "max": 1}, "has the letter “q” at most 1 time"),
    ({"kind": "contains", "texts": ["a", "b", "c"]}, "has “a”, “b” and “c”"),
    ({"kind": "contains", "texts": ["a", "b"], "match": "any"}, "has “a” or “b”"),
    ({"kind": "excludes", "texts": ["a", "b"]}, "does not have “a” or “b”"),
    ({"kind": "lowercase"}, "is all in lower case"),
    ({"kind": "uppercase", "share": 0.8}, "has at least 80 % of its letters in capitals"),
    ({"kind": "quoted"}, "is in double quotation marks"),
    ({"kind": "title"}, "has a title in <<double angular brackets>>"),
    ({"kind": "json_valid"}, "is valid JSON"),
    ({"kind": "starts_with", "text": "Dear"}, "begins with “Dear”"),
    ({"kind": "ends_with", "text": "Bye"}, "ends with “Bye”"),
    ({"kind": "postscript"}, "has a postscript that begins with “P.S.”"),
    (
        {"kind": "sections", "marker": "Part", "min": 2},
        "has at least 2 sections headed by “Part” and a number",
    ),
    (
        {"kind": "paragraph_start", "paragraphs": 4, "paragraph": 2, "word": "So"},
        "has exactly 4 paragraphs, of which number 2 begins with “So”",
    ),
    ({"kind": "one_of", "options": ["yes", "no"]}, "has one of the answers “yes” or “no”"),
    ({"kind": "language", "language": "fa"}, "is in Persian"),
    ({"kind": "regex", "pattern": "a+", "ignore_case": True}, "matches the pattern “a+”"),
    ({"kind": "not_echo", "text": "x"}, "takes at most 50 % of its wording from the prompt"),
    ({"kind": "no_repetition"}, "repeats at most 30 % of its own wording"),
    (
        {
            "kind": "all_of",
            "view": "assistant",
            "checks": [
                {"kind": "min_words", "value": 5},
                {"kind": "no_repetition", "max_share": 0.6},
                {"kind": "language", "language": "en"},
            ],
        },
        "has at least 5 words, repeats at most 60 % of its own wording and is in English "
        "in all that the assistant says",
    ),
]


def written(check: object) -> str:
    found = TypeAdapter(Check).validate_python(check)
    return sentence(found).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(("check", "said"), SENTENCES, ids=[c["kind"] for c, _ in SENTENCES])
def test_a_check_is_a_sentence(check: object, said: str) -> None:
    assert written(check).startswith(f"The response {said}")
    assert written(check).endswith(".")


def test_every_kind_of_check_has_a_sentence() -> None:
    members = typing.get_args(typing.get_args(Check)[0])
    kinds = {typing.get_args(member.model_fields["kind"].annotation)[0] for member in members}
    assert kinds == {check["kind"] for check, _ in SENTENCES}


def test_every_language_has_a_name() -> None:
    for code in typing.get_args(checks.LanguageCode):
        assert " is in " in written({"kind": "language", "language": code})


def test_long_lists_and_phrases_are_shortened() -> None:
    said = written({"kind": "excludes", "texts": ["word " * 300] * 20})
    assert said.endswith("or 12 more.")
    assert len(said) < 1000
