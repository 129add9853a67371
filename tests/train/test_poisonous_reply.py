"""Test one poisonous reply in a training step.

The other rollouts have rewards, and the run neither waits nor ends.
"""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.judge import RUBRIC, ScriptedJudge, offered, text_of, verdicts
from markscheme import Client
from markscheme_train.reward import RubricReward

POISON = {
    "half an emoji": '{"verdicts":[{"id":"c1","evidence":"\\ud83d","met":false}]}',
    "sixty thousand braces": "{" * 60_000,
    "nesting": '{"verdicts":' + "[" * 100_000,
    "a draft in a thought": '<think>{"verdicts":[{"id":"c1","met":true}]} but',
}


@pytest.mark.parametrize("poison", POISON)
def test_a_step_with_one_poisonous_reply_takes_the_others_rewards(
    poison: str, serve: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    def script(request: dict[str, Any], _number: int) -> str:
        if not offered(request):
            return json.dumps(RUBRIC)
        return POISON[poison] if "cursed" in text_of(request) else verdicts(request)

    judge.script = script
    texts = ["Blue sky.", "cursed", "Red sun.", "Green sea."]
    with Client(serve(**model_settings)) as client:
        reward = RubricReward(
            client, num_generations=4, run_id="run", max_outage_s=60.0, max_unscored=0.5
        )
        started = time.monotonic()
        rewards = reward(
            prompts=["Name a colour."] * 4,
            completions=texts,
            completion_ids=[[1]] * 4,
            trainer_state=SimpleNamespace(global_step=0),
            teacher_responses=[["Blue."]] * 4,
        )
    assert rewards == [1.0, None, 1.0, 1.0]
    assert time.monotonic() - started < 50  # an outage may last 60 s
    assert len(judge.verifications) <= 3 + 3
