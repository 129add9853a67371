"""IFEval prompts, GPT-4's responses and the official verifier: ground truth, never a reward.

The verifier's sentence and capital counts need NLTK's `punkt_tab` data: unzip the
`llama-index-core` wheel's `llama_index/core/_static/nltk_cache` and set `NLTK_DATA` to it.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markscheme.exchange.instructions import checks_of

DATA = Path(__file__).parent / "data"
Check = dict[str, Any]
Instruction = tuple[str, Mapping[str, Any]]
"""An official id with its arguments."""


@dataclass(frozen=True)
class Item:
    """One prompt.

    `instructions` are official ids with their arguments. `blind` prompts were not read while the
    rules were written.
    """

    id: str
    prompt: str
    teacher: str
    instructions: tuple[Instruction, ...]
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
    return verified(item.prompt, item.instructions, text)


def verified(prompt: str, instructions: Sequence[Instruction], text: str) -> tuple[bool, ...]:
    """Return the official verdict on each of a prompt's instructions; an empty text fails all."""
    ids = tuple(name for name, _ in instructions)
    arguments = json.dumps([dict(each) for _, each in instructions])
    return _verifier()(prompt, ids, arguments, text)  # type: ignore[no-any-return]


@cache
def _by_id() -> dict[str, Item]:
    return {item.id: item for item in load_items()}


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
