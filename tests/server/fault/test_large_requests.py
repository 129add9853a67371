"""A request as large as may be sent holds nobody up for long and takes bounded memory."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fakes.bodies import PROMPT, model_judge
from fakes.fast_judge import FastJudge
from fakes.watch import watched

GROUPS, ROLLOUTS, CRITERIA = 4, 1024, 16
"""65,536 verdicts."""
CHARACTERS = 1000
"""Of a rollout."""
MEMORY_BYTES = 300_000_000
HOLD_S = 0.25
"""What is asked for is 0.1 s, on a machine that does nothing else; the figure tells."""


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("by", ["a judge", "checks"])
def test_65536_verdicts_hold_nobody_up(
    by: str,
    kind: str,
    start: Callable[..., Any],
    judge: FastJudge,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, str], None],
) -> None:
    """When they are made, and again when they are looked up."""
    database = {"database_url": request.getfixturevalue("database")} if kind == "postgresql" else {}
    service = start(**model_judge(judge.url), **database)
    criteria: list[dict[str, Any]] = [
        {"text": f"Demand {i}.", "points": 1} for i in range(CRITERIA)
    ]
    if by == "checks":
        criteria = [
            each | {"check": {"kind": "max_words", "value": 20 * i}}
            for i, each in enumerate(criteria, 1)
        ]
    made = httpx.post(
        f"{service.url}/v1/rubrics", json={"prompt": PROMPT, "criteria": criteria}, timeout=30
    )
    rubric = made.json()["id"]

    def score(groups: int, rollouts: int, words: str) -> Any:
        text = "word " * (CHARACTERS // 5)
        answer = httpx.post(
            f"{service.url}/v1/scores",
            timeout=200,
            json={
                "groups": [
                    {
                        "id": f"g{g}",
                        "prompt": PROMPT,
                        "rubric_id": rubric,
                        "rollouts": [
                            {"id": f"r{r}", "text": f"{words} {g}, {r}: {text}"}
                            for r in range(rollouts)
                        ],
                    }
                    for g in range(groups)
                ]
            },
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    score(1, 8, "to begin with")
    for what in ("new", "known"):
        with watched(service) as seen:
            answer = score(GROUPS, ROLLOUTS, "answer")
        assert answer["counts"]["scored"] == GROUPS * ROLLOUTS
        known = answer["usage"]["cached_verdicts"]
        assert known == (GROUPS * ROLLOUTS * CRITERIA if what == "known" and by == "a judge" else 0)
        record_property(
            "figure",
            f"{by}, {kind}, {what}: loop held {seen.longest_s * 1000:.0f} ms, memory "
            f"+{seen.grown_bytes / 1e6:.0f} MB",
        )
        assert seen.longest_s <= HOLD_S
        assert seen.grown_bytes <= MEMORY_BYTES
