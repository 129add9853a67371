"""IFEval prompts, GPT-4's responses and the official verifier: ground truth, never a reward.

The verifier's sentence and capital counts need NLTK's `punkt_tab` data: unzip the
`llama-index-core` wheel's `llama_index/core/_static/nltk_cache` and set `NLTK_DATA` to it.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
Check = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One prompt.

    `instructions` are official ids with their arguments. `blind` prompts were not read while the
    rules were written.
    """

    id: str
    prompt: str
    teacher: str
    instructions: tuple[tuple[str, Mapping[str, Any]], ...]
    blind: bool


@dataclass(frozen=True)
class Rollout:
    """A student's response."""

    text: str
    truncated: bool


def load_items() -> list[Item]:
    """Return all 402 prompts; a quarter of them, chosen by hash, is blind."""
    items = []
    for line in (DATA / "ifeval_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        arguments = [{k: v for k, v in kwargs.items() if v is not None} for kwargs in row["kwargs"]]
        blind = int(hashlib.sha256(f"blind:{row['id']}".encode()).hexdigest(), 16) % 4 == 0
        items.append(
            Item(
                row["id"],
                row["prompt"],
                row["teacher_responses"][0],
                tuple(zip(row["instruction_id_list"], arguments, strict=True)),
                blind,
            )
        )
    return items


def load_rollouts() -> dict[str, list[Rollout]]:
    """Return SmolLM2-135M-Instruct's responses by prompt id."""
    lines = (DATA / "ifeval_students.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: [Rollout(**r) for r in row["rollouts"]] for row in map(json.loads, lines)}


@cache
def _verifier() -> Any:
    import langdetect
    from if_verifiable import IFEvalSample, evaluate_output_for_sample

    langdetect.DetectorFactory.seed = 0

    def verify(prompt: str, ids: tuple[str, ...], arguments: str, text: str) -> tuple[bool, ...]:
        sample = IFEvalSample(
            key=0, prompt=prompt, instruction_id_list=list(ids), kwargs=json.loads(arguments)
        )
        # The verifier draws a letter at random where the one given ("#") is not in the alphabet.
        random.seed(0)
        results, _ = evaluate_output_for_sample("ifeval", sample, text)
        return tuple(result.strict_pass for result in results) or (False,) * len(ids)

    return verify


@cache
def official(item_id: str, text: str) -> tuple[bool, ...]:
    """Return the official verdict on each instruction in order; an empty text fails all."""
    item = _by_id()[item_id]
    ids = tuple(i for i, _ in item.instructions)
    return _verifier()(item.prompt, ids, json.dumps([dict(a) for _, a in item.instructions]), text)  # type: ignore[no-any-return]


@cache
def _by_id() -> dict[str, Item]:
    return {item.id: item for item in load_items()}


def checks_of(instruction: str, arguments: Mapping[str, Any]) -> list[Check]:
    """Return the checks that say the same as an official instruction."""
    name = instruction.split(":")[1]
    return _TRANSLATIONS[name](arguments) if name in _TRANSLATIONS else [_PLAIN[name]]


def _bounds(relation: str, amount: int) -> dict[str, int]:
    return {"min": amount} if relation == "at least" else {"max": amount - 1}


def _words(a: Mapping[str, Any]) -> list[Check]:
    bounds = _bounds(a["relation"], a["num_words"])
    return [{"kind": f"{side}_words", "value": value} for side, value in bounds.items()]


_PLAIN: dict[str, Check] = {
    "english_capital": {"kind": "uppercase"},
    "english_lowercase": {"kind": "lowercase"},
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
_TRANSLATIONS: dict[str, Any] = {
    "number_words": _words,
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


Atoms = set[tuple[Any, ...]]


def atoms(checks: Iterable[Check]) -> Atoms:
    """Split checks into atoms: "A and B" equals A with B, and "0 times" equals "without"."""
    return {atom for check in checks for atom in _atoms(check)}


def _atoms(check: Check) -> Iterator[tuple[Any, ...]]:
    kind = check["kind"]
    bounds = [(side, check[side]) for side in ("min", "max") if check.get(side) is not None]
    if kind == "occurrences" and check.get("max") == 0:
        kind, check = "excludes", {"texts": [check["text"]]}
    if kind == "occurrences" and bounds == [("min", 1)]:
        kind, check = "contains", {"texts": [check["text"]]}
    if kind in ("contains", "excludes", "one_of"):
        yield from ((kind, _plain(text)) for text in check.get("texts", check.get("options")))
    elif kind in ("count", "occurrences", "letter_count"):
        what = _plain(check.get("of") or check.get("text") or check["letter"])
        yield from ((kind, what, *bound) for bound in bounds)
    else:
        yield (
            kind,
            *sorted((name, _plain(value)) for name, value in check.items() if name != "kind"),
        )


def _plain(value: Any) -> Any:
    return (value.lower().strip(" .,!?") or value) if isinstance(value, str) else value


def wanted_atoms(item: Item) -> Atoms:
    """Return what a prompt's instructions ask; the two about case ask for English as well."""
    wanted = atoms(
        check for name, arguments in item.instructions for check in checks_of(name, arguments)
    )
    if any("english" in name for name, _ in item.instructions):
        wanted |= atoms([{"kind": "language", "language": "en"}])
    return wanted
