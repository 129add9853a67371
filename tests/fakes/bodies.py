"""What the fault tests send and set: a rubric, rollouts to score with it, judges to score them."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from fakes.fast_judge import HELD, FastJudge
from fakes.load import Answer, Post, in_background
from fakes.processes import eventually

PROMPT = "Which colour is the sky, and why?"


def rubric_body(prompt: str = PROMPT, *, criteria: int = 1, tag: str = "") -> dict[str, Any]:
    texts = [f"It meets demand {i}{tag}." for i in range(criteria)]
    return {"prompt": prompt, "criteria": [{"text": text, "points": 1} for text in texts]}


def create_rubric(url: str, prompt: str = PROMPT, *, criteria: int = 1, tag: str = "") -> str:
    """Create a rubric that no check can decide; return its id."""
    answer = httpx.post(
        f"{url}/v1/rubrics",
        json=rubric_body(prompt, criteria=criteria, tag=tag),
        timeout=30,
        verify=False,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def score(
    url: str,
    rubric_id: str,
    texts: Sequence[str],
    *,
    prompt: str = PROMPT,
    group: str = "g",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Post:
    """One group of rollouts with these texts."""
    rollouts = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)]
    groups = [{"id": group, "prompt": prompt, "rubric_id": rubric_id, "rollouts": rollouts}]
    return Post(f"{url}/v1/scores", {"groups": groups} | more, headers or {})


def induce(
    url: str, prompt: str = PROMPT, *, headers: Mapping[str, str] | None = None, **more: Any
) -> Post:
    """Build a request that induces a rubric from one teacher response and two student responses."""
    return Post(
        f"{url}/v1/rubrics:induce",
        {
            "prompt": prompt,
            "teacher_responses": ["Blue: air scatters short waves most."],
            "student_responses": ["Blue.", "It is green."],
        }
        | more,
        headers or {},
    )


def hold_one(url: str, judge: FastJudge) -> tuple[threading.Thread, list[Answer]]:
    """Start a request whose judge call is held; return its thread and its future answers.

    The list of answers is empty until the thread ends.
    """
    rubric_id = create_rubric(url)
    judge.mode = HELD
    sending, answers = in_background([score(url, rubric_id, ["answer"])])
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 1
    return sending, answers


def model_judge(url: str, **settings: Any) -> dict[str, Any]:
    """Return settings that make the endpoint at ``url`` the judge."""
    return {
        "judge": "openai",
        "judge_base_url": url,
        "judge_model": "scripted",
        "judge_api_key": "k-secret",
    } | settings


def judges_file(
    path: Path, judges: Mapping[str, Mapping[str, Any]], *, role: str | None = None
) -> Path:
    """Write a ``markscheme.toml`` with these judges; judge ``role``, if any, plays both roles."""
    lines = (
        [f"roles.rubricator = {json.dumps(role)}", f"roles.verifier = {json.dumps(role)}"]
        if role
        else []
    )
    for name, settings in judges.items():
        lines += [f"[judges.{json.dumps(name)}]"]
        lines += [
            f"{key} = {json.dumps(value)}"
            for key, value in ({"model": "scripted"} | dict(settings)).items()
        ]
    path.write_text("\n".join(lines) + "\n")
    return path
