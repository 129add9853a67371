"""The judge works while the trainer goes on, and what is learnt stays the same to the bit."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme.errors import ConnectionFailed, InvalidRequest
from markscheme.integrations import pending
from markscheme.integrations.pending import PendingScores
from markscheme.integrations.processes import SingleProcess
from markscheme.integrations.trl import RubricReward
from markscheme.schema import ScoreBatch
from markscheme_train.config import build_config
from markscheme_train.data import Example, as_dataset
from markscheme_train.early_scoring import EarlyScoring, sent_columns
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import build_trainer, train
from train.tiny import ScriptedClient, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:You are using 'rollout_func':UserWarning",
)
PATIENCE_S = 60.0
"""Longer than anything here takes: reached only where something waits for ever."""


class Held(ScriptedClient):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__(lambda place, rollout: place / 4)
        self.let = threading.Event()

    def score(self, groups: Any, **options: Any) -> ScoreBatch:
        assert self.let.wait(PATIENCE_S)
        return super().score(groups, **options)


class Away(ScriptedClient):
    """Cannot be reached."""

    def __init__(self) -> None:
        super().__init__(lambda place, rollout: 1.0)

    def score(self, groups: Any, **options: Any) -> ScoreBatch:
        super().score(groups, **options)
        raise ConnectionFailed("connection refused")


def make_trainer(
    settings: dict[str, Any], model: Any, tokenizer: Any, client: ScriptedClient, *others: Any
) -> MarkschemeTrainer:
    reward = RubricReward(client, num_generations=4, run_id="run", max_outage_s=3600.0)
    examples = [Example(prompt=f"w{n}") for n in range(4)]
    config = build_config(settings)
    return build_trainer(config, model, tokenizer, examples, reward, other_rewards=others)


def test_the_judge_works_while_log_probabilities_are_computed(
    settings: dict[str, Any], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of two optimiser steps has old log-probabilities."""
    plain = MarkschemeTrainer._get_per_token_logps_and_entropies
    client = Held()

    def computed(self: MarkschemeTrainer, *given: Any, **options: Any) -> Any:
        assert self.reward.last is None, "joined too early"
        found = plain(self, *given, **options)
        client.let.set()
        return found

    monkeypatch.setattr(MarkschemeTrainer, "_get_per_token_logps_and_entropies", computed)
    two_steps = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
    trainer = make_trainer(settings | two_steps, model, tokenizer, client)
    trainer.model.train()
    rows = [{"prompt": f"w{n // 4}"} for n in range(8)]
    batch = trainer._generate_and_score_completions(rows)
    assert batch["old_per_token_logps"].shape[0] == 8
    assert batch["advantages"].tolist() == pytest.approx([-0.375, -0.125, 0.125, 0.375] * 2)
    assert len(client.calls) == 1


