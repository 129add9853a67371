"""The verifiable instructions of IFEval and IFBench: as checks where code can decide them."""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from markscheme.checks import Check
from markscheme.exchange.base import ConversionIssues, Malformed
from markscheme.exchange.paths import MISSING, decode
from markscheme.exchange.values import require
from markscheme.schema.metadata import check_json

Arguments = Mapping[str, Any]
MAX_LITERAL = 100_000
"""Characters of a Python literal that are read."""
_CHECK: TypeAdapter[Any] = TypeAdapter(Check)
_CASE = {"english_capital": "uppercase", "english_lowercase": "lowercase"}
_PLAIN: dict[str, dict[str, Any]] = {
    "two_responses": {"kind": "count", "of": "responses", "min": 2, "max": 2},
    "json_format": {"kind": "json_valid"},
    "title": {"kind": "title"},
    "no_comma": {"kind": "count", "of": "commas", "max": 0},
    "quotation": {"kind": "quoted"},
    "constrained_response": {
        "kind": "one_of",
        "options": ["My answer is yes.", "My answer is no.", "My answer is maybe."],
    },
}


def read_instructions(columns: Arguments) -> list[dict[str, Any]]:
    """Return the instructions of a row with their arguments, in order.

    Args:
        columns: `instruction_id_list` and `kwargs`, or `ground_truth` that holds both (as
            `instruction_id` and `kwargs`, or as RLVR-IFeval's `func_name` and its arguments; in
            JSON or as Python writes it).

    Raises:
        Malformed: Names the column at fault.
    """
    if "ground_truth" in columns:
        named, arguments = _from_ground_truth(columns["ground_truth"])
        column = "ground_truth"
    else:
        named, arguments = columns.get("instruction_id_list", MISSING), columns.get("kwargs")
        column = "instruction_id_list"
    names = decode(named)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise require(named, column, "a list of texts")
    each = decode(arguments)
    if each is None or each == "":
        each = [None] * len(names)
    each = [decode(own) for own in each] if isinstance(each, list) else each
    if not isinstance(each, list) or not all(isinstance(a, dict | None) for a in each):
        raise require(arguments, "kwargs", "a list of objects")
    if len(each) != len(names):
        raise Malformed(f"kwargs: there are {len(each)} for {len(names)} instructions")
    return [{"instruction_id": name, "kwargs": own} for name, own in zip(names, each, strict=True)]


def _from_ground_truth(value: Any) -> tuple[Any, Any]:
    if isinstance(value, str):
        decoded = decode(value)
        if isinstance(decoded, str) and len(value) <= MAX_LITERAL:
            try:
                decoded = check_json(ast.literal_eval(value))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise Malformed("ground_truth: is neither JSON nor a Python literal") from None
        value = decoded
    if isinstance(value, list) and len(value) == 1:
        if isinstance(value[0], str):
            return _from_ground_truth(value[0])
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("func_name"), str):
        arguments = {name: each for name, each in value.items() if name != "func_name"}
        return [value["func_name"]], [arguments]
    if not isinstance(value, dict) or "instruction_id" not in value:
        raise Malformed("ground_truth: must hold instruction_id and kwargs, or func_name")
    return value["instruction_id"], value.get("kwargs")


def instruction_criterion(
    instruction: Arguments, location: str, issues: ConversionIssues
) -> tuple[str, Check | None]:
    """Return the text of an instruction, and its check where there is one for it."""
    name = instruction["instruction_id"]
    arguments = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in (instruction["kwargs"] or {}).items()
        if value is not None
    }
    try:
        checks = checks_of(name, arguments)
        check = _CHECK.validate_python(
            checks[0] if len(checks) == 1 else {"kind": "all_of", "checks": checks}
        )
    except (KeyError, ValidationError, TypeError, ValueError):
        issues.notes.append(f"{location}: there is no check for {name!r}; a model judges it")
        return _words_of(name, arguments), None
    text = " ".join(_describe(each) for each in checks)
    return text, check


def checks_of(instruction: str, arguments: Arguments) -> list[dict[str, Any]]:
    """Return the checks that say the same as an instruction of IFEval or IFBench.

    Raises `KeyError` where there are none, or an argument is missing.
    """
    name = instruction.split(":")[-1]
    if name in _CASE:
        return [{"kind": _CASE[name]}, {"kind": "language", "language": "en"}]
    translate = _TRANSLATIONS.get(name) or _FUNCTIONS.get(name)
    return [_PLAIN[name]] if translate is None else translate(arguments)


def _bounds(relation: str, amount: int) -> dict[str, int]:
    return {"at least": {"min": amount}, "less than": {"max": amount - 1}}[relation]


def _exactly(a: Arguments) -> dict[str, int]:
    return {"min": a["N"], "max": a["N"]}


def _quantified(a: Arguments, around: int) -> dict[str, int]:
    """Return the bounds of RLVR-IFeval's quantifiers; `around` is the distance allowed."""
    amount = a["N"]
    return {
        "at least": {"min": amount},
        "at most": {"max": amount},
        "around": {"min": max(0, amount - around), "max": amount + around},
    }[a["quantifier"]]


