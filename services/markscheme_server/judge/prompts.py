"""Prompts for a model judge: templates, delimiters, and the schemas of its replies.

A template's version is the hash of its text: a changed word is a changed judge. Delimiters around
the material derive from the deployment's secret and the material, so that no rollout can know them,
and a repeated call is the same to the byte. What does not depend on the answer comes first, so that
providers can read it from their prefix caches for all rollouts of a group.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from markscheme.vocabulary import CATEGORIES
from markscheme_server.domain.hashing import digest, prompt_text
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_columns import Counts
from markscheme_server.domain.trajectory import (
    Judged,
    Transcript,
    material,
    show,
)
from markscheme_server.judge.base import FAULTS, EarlierCriterion, InductionTask, VerifyTask
from markscheme_server.judge.sanitise import sanitise

_DELIMITER = re.compile(r"material-[0-9a-f]{16}")
_CUT = "[the beginning is left out]\n"
_RATIONALE = (
    "\nSay before each met, in its rationale, what in the answer decides it: "
    "one sentence of at most 30 words."
)
# A changed word is a changed question: then change its part of `hashing.criterion_key`, too.
_MAY_NOT_APPLY = (
    "\nMay not apply to an answer: {ids}. Where what such a criterion presupposes is absent from "
    "the task and the answer, applicable is false and met is null. In all other cases, and for "
    "every other criterion, applicable is true and met is true or false."
)


def _load(name: str) -> tuple[Template, str]:
    text = (
        resources.files("markscheme_server.judge")
        .joinpath("templates", f"{name}.md")
        .read_text("utf-8")
    )
    return Template(text), hashlib.sha256(text.encode()).hexdigest()[:12]


RUBRICATOR, RUBRICATOR_VERSION = _load("rubricator")
VERIFIER, VERIFIER_VERSION = _load("verifier")
# Only where a response is a transcript, and no part of the versions: `trajectory.RENDERING` is.
RUBRICATOR_TRANSCRIPTS, _ = _load("rubricator_transcripts")
VERIFIER_TRANSCRIPTS, _ = _load("verifier_transcripts")
# Only where a rubric is replaced, which is part of the key of an induction.
RUBRICATOR_EARLIER, EARLIER_VERSION = _load("rubricator_earlier")

RUBRIC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["criteria"],
    "properties": {
        "criteria": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["criterion", "category", "points"],
                "properties": {
                    "criterion": {"type": "string"},
                    "category": {"type": "string", "enum": list(CATEGORIES)},
                    "points": {"type": "integer"},
                },
            },
        }
    },
}


def verdict_schema(
    *,
    pool: bool,
    evidence: bool,
    nonce: bool,
    rationale: bool = False,
    may_not_apply: bool = False,
) -> dict[str, Any]:
    """Return the schema of a verifier's reply: verdicts by criterion id, per answer in a pool.

    Evidence and rationale come before the verdict: the judge then decides after it has given them.
    ``may_not_apply``: whether any of the criteria may not apply.
    """
    fields: dict[str, Any] = {"id": {"type": "string"}}
    if evidence:
        fields["evidence"] = {"type": "string"}
    if rationale:
        fields["rationale"] = {"type": "string"}
    if may_not_apply:
        fields["applicable"] = {"type": "boolean"}
        fields["met"] = {"type": ["boolean", "null"]}
    else:
        fields["met"] = {"type": "boolean"}
    verdicts: dict[str, Any] = {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": list(fields),
            "properties": fields,
        },
    }
    top: dict[str, Any] = {"nonce": {"type": "string"}} if nonce else {}
    if pool:
        top["answers"] = {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["answer", "verdicts"],
                "properties": {"answer": {"type": "integer"}, "verdicts": verdicts},
            },
        }
    else:
        top["verdicts"] = verdicts
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(top),
        "properties": top,
    }


class PromptSecrets:
    """Derives delimiters, nonces and canaries from the deployment's secret and the material.

    They cannot be guessed without the secret, and are the same for the same call.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def derive(self, purpose: str, material: Any) -> str:
        """Return 16 hexadecimal digits for this purpose and material."""
        message = digest([purpose, material]).encode()
        return hmac.new(self._secret, message, "sha256").hexdigest()[:16]

    def delimiter(self, material: Any) -> str:
        """Return the delimiter for a piece of material."""
        return f"material-{self.derive('fence', material)}"


def shown_text(response: Judged, max_tokens: int) -> str:
    """Return the copy of a response that a judge sees, sanitised, within ``max_tokens``.

    Of a transcript only its own words, without the lines between them.
    """
    shown = show(response, max_tokens)
    if isinstance(response, Transcript):
        return "\n".join(_safe(piece.text) for piece in shown.pieces if not piece.is_ours)
    return _safe(_CUT + shown.text if shown.left_out_tokens else shown.text)


def _delimited(delimiter: str, response: Judged, max_tokens: int) -> str:
    """Return what is shown of a response between delimiters.

    In a transcript each message, and each omission, has a line that begins with the delimiter. No
    message can hold such a line: it cannot know the delimiter, and `_safe` removes any of its form.
    """
    if isinstance(response, Transcript):
        body = "\n".join(
            f"{delimiter} {piece.text}" if piece.is_ours else _safe(piece.text)
            for piece in show(response, max_tokens).pieces
        )
    else:
        body = shown_text(response, max_tokens)
    return f"<<{delimiter}\n{body}\n{delimiter}>>"