def test_other_reward_functions_run_while_the_judge_works(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    client = Held()

    def bonus(completions: Any, **columns: Any) -> list[float]:
        client.let.set()
        return [10.0] * len(completions)

    trainer = make_trainer(
        settings | {"reward_weights": [1.0, 0.5]}, model, tokenizer, client, bonus
    )
    trainer.train()
    assert trainer._rewards.tolist() == [[place / 4, 10.0] for place in range(4)] * 2
    assert trainer.reward_func_names == ["rubric", "bonus"]
    assert len(client.calls) == 2


def rollout_trainer(
    settings: dict[str, Any],
    model: Any,
    tokenizer: Any,
    client: ScriptedClient,
    after_group: Callable[[int], None] = lambda first: None,
    answer: Callable[[int], int] = lambda row: row,
) -> MarkschemeTrainer:
    """Make a trainer whose `rollout_func` ends groups one after another, of one word a row."""

    def rollouts(prompts: list[Any], trainer: MarkschemeTrainer) -> dict[str, Any]:
        for first in range(0, len(prompts), 4):
            ids = [[10 + row, 1] for row in range(first, first + 4)]
            trainer.start_group(first, prompts[first : first + 4], ids)
            after_group(first)
        return {
            "prompt_ids": tokenizer(prompts)["input_ids"],
            "completion_ids": [[10 + answer(row), 1] for row in range(len(prompts))],
            "logprobs": None,
        }

    return MarkschemeTrainer(
        model,
        RubricReward(client, num_generations=4, run_id="run", eos_token_ids=[1]),
        build_config(settings),
        train_dataset=as_dataset([Example(prompt=f"w{n}") for n in range(4)], chat=False),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )


def test_a_rollout_func_has_its_first_group_judged_while_the_others_are_generated(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    client = Held()
    client.let.set()
    asked = threading.Event()

    def score(groups: Any, **options: Any) -> ScoreBatch:
        asked.set()
        return Held.score(client, groups, **options)

    client.score = score  # type: ignore[method-assign]

    def after_group(first: int) -> None:
        assert asked.wait(PATIENCE_S)

    trainer = rollout_trainer(settings, model, tokenizer, client, after_group)
    trainer.train()
    posted = [[group.id for group in call["groups"]] for call in client.calls]
    assert sorted(posted) == [["s0-c0-p0"], ["s0-c0-p1"], ["s1-c0-p0"], ["s1-c0-p1"]]
    assert trainer._rewards[:, 0].tolist() == [place / 4 for place in range(4)] * 2
    assert trainer.reward.last is not None
    assert [rate.group for rate in trainer.reward.last.criteria] == ["s1-c0-p0", "s1-c0-p1"]
    assert [rollout.truncated for rollout in trainer.reward.last.row_scores] == [False] * 8


def test_a_rollout_func_must_return_the_rollouts_that_it_had_judged(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    trainer = rollout_trainer(settings, model, tokenizer, client, answer=lambda row: row + 1)
    with pytest.raises(ValueError, match="start_group was given other rollouts than start"):
        trainer.train()


def test_what_a_rollout_func_adds_to_rows_is_sent() -> None:
    rows = [{"rubric_id": "rub_1"}, {"rubric_id": "rub_2"}]
    assert sent_columns(rows, {}) == {
        "teacher_responses": [None, None],
        "rubric_id": ["rub_1", "rub_2"],
    }
    assert sent_columns(rows, {"teacher_responses": "t", "rubric_id": ["rub_3"], "x": [1, 2]}) == {
        "teacher_responses": ["t", "t"],
        "rubric_id": ["rub_3", "rub_2"],
    }


def test_a_function_that_needs_the_rubrics_rewards_still_gets_them(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    client = ScriptedClient(lambda place, rollout: None if place == 1 else 0.5)
    trainer = make_trainer(settings, model, tokenizer, client)
    function = trainer.reward.where_scored(lambda completions, **_: [2.0] * len(completions))
    config, examples = build_config(settings), [Example(prompt=f"w{n}") for n in range(4)]
    trainer = build_trainer(
        config, model, tokenizer, examples, trainer.reward, other_rewards=[function]
    )
    trainer.train()
    assert trainer._rewards[:4].nan_to_num(-1).tolist() == [
        [0.5, 2.0],
        [-1.0, -1.0],
        [0.5, 2.0],
        [0.5, 2.0],
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "srpo", "distillation_top_k": 5},
        {"per_device_train_batch_size": 4, "steps_per_generation": 2, "beta": 0.1},
    ],
)
def test_what_is_learnt_does_not_depend_on_when_the_service_is_asked(
    change: dict[str, Any],
    settings: dict[str, Any],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_model(attention_dropout=0.3).save_pretrained(tmp_path / "dropout")
    settings |= {"model": str(tmp_path / "dropout"), "disable_dropout": False, "max_steps": 4}
    tokenizer.save_pretrained(tmp_path / "dropout")
    found, clients = [], []
    for name in ("early", "late"):
        if name == "late":
            monkeypatch.setattr(EarlyScoring, "start", lambda self, prompts, generated: None)
        clients.append(ScriptedClient(lambda place, rollout: len(rollout.text) % 7 / 7))
        output = tmp_path / name
        train(
            build_config(settings | change | {"output_dir": str(output), "run_id": "r"}),
            clients[-1],
            resume=False,
            on_record=lambda record: None,
        )
        weights = load_file(output / "model.safetensors")
        found.append((weights, torch.get_rng_state(), random.getstate()))
    early, late = found
    assert all(torch.equal(value, late[0][name]) for name, value in early[0].items())
    assert torch.equal(early[1], late[1])
    assert early[2] == late[2]
    assert clients[0].calls == clients[1].calls


def test_a_batch_that_breaks_off_is_asked_about_no_more(
    settings: dict[str, Any], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "FIRST_RETRY_WAIT_S", 3600.0)
    under_way: list[PendingScores] = []

    def broken(completions: Any, **columns: Any) -> list[float]:
        [started] = trainer.reward._started
        under_way.append(started.scores)
        raise ZeroDivisionError

    client = Away()
    trainer = make_trainer(
        settings | {"reward_weights": [1.0, 1.0]}, model, tokenizer, client, broken
    )
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert trainer.reward._started == []
    # Its thread waits an hour unless it is told to stop.
    assert isinstance(under_way[0]._futures[0].exception(PATIENCE_S), ConnectionFailed)
    assert len(client.calls) == 1


def test_an_interrupt_while_waiting_ends_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "FIRST_RETRY_WAIT_S", 3600.0)
    scores = PendingScores(max_outage_s=7200.0)
    scores.post(lambda: Away().score([]))

    def interrupt(why: str, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores.join(SingleProcess(), interrupt)
    assert isinstance(scores._futures[0].exception(PATIENCE_S), ConnectionFailed)


@pytest.mark.parametrize("absent", [False, True])
def test_a_request_is_late_unless_it_had_to_be_repeated(
    absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "FIRST_RETRY_WAIT_S", 0.0)
    scores = PendingScores(max_outage_s=3600.0)
    attempts: list[int] = []
    asked, let = threading.Event(), threading.Event()

    def ask() -> ScoreBatch:
        attempts.append(len(attempts))
        if absent and attempts == [0]:
            raise ConnectionFailed("connection refused")
        asked.set()
        assert let.wait(PATIENCE_S)
        return ScriptedClient(lambda place, rollout: 1.0).score([])

    class AfterTheFirstHeartbeat(SingleProcess):
        def gather(self, rows: Any) -> Any:
            let.set()
            return super().gather(rows)

    scores.post(ask)
    assert asked.wait(PATIENCE_S)
    assert len(scores.join(AfterTheFirstHeartbeat(), None, max_late_s=0.001)) == absent
    let.set()


def test_a_request_that_fails_ends_the_wait_for_the_others() -> None:
    scores, let = PendingScores(max_outage_s=0.0), threading.Event()

    def held() -> ScoreBatch:
        assert let.wait(PATIENCE_S)
        return ScriptedClient(lambda place, rollout: 1.0).score([])

    def refused() -> ScoreBatch:
        raise InvalidRequest("no such judge", status=422)

    for ask in (held, refused):
        scores.post(ask)
    with pytest.raises(InvalidRequest):
        scores.join(SingleProcess(), None)
    let.set()


def test_a_started_batch_is_joined_by_its_completions_alone() -> None:
    client = ScriptedClient(lambda place, rollout: float(rollout.text))
    reward = RubricReward(client, num_generations=2, run_id="run")
    first, other = ["0.5", "1"], ["0.5", "1"]
    reward.start(prompts=["p", "p"], completions=first)
    assert reward(prompts=["p", "p"], completions=first) == [0.5, 1.0]
    assert len(client.calls) == 1
    assert reward(prompts=["p", "p"], completions=other) == [0.5, 1.0]
    assert [call["run"].step for call in client.calls] == [0, 1]
