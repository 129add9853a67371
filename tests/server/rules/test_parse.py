"""What is read from a prompt and, as much, what is not."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from markscheme import checks as wire
from markscheme_server.rules.parse import parse_constraints

Check = dict[str, Any]
PARAPHRASES = Path(__file__).parents[3] / "benchmarks" / "data" / "paraphrases.jsonl"


def read(prompt: str) -> list[Check]:
    return [dict(candidate.check) for candidate in parse_constraints(prompt)]


def paraphrases() -> list[Any]:
    rows = [json.loads(line) for line in PARAPHRASES.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(row["prompt"], row["expected"], id=row["id"]) for row in rows]


def bare(check: Check) -> Check:
    """Return the check with its phrases in lower case."""
    return json.loads(json.dumps(check).lower())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("prompt", "expected"), paraphrases())
def test_a_paraphrase_is_read_as_meant(prompt: str, expected: list[Check]) -> None:
    found = [bare(check) for check in read(prompt)]
    assert all(bare(check) in found for check in expected)
    if not expected:
        assert found == []


TRAPS: list[tuple[str, list[Check]]] = [
    (
        'Write about tea. Don\'t forget to include the word "leaf".',
        [{"kind": "contains", "texts": ["leaf"]}],
    ),
    ("Write about tea. Your answer must not contain lowercase letters.", [{"kind": "uppercase"}]),
    ("Write about tea without any capital letters.", [{"kind": "lowercase"}]),
    ("Write a poem about the German language and its long nouns.", []),
    ("Translate this from French: 'Bonjour'.", []),
    (
        "Describe tea in the range of 40 to 60 words.",
        [{"kind": "min_words", "value": 40}, {"kind": "max_words", "value": 60}],
    ),
    (
        "Write three parts about tea and put *** between them.\nExample:\npart one\n***\npart two",
        [{"kind": "count", "of": "starred_parts", "min": 3, "max": 3}],
    ),
    (
        "Use exactly this format, with *** as divider:\none\n***\ntwo\n***\nthree",
        [{"kind": "count", "of": "starred_parts", "min": 3, "max": 3}],
    ),
    (
        "Write about tea. Finish with this exact phrase: Would you like a cup?",
        [{"kind": "ends_with", "text": "Would you like a cup?"}],
    ),
    ('Explain the saying "use 300 words or more, with no commas".', []),
    (
        "Write about tea. At least 5 words should be in all caps.",
        [{"kind": "count", "of": "capital_words", "min": 5}],
    ),
    (
        "Write about tea using the letter q no more than twice.",
        [{"kind": "letter_count", "letter": "q", "max": 2}],
    ),
    (
        "Write about tea and avoid the letter q more than twice.",
        [{"kind": "letter_count", "letter": "q", "max": 2}],
    ),
    (
        'Write about tea. Use "cup" once or less.',
        [{"kind": "occurrences", "text": "cup", "max": 1}],
    ),
    ("Write an essay of 1,200+ words about tea.", [{"kind": "min_words", "value": 1200}]),
    (
        "Write exactly 3 paragraphs about tea. Paragraph 0 must start with the word leaf.",
        [
            {"kind": "count", "of": "paragraphs", "min": 3, "max": 3},
            {"kind": "contains", "texts": ["leaf"]},
        ],
    ),
    ("Write 99,999,999 words about tea.", []),
    ("Tell me about tea.", []),
    ("", []),
]


@pytest.mark.parametrize(("prompt", "expected"), TRAPS)
def test_traps(prompt: str, expected: list[Check]) -> None:
    assert read(prompt) == expected


def test_a_rough_length_is_inferred_not_firm() -> None:
    low, high = parse_constraints("Write a 200 word essay about tea.")
    assert (low.check["value"], high.check["value"], low.firm) == (160, 240, False)


def test_the_source_is_the_prompts_own_words() -> None:
    prompt = "Tell me about tea. Please don’t use any commas! Then say “leaf” at least twice."
    candidates = parse_constraints(prompt)
    assert [c.source for c in candidates] == [
        "Please don’t use any commas!",
        "Then say “leaf” at least twice.",
    ]
    assert all(c.source in prompt for c in candidates)


def test_a_repeated_request_is_told_from_the_talk_about_it() -> None:
    below = (
        "First repeat the request below word for word, then answer. Do not change it.\n\n"
        "Describe tea. Be brief."
    )
    above = (
        "Describe tea. Be brief.\n"
        "First repeat the request above, word for word, then give your answer."
    )
    for prompt in (below, above):
        assert {"kind": "starts_with", "text": "Describe tea. Be brief."} in read(prompt)


def test_statements_name_no_teacher_and_are_sentences() -> None:
    for row in paraphrases():
        for candidate in parse_constraints(row.values[0]):
            assert "teacher" not in candidate.text.lower()
            assert candidate.text.startswith(("The ", "All ", "“"))


PIECES = [
    '"',
    "'",
    "at least ",
    "no ",
    "3 ",
    "words ",
    "the word ",
    "letter x ",
    "commas. ",
    "*** ",
    "******",
    "<<t>> ",
    "\n",
    "repeat the request ",
    "in German ",
    "either ",
    "or ",
    "end with ",
    "P.P.S ",
    "Section 1 ",
    "all caps ",
    "paragraph 2 ",
    "start with ",
    "bullet points ",
    "twice ",
    "not ",
    "İ",
    "“",
    "¤",
    "tea. ",
    "exactly ",
    "\u2028",
    "\u00a0",
    "include ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_whatever_is_read_is_a_valid_check_with_an_exact_source(prompt: str) -> None:
    for candidate in parse_constraints(prompt):
        TypeAdapter(wire.Check).validate_python(dict(candidate.check))
        assert candidate.source in prompt


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u2003", "\u2028", "\x85", "\x1c"])
@pytest.mark.parametrize(
    "prompt",
    [
        'Start with "{}".',
        'Include the word "{}" at least 5 times.',
        'Do not use the word "{}".',
        "Answer with one of: '{}', 'b'.",
    ],
)
def test_a_quotation_of_white_space_asks_for_nothing(prompt: str, space: str) -> None:
    for candidate in parse_constraints(prompt.format(space)):
        TypeAdapter(wire.Check).validate_python(dict(candidate.check))


@pytest.mark.parametrize(
    "piece",
    [
        "the letter ",
        "<<\nbullet ",
        "# first the letter ",
        "words n't ",
        '"a" or "b" ',
        "*",
        "the words a, ",
        " ",
        "\n",
        "'a' 3 to 4 ",
        "between three ",
        "a",
    ],
)
def test_a_hostile_prompt_costs_little(piece: str) -> None:
    started = time.process_time()
    parse_constraints(piece * 20_000)
    assert time.process_time() - started < 2
