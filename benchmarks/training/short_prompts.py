"""IFEval prompts with short answers: each gets IFEval's own instruction to be brief as well.

Every prompt has two or more instructions, so that a rubric of them is graded. The criteria are the
builtin judge's checks of the instructions, run in this process; whether an answer is right is said
by IFEval's official verifier.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ifeval import Instruction, load_items, verified
from markscheme.exchange.base import ConversionIssues
from markscheme.exchange.instructions import instruction_criterion
from markscheme.schema import Rollout
from markscheme_server.rules.checks import run_check
from training.graders import Judge, Judged

KINDS = frozenset(
    {
        "detectable_format:constrained_response",
        "detectable_format:number_highlighted_sections",
        "detectable_format:title",
        "keywords:existence",
        "keywords:forbidden_words",
        "keywords:letter_frequency",
        "punctuation:no_comma",
    }
)
"""Kinds that short answers of a small model sometimes obey; none needs data of NLTK."""
MAX_PROMPT_WORDS = 60
MAX_WORDS = 20
BRIEF: Instruction = (
    "length_constraints:number_words",
    {"relation": "less than", "num_words": MAX_WORDS},
)
BRIEFLY = f"Answer with less than {MAX_WORDS} words."
"""`BRIEF` in IFEval's words."""
OWN_POINTS, BRIEF_POINTS = 2, 1


@dataclass(frozen=True, eq=False)
class ShortPrompt:
    """A prompt with its instructions, of which being brief is the last."""

    id: str
    text: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def criteria(self) -> list[tuple[str, Mapping[str, Any], float]]:
        """Text, check and points of each instruction's criterion."""
        found = []
        for name, arguments in self.instructions:
            text, check = instruction_criterion(
                {"instruction_id": name, "kwargs": arguments}, self.id, ConversionIssues()
            )
            assert check is not None
            points = BRIEF_POINTS if (name, arguments) == BRIEF else OWN_POINTS
            found.append((text, check.model_dump(exclude_none=True), points))
        return found


def load_short_prompts() -> list[ShortPrompt]:
    """Return the prompts, in the order of the sha256 of `short:<id>`."""
    return sorted(
        (
            ShortPrompt(item.id, f"{item.prompt.strip()} {BRIEFLY}", (*item.instructions, BRIEF))
            for item in load_items()
            if len(item.prompt.split()) <= MAX_PROMPT_WORDS
            and {name for name, _ in item.instructions} <= KINDS
        ),
        key=lambda prompt: hashlib.sha256(f"short:{prompt.id}".encode()).hexdigest(),
    )


def judge_of(prompts: Iterable[ShortPrompt]) -> Judge:
    """Return a judge of these prompts; an answer without a word meets no criterion."""
    by_text = {prompt.text: prompt for prompt in prompts}

    def judge(text: str, rollout: Rollout) -> Judged:
        prompt, said = by_text[text], rollout.text or ""
        texts, checks, points = zip(*prompt.criteria, strict=True)
        return Judged(
            right=all(verified(prompt.text, prompt.instructions, said)),
            met=[bool(said.strip()) and run_check(check, said).met for check in checks],
            points=points,
            texts=texts,
        )

    return judge