def _words(a: Arguments) -> list[dict[str, Any]]:
    bounds = _bounds(a["relation"], a["num_words"])
    return [{"kind": f"{side}_words", "value": value} for side, value in bounds.items()]


_TRANSLATIONS: dict[str, Callable[[Arguments], list[dict[str, Any]]]] = {
    "number_words": _words,
    "word_count_range": lambda a: [
        {"kind": "min_words", "value": a["min_words"]},
        {"kind": "max_words", "value": a["max_words"]},
    ],
    "number_sentences": lambda a: [
        {"kind": "count", "of": "sentences", **_bounds(a["relation"], a["num_sentences"])}
    ],
    "capital_word_frequency": lambda a: [
        {
            "kind": "count",
            "of": "capital_words",
            **_bounds(a["capital_relation"], a["capital_frequency"]),
        }
    ],
    "repeat_prompt": lambda a: [{"kind": "starts_with", "text": a["prompt_to_repeat"]}],
    "number_placeholders": lambda a: [
        {"kind": "count", "of": "placeholders", "min": a["num_placeholders"]}
    ],
    "postscript": lambda a: [{"kind": "postscript", "marker": a["postscript_marker"]}],
    "multiple_sections": lambda a: [
        {"kind": "sections", "marker": a["section_spliter"], "min": a["num_sections"]}
    ],
    "number_bullet_lists": lambda a: [
        {"kind": "count", "of": "bullets", "min": a["num_bullets"], "max": a["num_bullets"]}
    ],
    "number_highlighted_sections": lambda a: [
        {"kind": "count", "of": "highlights", "min": a["num_highlights"]}
    ],
    "existence": lambda a: [{"kind": "contains", "texts": list(a["keywords"])}],
    "forbidden_words": lambda a: [{"kind": "excludes", "texts": list(a["forbidden_words"])}],
    "frequency": lambda a: [
        {"kind": "occurrences", "text": a["keyword"], **_bounds(a["relation"], a["frequency"])}
    ],
    "letter_frequency": lambda a: [
        {
            "kind": "letter_count",
            "letter": a["letter"],
            **_bounds(a["let_relation"], a["let_frequency"]),
        }
    ],
    "response_language": lambda a: [{"kind": "language", "language": a["language"]}],
    "nth_paragraph_first_word": lambda a: [
        {
            "kind": "paragraph_start",
            "paragraphs": a["num_paragraphs"],
            "paragraph": a["nth_paragraph"],
            "word": a["first_word"],
        }
    ],
    "number_paragraphs": lambda a: [
        {
            "kind": "count",
            "of": "starred_parts",
            "min": a["num_paragraphs"],
            "max": a["num_paragraphs"],
        }
    ],
    "end_checker": lambda a: [{"kind": "ends_with", "text": a["end_phrase"]}],
}
_FUNCTIONS: dict[str, Callable[[Arguments], list[dict[str, Any]]]] = {
    "validate_choice": lambda a: [{"kind": "one_of", "options": a["options"]}],
    "validate_end": lambda a: [{"kind": "ends_with", "text": a["end_phrase"]}],
    "validate_forbidden_words": lambda a: [{"kind": "excludes", "texts": a["forbidden_words"]}],
    "validate_frequency_capital_words": lambda a: [
        {"kind": "count", "of": "capital_words", **_quantified(a, 0)}
    ],
    "validate_highlighted_sections": lambda a: [
        {"kind": "count", "of": "highlights", "min": a["N"]}
    ],
    "validate_json_format": lambda _: [{"kind": "json_valid"}],
    "validate_lowercase": lambda _: [{"kind": "lowercase"}],
    "validate_no_commas": lambda _: [{"kind": "count", "of": "commas", "max": 0}],
    "validate_paragraphs": lambda a: [
        {
            "kind": "paragraph_start",
            "paragraphs": a["N"],
            "paragraph": a["i"],
            "word": a["first_word"],
        }
    ],
    "validate_placeholders": lambda a: [{"kind": "count", "of": "placeholders", "min": a["N"]}],
    "validate_quotation": lambda _: [{"kind": "quoted"}],
    "validate_repeat_prompt": lambda a: [{"kind": "starts_with", "text": a["original_prompt"]}],
    "validate_response_language": lambda a: [{"kind": "language", "language": a["language"]}],
    "validate_sections": lambda a: [
        {"kind": "sections", "marker": a["section_splitter"], "min": a["N"]}
    ],
    "validate_title": lambda _: [{"kind": "title"}],
    "validate_two_responses": lambda _: [{"kind": "count", "of": "responses", "min": 2, "max": 2}],
    "validate_uppercase": lambda _: [{"kind": "uppercase"}],
    "validate_word_constraint": lambda a: [
        {"kind": f"{side}_words", "value": value}
        for side, value in _quantified(a, max(1, round(a["N"] * 0.1))).items()
    ],
    "verify_bullet_points": lambda a: [{"kind": "count", "of": "bullets", **_exactly(a)}],
    "verify_keyword_frequency": lambda a: [
        {"kind": "occurrences", "text": a["word"], **_exactly(a)}
    ],
    "verify_keywords": lambda a: [{"kind": "contains", "texts": a["keyword_list"]}],
    "verify_letter_frequency": lambda a: [
        {"kind": "letter_count", "letter": a["letter"], **_exactly(a)}
    ],
    "verify_paragraph_count": lambda a: [{"kind": "count", "of": "starred_parts", **_exactly(a)}],
    "verify_postscript": lambda a: [{"kind": "postscript", "marker": a["postscript_marker"]}],
    "verify_sentence_constraint": lambda a: [
        {"kind": "count", "of": "sentences", **_quantified(a, 1)}
    ],
}
"""RLVR-IFeval's functions, as open-instruct defines them."""
_COUNTED = {
    "sentences": "sentences",
    "bullets": "bullet points",
    "highlights": "highlighted passages, such as *this*",
    "placeholders": "placeholders in square brackets",
    "capital_words": "words in capital letters",
    "commas": "commas",
    "starred_parts": "paragraphs divided by ***",
    "responses": "answers divided by ******",
}
_UNCHECKED: dict[str, str] = {
    "count:conjunctions": "It uses at least {small_n} different coordinating conjunctions.",
    "count:numbers": "It has exactly {N} numbers.",
    "count:person_names": "It mentions at least {N} of the person names that the prompt lists.",
    "count:pronouns": "It has at least {N} pronouns.",
    "count:punctuation": "It uses every standard punctuation mark at least once.",
    "count:unique_word_count": "It uses at least {N} different words.",
    "format:list": "It is a list whose items are marked with {sep}.",
    "format:no_whitespace": "It has no white space.",
    "format:options": "It is one of the options {options}.",
    "format:title_case": "It is written in title case.",
    "ratio:overlap": (
        "{percentage}% of its word triples, give or take 2, stand in the reference text."
    ),
    "ratio:sentence_balance": "It has as many statements as questions as exclamations.",
    "ratio:sentence_type": "It has two statements for each question.",
    "ratio:stop_words": "Stop words are at most {percentage}% of its words.",
    "sentence:increment": "Each sentence has {small_n} more words than the sentence before.",
    "sentence:keyword": "Sentence {N} holds the word {word}.",
    "words:alphabet": (
        "Each word begins with the letter that follows the first letter of the word before."
    ),
    "words:no_consecutive": "No two words in a row begin with the same letter.",
    "words:prime_lengths": "The length of each word is a prime number.",
    "words:repeats": "No word occurs more than {small_n} times.",
    "words:start_verb": "It begins with a verb.",
}
"""IFBench's instructions that no check decides; the others are named as they are."""


