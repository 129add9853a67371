"""What the stub judge replies to each tool's prompt; the form of the request tells the tool.

Verdicts follow from the ids in the prompt (`service.oracle`), whatever words surround them.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from service.oracle import (
    CRITERION_ID,
    criterion_id,
    find_answer_id,
    find_criterion_ids,
    is_met,
    unit_hash,
)

_OFFERED = re.compile(r"^(c\d+): (.*)$", re.MULTILINE)
_NONCE = re.compile(r"^nonce: (\S+)$", re.MULTILINE)
_NAMED = re.compile(r"^- ([\w-]+): ", re.MULTILINE)
_TAGGED = re.compile(r'<rubric_criterion id="(\w+)">')


def text_of(request: dict[str, Any]) -> str:
    """Return all message texts of a chat-completions request."""
    return "\n".join(
        m["content"] if isinstance(m["content"], str) else json.dumps(m["content"])
        for m in request["messages"]
    )


def reply_to(request: dict[str, Any], text: str) -> str:
    """Return the well-formed reply to a request; `text` is its `text_of`."""
    schema = json.dumps(request.get("response_format") or "")
    offered = _OFFERED.findall(text)
    if offered and '"id"' in schema + text:
        return markscheme(text, offered)
    if is_induction(request, text):
        return json.dumps({"criteria": [_induced(text, i) for i in range(1, 5)]})
    answer = find_answer_id(text)
    met = [is_met(id_, answer) for id_ in find_criterion_ids(text)] or [False]
    if '"judgments"' in text:
        return json.dumps(
            {
                "judgments": [
                    {
                        "criterion_id": i,
                        "criterion_status": _status(m),
                        "selected_option": None,
                        "explanation": "stub",
                    }
                    for i, m in zip(_TAGGED.findall(text), met, strict=True)
                ]
            }
        )
    if '"criteria_evaluations"' in text:
        return json.dumps(
            {
                "criteria_evaluations": [
                    {"criterion_number": n, "criterion_status": _status(m), "explanation": "stub"}
                    for n, m in enumerate(met, 1)
                ]
            }
        )
    if '"verdicts"' in text:
        return json.dumps(
            {
                "verdicts": [
                    {"name": name, "reason": "stub", "verdict": "yes" if m else "no"}
                    for name, m in zip(_NAMED.findall(text), met, strict=False)
                ]
            }
        )
    if "criterion_status" in schema + text:
        return json.dumps({"criterion_status": _status(met[0]), "explanation": "stub"})
    return json.dumps({"reason": "stub", "score": int(met[0])})


def is_induction(request: dict[str, Any], text: str) -> bool:
    """Return whether our service asks for a rubric."""
    schema = json.dumps(request.get("response_format") or "")
    return not _OFFERED.search(text) and '"criterion"' in schema and '"points"' in schema


def _induced(text: str, number: int) -> dict[str, Any]:
    """Return a criterion whose id follows from what was asked: another question, another rubric."""
    words = f"The response does the thing numbered {number}"
    return {
        "criterion": f"{words}, as {criterion_id(words + text)} asks.",
        "category": "task_fulfilment",
        "points": number,
    }


def markscheme(text: str, offered: list[tuple[str, str]], flip: bool = False) -> str:
    """Return our verifier's form; `flip` inverts all verdicts."""
    answer = find_answer_id(text)
    reply: dict[str, Any] = {
        "verdicts": [
            {"id": i, "met": is_met(_mark_in(words), answer) is not flip} for i, words in offered
        ]
    }
    nonce = _NONCE.search(text)
    return json.dumps({"nonce": nonce.group(1), **reply} if nonce else reply)


def garbage(text: str, key: str) -> str:
    """Return a reply that must decide nothing.

    Where it looks like verdicts they are wrong, so that a lenient reader is noticed.
    """
    offered = _OFFERED.findall(text) or [("c1", "")]
    forms: list[Callable[[list[dict[str, Any]]], Any]] = [
        lambda _: "I have read the answer and the criteria with care.",
        lambda v: json.dumps({"verdicts": v})[:-4],
        lambda v: {"verdicts": v[:-1]},
        lambda v: {"verdicts": [*v, {"id": "c99", "met": True}]},
        lambda v: {"verdicts": [*v, {"id": v[0]["id"], "met": not v[0]["met"]}]},
        lambda v: {"verdicts": [{**one, "met": "yes" if one["met"] else "no"} for one in v]},
        lambda v: {"verdicts": [{**one, "met": int(one["met"])} for one in v]},
        lambda v: {"verdicts": [{**one, "id": f"x{one['id']}"} for one in v]},
    ]
    wrong = json.loads(markscheme(text, offered, flip=True))["verdicts"]
    made = forms[int(unit_hash(key) * len(forms))](wrong)
    return made if isinstance(made, str) else json.dumps(made)


def _mark_in(words: str) -> str | None:
    found = CRITERION_ID.search(words)
    return found.group() if found else None


def _status(met: bool) -> str:
    return "MET" if met else "UNMET"
