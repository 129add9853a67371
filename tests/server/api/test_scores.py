"""Test how scores are sent: in slices, as a stream, and with its heartbeats."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fakes.judge import ScriptedJudge, well_behaved
from markscheme import Client
from markscheme_server.api import scores

PROMPT = "Name two colours."
NDJSON = {"Accept": "application/x-ndjson"}


def body(client: Client, **check: Any) -> dict[str, Any]:
    """Two groups of two rollouts, with a rubric of two criteria."""
    criteria = [{"text": f"It says {word}.", "points": 1} for word in ("red", "blue")]
    if check:
        for criterion, word in zip(criteria, ("red", "blue"), strict=True):
            criterion["check"] = {"kind": "contains", "texts": [word]}
    rubric = client.create_rubric(PROMPT, criteria)
    rollouts = [{"id": "a", "text": "red"}, {"id": "b", "text": "red, blue"}]
    groups = [
        {"id": f"g{n}", "prompt": PROMPT, "rubric_id": rubric.id, "rollouts": rollouts}
        for n in range(2)
    ]
    return {"groups": groups, "reuse": "frozen"}


def test_a_large_group_is_written_rollout_by_rollout_and_says_the_same(
    client: Client, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = body(client, check=True)
    httpx.post(f"{service}/v1/scores", json=asked)  # later ones find their verdicts
    whole = httpx.post(f"{service}/v1/scores", json=asked).json()
    for verdicts in (2, 1):  # a rollout has two
        monkeypatch.setattr(scores, "SLICE_VERDICTS", verdicts)
        assert httpx.post(f"{service}/v1/scores", json=asked).json() == whole
    lines = httpx.post(f"{service}/v1/scores", json=asked, headers=NDJSON).text.splitlines()
    groups = [json.loads(line) for line in lines[:-1]]
    assert sorted(groups, key=lambda group: str(group["id"])) == whole["groups"]
    assert json.loads(lines[-1])["counts"] == whole["counts"]


def test_a_stream_has_heartbeats_while_a_judge_takes_its_time(
    judge: ScriptedJudge,
    serve: Callable[..., str],
    model_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(request: dict[str, Any], number: int) -> Any:
        time.sleep(0.3)
        return well_behaved(request, number)

    monkeypatch.setattr(scores, "HEARTBEAT_S", 0.05)
    judge.script = slowly
    url = serve(**model_settings)
    with Client(url) as client:
        asked = body(client)
    answer = httpx.post(f"{url}/v1/scores", json=asked, headers=NDJSON, timeout=60)
    kinds = [json.loads(line)["object"] for line in answer.text.splitlines()]
    assert kinds.count("heartbeat") >= 2
    assert kinds.count("score.group") == 2
    assert kinds[-1] == "score.summary"