def _words_of(name: str, arguments: Arguments) -> str:
    try:
        return _UNCHECKED[name].format(**arguments)
    except (KeyError, IndexError, ValueError):
        told = ", ".join(f"{key} {_shown(value)}" for key, value in arguments.items())
        words = name.replace(":", ", ").replace("_", " ").replace("-", " ")
        return f"It follows the prompt's instruction on {words}" + (f" ({told})." if told else ".")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _range(low: int | None, high: int | None) -> str:
    if low == high:
        return f"exactly {low}"
    if high == 0:
        return "no"
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"{low} to {high}"


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text}”" for text in texts)


def _describe(check: Arguments) -> str:
    """Return the check in words, for people and for a judge that cannot run it."""
    low, high = check.get("min"), check.get("max")
    match check["kind"]:
        case "min_words":
            return f"It has at least {check['value']} words."
        case "max_words":
            return f"It has at most {check['value']} words."
        case "count":
            return f"It has {_range(low, high)} {_COUNTED[check['of']]}."
        case "occurrences":
            return f"“{check['text']}” occurs {_range(low, high)} times."
        case "letter_count":
            return f"The letter “{check['letter']}” occurs {_range(low, high)} times."
        case "contains":
            return f"It contains {_quoted(check['texts'])}."
        case "excludes":
            return f"It does not contain {_quoted(check['texts'])}."
        case "lowercase":
            return "It is in lower case."
        case "uppercase":
            return "It is in capital letters."
        case "language":
            return f"It is in the language “{check['language']}”."
        case "quoted":
            return "It is wrapped in double quotation marks."
        case "title":
            return "It has a title in <<double angular brackets>>."
        case "json_valid":
            return "It is valid JSON."
        case "starts_with":
            return f"It begins by repeating “{check['text']}”."
        case "ends_with":
            return f"It ends with “{check['text']}”."
        case "postscript":
            return f"It has a postscript that begins with “{check['marker']}”."
        case "sections":
            return f"It has at least {low} sections headed “{check['marker']}” and a number."
        case "one_of":
            return f"It contains one of {_quoted(check['options'])}."
    return (
        f"It has {check['paragraphs']} paragraphs, and number {check['paragraph']} begins with "
        f"“{check['word']}”."
    )
