"""The demo's prompts: a selection of IFEval with GPT-4's responses.

`data/ifeval.jsonl` holds every prompt of the source below 60 words whose only verifiable
instruction is one of `KINDS` and which the builtin judge can write a rubric for (`data/README.md`
has origin and licence). The ten training prompts are listed; the held-out ones follow from the
others' ids.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markscheme.jsonl import split_lines

KINDS = {
    "punctuation:no_comma": "no commas",
    "keywords:forbidden_words": "forbidden words",
    "detectable_format:constrained_response": "one of the given phrases",
}
TRAINED = (
    "ifeval-1162",
    "ifeval-3615",
    "ifeval-3323",
    "ifeval-2324",
    "ifeval-2311",
    "ifeval-3631",
    "ifeval-1629",
    "ifeval-3595",
    "ifeval-3749",
    "ifeval-3755",
)
HELD_OUT = 16


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A prompt, the teacher's responses, and the verifiable instructions (evaluation only)."""

    id: str
    prompt: str
    teacher_responses: list[str]
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]

    @property
    def kind(self) -> str:
        """The kind of its instruction."""
        return KINDS[self.instruction_id_list[0]]


def load_prompts() -> tuple[list[DemoPrompt], list[DemoPrompt]]:
    """Return the training prompts and the held-out ones."""
    with files("markscheme_train.demo").joinpath("data/ifeval.jsonl").open("rb") as file:
        prompts = {row["id"]: DemoPrompt(**row) for row in map(json.loads, split_lines(file))}
    others = [prompt for prompt in prompts.values() if prompt.id not in TRAINED]
    return [prompts[name] for name in TRAINED], sorted(others, key=held_out_order)[:HELD_OUT]


def held_out_order(prompt: DemoPrompt) -> str:
    """Return the sha256 of `heldout:<id>`: the first `HELD_OUT` in this order are held out."""
    return hashlib.sha256(f"heldout:{prompt.id}".encode()).hexdigest()
