"""One batch off: what is learnt from, when the judge is asked, and what a resume repeats."""

import os
import signal
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme.errors import ConnectionFailed
from markscheme.integrations.pending import PendingScores
from markscheme.schema import ScoreBatch
from markscheme_train.config import build_config
from markscheme_train.errors import ConfigError, Interrupted, Stopped
from markscheme_train.step_log import StepRecord, read_records
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import train
from train.tiny import ScriptedClient, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
PATIENCE_S = 60.0
METHODS = pytest.mark.parametrize(
    "method",
    [
        {"preset": "srpo", "distillation_top_k": 5},
        {"preset": "ropd", "per_device_train_batch_size": 4, "steps_per_generation": 2},
    ],
    ids=["srpo", "two steps a batch"],
)


@pytest.fixture
def lagged(settings: dict[str, Any], tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    """Return settings of a run with dropout that learns from six batches, over an epoch's end."""
    tiny_model(attention_dropout=0.3).save_pretrained(tmp_path / "dropout")
    tokenizer.save_pretrained(tmp_path / "dropout")
    return settings | {
        "model": str(tmp_path / "dropout"),
        "disable_dropout": False,
        "reward_lag": 1,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "run_id": "r",
        "warmup_steps": 0,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 8,
    }


def scripted() -> ScriptedClient:
    return ScriptedClient(lambda place, rollout: len(rollout.text) % 7 / 7)


def run(
    settings: dict[str, Any], client: ScriptedClient, *, resume: bool = False, **callbacks: Any
) -> dict[str, torch.Tensor]:
    config = build_config(settings)
    output = train(
        config, client, resume=resume, **({"on_record": lambda record: None} | callbacks)
    )
    return load_file(output / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def asked(client: ScriptedClient) -> list[list[Any]]:
    return [call["groups"] for call in client.calls]


def test_a_batch_is_learnt_from_once_the_next_one_was_generated(
    lagged: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge of a batch answers only when the next batch's question has come."""

    class Late(ScriptedClient):
        def __init__(self) -> None:
            super().__init__(lambda place, rollout: place / 4)
            self.came = [threading.Event() for _ in range(7)]

        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            step = options["run"].step
            self.came[step].set()
            # The last batch of all is not asked about.
            assert step == 4 or self.came[step + 1].wait(PATIENCE_S)
            return super().score(groups, **options)

    generated: list[torch.Tensor] = []
    learnt: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain_generate = MarkschemeTrainer._generate_single_turn
    plain_loss = MarkschemeTrainer._compute_loss

    def generate(self: MarkschemeTrainer, *given: Any) -> Any:
        found = plain_generate(self, *given)
        generated.append(found[0])
        return found

    def loss(self: MarkschemeTrainer, model: Any, inputs: Any) -> torch.Tensor:
        learnt.append((inputs["completion_ids"], inputs["completion_mask"]))
        return plain_loss(self, model, inputs)

    monkeypatch.setattr(MarkschemeTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(MarkschemeTrainer, "_compute_loss", loss)
    records: list[StepRecord] = []
    before = load_file(Path(lagged["model"]) / "model.safetensors")
    client = Late()
    run(lagged, client, on_record=records.append)
    output = Path(lagged["output_dir"])
    assert same(load_file(output / "checkpoint-1" / "model.safetensors"), before)
    assert not same(load_file(output / "checkpoint-2" / "model.safetensors"), before)
    assert not learnt[0][1].any(), "nothing is learnt from the first batch at once"
    for batch, (ids, mask) in zip(generated, learnt[1:], strict=False):
        rows = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
        assert sorted(rows) == sorted(map(list, batch))
    assert [record.step for record in records] == [2, 3, 4, 5, 6]
    assert {call["run"].step for call in client.calls} == {0, 1, 2, 3, 4}


def test_the_ratio_is_to_the_policy_that_sampled_the_batch(
    lagged: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MarkschemeTrainer._compute_loss
    ratios = []

    def loss(self: MarkschemeTrainer, model: Any, inputs: Any) -> torch.Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep = inputs["completion_ids"].shape[1]
        with torch.no_grad():
            now, _, _ = self._get_per_token_logps_and_entropies(model, ids, mask, keep)
        differences = (now - inputs["old_per_token_logps"]) * inputs["completion_mask"]
        ratios.append(float(differences.abs().max()))
        return plain(self, model, inputs)

    monkeypatch.setattr(MarkschemeTrainer, "_compute_loss", loss)
    run(lagged | {"model": settings["model"], "max_steps": 3}, scripted())
    # The first batch's own policy is the initial one, which the first step leaves alone.
    assert ratios[1] < 1e-5
    assert ratios[2] > 1e-3


@METHODS
def test_a_resumed_run_repeats_the_batch_that_was_under_way(
    method: dict[str, Any], lagged: dict[str, Any], tmp_path: Path
) -> None:
    settings = lagged | method
    whole_client, first, second = scripted(), scripted(), scripted()
    whole = run(settings | {"output_dir": str(tmp_path / "whole")}, whole_client)

    def interrupt(record: StepRecord) -> None:
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        run(settings, first, on_record=interrupt)
    torch.rand(7)
    assert same(run(settings, second, resume=True), whole)
    questions = asked(whole_client)
    parts = asked(first) + asked(second)
    assert all(groups in questions for groups in parts)
    assert all(groups in parts for groups in questions)
    assert [record.reward for record in read_records(tmp_path / "whole" / "steps.jsonl")] == [
        record.reward for record in read_records(Path(settings["output_dir"]) / "steps.jsonl")
    ]


def test_a_lost_service_leaves_the_batch_in_the_checkpoint(
    lagged: dict[str, Any], tmp_path: Path
) -> None:
    class Lost(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            if options["run"].step == 2:
                raise ConnectionFailed("connection refused")
            return super().score(groups, **options)

    whole = run(lagged | {"output_dir": str(tmp_path / "whole")}, scripted())
    with pytest.raises(Interrupted, match=r"Saved .*checkpoint-3"):
        run(lagged | {"max_outage_s": 0.0}, Lost(scripted().script))
    assert same(run(lagged, scripted(), resume=True), whole)


def test_a_run_that_is_made_longer_goes_on_with_the_last_batch(
    lagged: dict[str, Any], tmp_path: Path
) -> None:
    """It was generated but not judged: nothing was to be learnt from it."""
    constant = lagged | {"lr_scheduler_type": "constant"}
    whole = run(constant | {"output_dir": str(tmp_path / "whole")}, scripted())
    short, more = scripted(), scripted()
    run(constant | {"max_steps": 4}, short)
    assert {call["run"].step for call in short.calls} == {0, 1, 2}
    assert same(run(constant, more, resume=True), whole)
    assert {call["run"].step for call in more.calls} == {3, 4}


def test_a_group_that_is_late_is_left_out_and_the_others_are_learnt_from(
    lagged: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is over once all but the second group of the third batch are answered."""
    stuck = threading.Event()

    class Slow(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            if [group.id for group in groups] == ["s2-c0-p1"]:
                stuck.wait(PATIENCE_S)
            return super().score(groups, **options)

    def join(self: PendingScores, *given: Any) -> list[ScoreBatch]:
        steps.append(len(steps))
        awaited = self._futures[:1] if steps[-1] == 2 else self._futures
        assert not futures.wait(awaited, PATIENCE_S).not_done
        return plain_join(self, *given)

    steps: list[int] = []
    plain_join = PendingScores.join
    monkeypatch.setattr(PendingScores, "join", join)
    records: list[StepRecord] = []
    slow = Slow(scripted().script)
    run(lagged | {"max_late_s": 0.001}, slow, on_record=records.append)
    stuck.set()
    late = {record.step: record.reasons for record in records if record.reasons}
    assert late == {4: {"timeout": 4}}
    assert all(len(call["groups"]) == 1 for call in slow.calls)
    assert records[2].reward is not None


def test_a_bound_on_lateness_needs_a_lag(lagged: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`max_late_s` needs `reward_lag` 1"):
        build_config(lagged | {"reward_lag": 0, "max_late_s": 10.0})


@pytest.mark.parametrize("key", ["max_resampling_rounds", "beta"])
def test_what_cannot_be_late_is_refused(key: str, lagged: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must be 0 with `reward_lag` 1"):
        build_config(lagged | {key: 1})