def _explained(
    blocks: Sequence[str], responses: Sequence[Judged], template: Template, delimiter: str
) -> str:
    """Return the blocks, and before them what a transcript is if one of the responses is one."""
    if any(isinstance(response, Transcript) for response in responses):
        blocks = [template.substitute(fence=delimiter).strip(), *blocks]
    return "\n\n".join(blocks)


def _safe(text: str) -> str:
    """Return a sanitised copy without delimiters of any call."""
    return _DELIMITER.sub("[mark]", sanitise(text))


def _reply_instruction(
    schema: dict[str, Any], *, rationale: bool = False, may_not_apply: Sequence[str] = ()
) -> str:
    return (
        "Reply with one JSON object and nothing else. It must follow this JSON schema:\n"
        + json.dumps(schema)
        + (_RATIONALE if rationale else "")
        + (_MAY_NOT_APPLY.format(ids=", ".join(may_not_apply)) if may_not_apply else "")
    )


def rubricator_prompt(task: InductionTask, secrets: PromptSecrets, *, max_tokens: int) -> str:
    """Return the rubricator's message. It names teachers and students; the verifier's does not."""
    prompt = prompt_text(task.prompt)
    students = [s.text for s in task.student_responses]
    earlier = "\n".join(_earlier_line(each) for each in task.earlier)
    delimiter = secrets.delimiter(
        [
            prompt,
            [material(response) for response in task.teacher_responses],
            [material(response) for response in students],
            *([earlier] if earlier else []),
        ]
    )
    blocks = [
        f"Reference {i}:\n{_delimited(delimiter, t, max_tokens)}"
        for i, t in enumerate(task.teacher_responses)
    ]
    blocks += [
        f"Student {i}{' (cut off at its length limit)' if s.truncated else ''}:\n"
        f"{_delimited(delimiter, s.text, max_tokens)}"
        for i, s in enumerate(task.student_responses)
    ]
    answers = _explained(
        blocks, [*task.teacher_responses, *students], RUBRICATOR_TRANSCRIPTS, delimiter
    )
    if earlier:
        listed = RUBRICATOR_EARLIER.substitute(fence=delimiter, criteria=earlier).strip()
        answers = f"{answers}\n\n{listed}"
    return RUBRICATOR.substitute(
        fence=delimiter,
        prompt=_safe(prompt),
        answers=answers,
        form=_reply_instruction(RUBRIC_SCHEMA),
    )


def _earlier_line(earlier: EarlierCriterion) -> str:
    """Return a criterion with its figures, on one line."""
    figures = [
        f"{earlier.criterion.points} points",
        _met("students", earlier.rollouts),
        _met("references", earlier.teachers),
        *(kind for kind in earlier.findings if kind in FAULTS),
    ]
    return f"- {' '.join(_safe(earlier.criterion.text).split())} ({'; '.join(figures)})"


def _met(whose: str, counts: Counts) -> str:
    if not counts.judged:
        return f"{whose} not known"
    return f"{whose} {counts.met / counts.judged:.0%} of {counts.judged}"


def verifier_prompt(
    task: VerifyTask,
    criteria: Sequence[tuple[str, str]],
    schema: dict[str, Any],
    secrets: PromptSecrets,
    *,
    max_tokens: int,
    nonce: str | None,
    canary: tuple[str, str] | None,
    rationale: bool = False,
    may_not_apply: Sequence[str] = (),
) -> str:
    """Return the verifier's message. It shows no points and categories: they must not sway it.

    ``criteria`` are (id, text) pairs as shown, c1 … cK; ``may_not_apply`` are the ids of those that
    may not apply. The canary differs from call to call and therefore comes after the material: the
    prompt up to the answer is the same for a whole group.
    """
    prompt = prompt_text(task.prompt)
    # Of the prompt alone, so that the message begins alike for all rollouts of a group.
    prompt_delimiter = secrets.delimiter(prompt)
    delimiter = secrets.delimiter(
        [prompt, [text for _, text in criteria], [material(each) for each in task.responses]]
    )
    single = len(task.responses) == 1 and task.verify == "rollout"
    blocks = [
        f"{'Answer' if single else f'Answer {i}'}:\n{_delimited(delimiter, text, max_tokens)}"
        for i, text in enumerate(task.responses, 1)
    ]
    closing = []
    if canary is not None:
        closing.append(f"One more criterion to decide for every answer:\n{canary[0]}: {canary[1]}")
    if nonce is not None:
        closing.append(f"nonce: {nonce}\nRepeat the nonce in your reply.")
    return VERIFIER.substitute(
        task_fence=prompt_delimiter,
        fence=delimiter,
        prompt=_safe(prompt),
        answers=_explained(blocks, task.responses, VERIFIER_TRANSCRIPTS, delimiter),
        form=_reply_instruction(schema, rationale=rationale, may_not_apply=may_not_apply),
        # On one line each: a criterion with line ends could pass for several.
        criteria="\n".join(f"{i}: {' '.join(_safe(text).split())}" for i, text in criteria),
        closing="\n\n".join([*closing, "Now give that object."]),
    )


def number_criteria(criteria: Sequence[Criterion]) -> list[tuple[str, str]]:
    """Return (id, text) pairs with the ids that a judge sees, c1 … cK, in the order given."""
    return [(f"c{i}", c.text) for i, c in enumerate(criteria, 1)]
