"""What is said to a model judge: templates, fences, and the JSON it must reply with.

A template's version is the hash of its text, so a changed word is a changed judge. Material stands between marks that
derive from the deployment's secret and from the call, so that no rollout can know them, and a call that is made again
is the same to the byte. What does not depend on the answer comes first: providers then read it from their prefix
caches for all rollouts of a group.
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
from markscheme_server.judge.base import InductionTask, VerifyTask
from markscheme_server.judge.sanitise import sanitise

CHARACTERS_PER_TOKEN = 4
"""The usual estimate for English; the cap it serves is a bound on cost, not a promise."""
_FENCE = re.compile(r"material-[0-9a-f]{16}")
_CUT = "[the beginning is left out]\n"
_RATIONALE = "\nSay before each met, in its rationale, what in the answer decides it: one sentence of at most 30 words."


def _load(name: str) -> tuple[Template, str]:
    text = (
        resources.files("markscheme_server.judge")
        .joinpath("templates", f"{name}.md")
        .read_text("utf-8")
    )
    return Template(text), hashlib.sha256(text.encode()).hexdigest()[:12]


RUBRICATOR, RUBRICATOR_VERSION = _load("rubricator")
VERIFIER, VERIFIER_VERSION = _load("verifier")

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
    *, pool: bool, evidence: bool, nonce: bool, rationale: bool = False
) -> dict[str, Any]:
    """The reply's schema: an array of objects with the criterion's id, per answer where there is a pool.

    Evidence and rationale come before the verdict, so that the judge has said them when it decides.
    """
    fields: dict[str, Any] = {"id": {"type": "string"}}
    if evidence:
        fields["evidence"] = {"type": "string"}
    if rationale:
        fields["rationale"] = {"type": "string"}
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


def tail(text: str, max_tokens: int) -> str:
    """The end of ``text`` within ``max_tokens`` (estimated): an answer's conclusion is at its end."""
    keep = max_tokens * CHARACTERS_PER_TOKEN
    return text if len(text) <= keep else _CUT + text[-keep:]


class PromptSecrets:
    """Fences, nonces and canaries: unguessable without the deployment's secret, and the same for the same call."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def derive(self, what: str, material: Any) -> str:
        """16 hexadecimal digits for this use of this material."""
        return hmac.new(self._secret, digest([what, material]).encode(), "sha256").hexdigest()[:16]

    def fence(self, material: Any) -> str:
        """The mark around a piece of material."""
        return f"material-{self.derive('fence', material)}"


def shown(text: str, max_tokens: int) -> str:
    """The copy of a response that a judge is shown: its end within ``max_tokens``, safe to show."""
    return _safe(tail(text, max_tokens))


def _fenced(fence: str, text: str, max_tokens: int) -> str:
    return f"<<{fence}\n{shown(text, max_tokens)}\n{fence}>>"


def _safe(text: str) -> str:
    """A copy without what hides or deceives, and without a fence of any call."""
    return _FENCE.sub("[mark]", sanitise(text))


def _json_form(schema: dict[str, Any], *, rationale: bool = False) -> str:
    return (
        "Reply with one JSON object and nothing else. It must follow this JSON schema:\n"
        + json.dumps(schema)
        + (_RATIONALE if rationale else "")
    )


def rubricator_prompt(task: InductionTask, marks: PromptSecrets, *, max_tokens: int) -> str:
    """The inducing role's whole message. The rubricator may know who is who; the verifier may not."""
    prompt = prompt_text(task.prompt)
    fence = marks.fence([prompt, task.teacher_responses, [s.text for s in task.student_responses]])
    blocks = [
        f"Reference {i}:\n{_fenced(fence, t, max_tokens)}"
        for i, t in enumerate(task.teacher_responses)
    ]
    blocks += [
        f"Student {i}{' (cut off at its length limit)' if s.truncated else ''}:\n"
        f"{_fenced(fence, s.text, max_tokens)}"
        for i, s in enumerate(task.student_responses)
    ]
    return RUBRICATOR.substitute(
        fence=fence,
        prompt=_safe(prompt),
        answers="\n\n".join(blocks),
        form=_json_form(RUBRIC_SCHEMA),
    )


def verifier_prompt(
    task: VerifyTask,
    criteria: Sequence[tuple[str, str]],
    schema: dict[str, Any],
    marks: PromptSecrets,
    *,
    max_tokens: int,
    nonce: str | None,
    canary: tuple[str, str] | None,
    rationale: bool = False,
) -> str:
    """The verifying role's whole message. Points and categories are not shown: they are not to be judged by.

    ``criteria`` are (id, words) pairs as shown: c1 … cK. The canary, which differs from call to call, comes after the
    material, so that what stands before it is the same for all rollouts of a group.
    """
    prompt = prompt_text(task.prompt)
    task_fence, fence = (
        marks.fence(prompt),
        marks.fence([prompt, [words for _, words in criteria], task.responses]),
    )
    single = len(task.responses) == 1 and task.verify == "rollout"
    blocks = [
        f"{'Answer' if single else f'Answer {i}'}:\n{_fenced(fence, text, max_tokens)}"
        for i, text in enumerate(task.responses, 1)
    ]
    closing = []
    if canary is not None:
        closing.append(f"One more criterion to decide for every answer:\n{canary[0]}: {canary[1]}")
    if nonce is not None:
        closing.append(f"nonce: {nonce}\nRepeat the nonce in your reply.")
    return VERIFIER.substitute(
        task_fence=task_fence,
        fence=fence,
        prompt=_safe(prompt),
        answers="\n\n".join(blocks),
        form=_json_form(schema, rationale=rationale),
        criteria="\n".join(f"{i}: {' '.join(_safe(words).split())}" for i, words in criteria),
        closing="\n\n".join([*closing, "Now give that object."]),
    )


def shown_criteria(criteria: Sequence[Criterion]) -> list[tuple[str, str]]:
    """Criteria under the ids a judge sees, c1 … cK in the order given, whatever their ids in the rubric."""
    return [(f"c{i}", c.text) for i, c in enumerate(criteria, 1)]
