"""What is said to a model judge: templates, fences, and the JSON it must reply with.

A template's version is the hash of its text, so a changed word is a changed judge. Material is fenced by a mark
that depends on the material itself, and the mark is taken out of what it fences.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from markscheme.vocabulary import CATEGORIES
from markscheme_server.domain.fingerprint import digest, prompt_text
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import InductionTask, VerifyTask

CHARACTERS_PER_TOKEN = 4
"""The usual estimate for English; the cap it serves is a bound on cost, not a promise."""
_INVISIBLE = re.compile("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def _load(name: str) -> tuple[Template, str]:
    text = resources.files("markscheme_server.judge").joinpath("templates", f"{name}.md").read_text("utf-8")
    return Template(text), hashlib.sha256(text.encode()).hexdigest()[:12]


RUBRICATOR, RUBRICATOR_VERSION = _load("rubricator")
VERIFIER, VERIFIER_VERSION = _load("verifier")

RUBRIC_SCHEMA: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["criteria"],
    "properties": {"criteria": {"type": "array", "items": {
        "type": "object", "additionalProperties": False, "required": ["criterion", "category", "points"],
        "properties": {"criterion": {"type": "string"}, "category": {"type": "string", "enum": list(CATEGORIES)},
                       "points": {"type": "integer"}}}}},
}


def verdict_schema(*, pool: bool, evidence: bool, nonce: bool) -> dict[str, Any]:
    """The reply's schema: an array of objects with the criterion's id, per answer where there is a pool."""
    fields: dict[str, Any] = {"id": {"type": "string"}}
    if evidence:
        fields["evidence"] = {"type": "string"}
    fields["met"] = {"type": "boolean"}
    verdicts: dict[str, Any] = {"type": "array", "items": {
        "type": "object", "additionalProperties": False, "required": list(fields), "properties": fields}}
    top: dict[str, Any] = {"nonce": {"type": "string"}} if nonce else {}
    if pool:
        top["answers"] = {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["answer", "verdicts"],
            "properties": {"answer": {"type": "integer"}, "verdicts": verdicts}}}
    else:
        top["verdicts"] = verdicts
    return {"type": "object", "additionalProperties": False, "required": list(top), "properties": top}


def tail(text: str, max_tokens: int) -> str:
    """The end of ``text`` within ``max_tokens`` (estimated): an answer's conclusion is at its end."""
    keep = max_tokens * CHARACTERS_PER_TOKEN
    return text if len(text) <= keep else "[the beginning is left out]\n" + text[-keep:]


def _fence_for(material: Sequence[str]) -> str:
    return f"material-{digest(list(material))[:16]}"


def _fenced(fence: str, text: str) -> str:
    return f"<<{fence}\n{_inside(fence, text)}\n{fence}>>"


def _json_form(schema: dict[str, Any]) -> str:
    return "Reply with one JSON object and nothing else. It must follow this JSON schema:\n" + json.dumps(schema)


def rubricator_prompt(task: InductionTask, *, max_tokens: int) -> str:
    """The inducing role's whole message. The rubricator may know who is who; the verifier may not."""
    prompt = prompt_text(task.prompt)
    fence = _fence_for([prompt, *task.teacher_responses, *(s.text for s in task.student_responses)])
    blocks = [f"Reference {i}:\n{_fenced(fence, tail(t, max_tokens))}" for i, t in enumerate(task.teacher_responses)]
    blocks += [f"Student {i}{' (cut off at its length limit)' if s.truncated else ''}:\n"
               f"{_fenced(fence, tail(s.text, max_tokens))}" for i, s in enumerate(task.student_responses)]
    return RUBRICATOR.substitute(fence=fence, prompt=_inside(fence, prompt), answers="\n\n".join(blocks),
                                 form=_json_form(RUBRIC_SCHEMA))


def verifier_prompt(task: VerifyTask, criteria: Sequence[tuple[str, str]], schema: dict[str, Any], *,
                    max_tokens: int, nonce: str | None) -> str:
    """The verifying role's whole message. Points and categories are not shown: they are not to be judged by.

    ``criteria`` are (id, words) pairs as shown: c1 … cK.
    """
    prompt = prompt_text(task.prompt)
    fence = _fence_for([prompt, *task.responses])
    single = len(task.responses) == 1 and task.verify == "rollout"
    blocks = [f"{'Answer' if single else f'Answer {i}'}:\n{_fenced(fence, tail(text, max_tokens))}"
              for i, text in enumerate(task.responses, 1)]
    form = _json_form(schema)
    if nonce is not None:
        form = f"nonce: {nonce}\nRepeat the nonce in your reply.\n{form}"
    return VERIFIER.substitute(fence=fence, prompt=_inside(fence, prompt), answers="\n\n".join(blocks), form=form,
                               criteria="\n".join(f"{i}: {words}" for i, words in criteria))


def _inside(fence: str, text: str) -> str:
    """A judged copy: invisible characters made visible, the fence's own mark taken out."""
    return _INVISIBLE.sub("\ufffd", text).replace(fence, "[mark]")


def shown_criteria(criteria: Sequence[Criterion]) -> list[tuple[str, str]]:
    """Criteria under the ids a judge sees, c1 … cK in the order given, whatever their ids in the rubric."""
    return [(f"c{i}", c.text) for i, c in enumerate(criteria, 1)]
