"""Bodies are validated the same whether their messages are validated apart or not."""

import json
from typing import Any

import httpx
import pytest

from markscheme_server.api import body

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q": "sky"}'}}
SAID: list[Any] = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "It is blue.\x00"},
    {"role": "assistant", "content": [{"type": "text", "text": "It is blue, \ud83d."}]},
]
PROMPT = [{"role": "user", "content": "Which colour has the sky? Do not use any commas."}]


def batch(messages: list[Any], prompt: Any = PROMPT) -> dict[str, Any]:
    return {
        "groups": [
            {
                "id": "g",
                "prompt": prompt,
                "teacher_responses": ["Blue", messages],
                "rollouts": [{"id": "r", "messages": messages}, {"id": "t", "text": "Blue."}],
            }
        ]
    }


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (batch(SAID), 200),
        (batch([*SAID, {"role": "nobody", "content": "x"}]), 422),
        (batch([*SAID, {"role": "assistant", "tool_calls": [7]}]), 422),
        (batch([*SAID, "no message"]), 422),
        (batch(SAID, [{"role": "user", "content": "\x00"}]), 422),
        (batch(SAID, [{"role": "user"}]), 422),
        (batch(SAID) | {"rollouts": [SAID], "prompt": 7}, 422),
        ([SAID], 422),
    ],
)
def test_messages_that_are_validated_apart_are_answered_the_same(
    sent: Any, status: int, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for limit in (10**9, 0):
        monkeypatch.setattr(body, "LARGE_BYTES", limit)
        answer = httpx.post(
            f"{service}/v1/scores",
            content=json.dumps(sent).encode(),
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        assert answer.status_code == status, answer.text
        answers.append(answer.json())
    for answer in answers:
        answer.pop("request_id", None)
        answer.pop("usage", None)
        for group in answer.get("groups", []):
            # The second request is answered from what the first one stored.
            group["rubric"].pop("origin")
            for rollout in group["rollouts"]:
                for verdict in rollout["verdicts"]:
                    verdict.pop("cached")
    assert answers[0] == answers[1]
