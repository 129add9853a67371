"""Test whole runs of a random one-layer model: train, resume, stop, lose the service."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from markscheme.errors import ConnectionFailed, MarkschemeError
from markscheme.vocabulary import REASON_HELP, UnscoredReason
from markscheme_train.checkpoints import last_checkpoint
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.errors import (
    ConfigError,
    Diverged,
    Interrupted,
    ModelError,
    Stopped,
    TrainError,
)
from markscheme_train.run_folder import check_processes, config_fingerprint, resolve_run_id
from markscheme_train.step_log import StepRecord, read_records
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import load_model, resolve_thinking, train
from train.tiny import CRITERION, ScriptedClient

# TRL 1.16 still reads a name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def by_length(place: int, rollout: Any) -> float:
    return len(rollout.text.split()) / 10


def weights(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(
    settings: dict[str, Any],
    *,
    resume: bool = False,
    client: ScriptedClient | None = None,
    on_record: Any = lambda record: None,
) -> Path:
    return train(
        build_config(settings),
        client or ScriptedClient(by_length),
        resume=resume,
        on_record=on_record,
    )


def test_a_run_changes_the_model_and_writes_its_steps(
    settings: dict[str, Any], model_directory: Path
) -> None:
    records: list[StepRecord] = []
    output = run(settings, on_record=records.append)
    assert not torch.equal(weights(output), weights(model_directory))
    lines = [json.loads(line) for line in (output / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [record.step for record in records] == [1, 2]
    assert (records[0].steps, records[0].rollouts, records[0].unscored) == (2, 8, 0)
    assert records[0].criteria[0].judged == 4
    assert min(records[0].rollout_s, records[0].update_s) > 0


def test_the_mean_reward_of_a_step_is_over_known_rewards_only(settings: dict[str, Any]) -> None:
    records: list[StepRecord] = []
    settings = {**settings, "max_unscored": 1.0}
    run(
        settings,
        client=ScriptedClient(lambda place, rollout: None if place else 0.75),
        on_record=records.append,
    )
    assert (records[0].reward, records[0].unscored, records[0].reasons) == (0.75, 6, {"timeout": 6})
    records.clear()
    run(settings, client=ScriptedClient(lambda place, rollout: None), on_record=records.append)
    assert records[0].reward is None


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    four = {**settings, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = run({**four, "output_dir": str(tmp_path / "whole")})

    def interrupt(record: StepRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    parts = {**four, "output_dir": str(tmp_path / "parts")}
    first = ScriptedClient(by_length)
    with pytest.raises(Stopped, match=r"stopped after step [23] of 4; saved in .*parts"):
        run(parts, client=first, on_record=interrupt)
    second = ScriptedClient(by_length)
    torch.rand(7)
    resumed = run(parts, client=second, resume=True)
    assert [call["run"].step for call in first.calls + second.calls] in (
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    )
    assert {call["run"].id for call in first.calls} == {call["run"].id for call in second.calls}
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-2}, "learning_rate was 0.01 and is 0.02"),
        ({"seed": 7}, "seed was 42 and is 7"),
        ({"data": "other"}, "has other contents"),
    ],
)
def test_another_run_is_not_gone_on_with(
    change: dict[str, Any], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    run({**settings, "save_strategy": "steps", "save_steps": 1})
    before = weights(Path(settings["output_dir"]))
    if "data" in change:
        other = tmp_path / "other.jsonl"
        other.write_text(Path(settings["data"]).read_text() + '{"prompt": "w11"}\n')
        change = {"data": str(other)}
    with pytest.raises(ConfigError, match=message):
        run({**settings, "max_steps": 3, **change}, resume=True)
    assert torch.equal(weights(Path(settings["output_dir"])), before)
    run({**settings, "max_steps": 3}, resume=True)  # for longer is no other run


def test_a_run_is_not_started_over_another(settings: dict[str, Any]) -> None:
    run({**settings, "save_strategy": "steps", "save_steps": 1})
    before = weights(Path(settings["output_dir"]))
    with pytest.raises(
        ConfigError,
        match=r"holds a run that has got to checkpoint-2: go on with --resume, or start",
    ):
        run(settings)
    assert torch.equal(weights(Path(settings["output_dir"])), before)


def test_a_checkpoint_that_is_not_whole_is_passed_over(settings: dict[str, Any]) -> None:
    output = run({**settings, "save_strategy": "steps", "save_steps": 1})
    (output / "checkpoint-2" / "trainer_state.json").unlink()
    (output / "checkpoint-x").mkdir()
    assert last_checkpoint(output) == output / "checkpoint-1"


def test_saving_and_stopping_wait_for_the_end_of_the_batch(settings: dict[str, Any]) -> None:
    def interrupt(record: StepRecord) -> None:
        if record.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    records: list[StepRecord] = []
    output = Path(settings["output_dir"])
    with pytest.raises(Stopped):
        run(
            {
                **settings,
                "num_iterations": 2,
                "max_steps": 6,
                "save_strategy": "steps",
                "save_steps": 3,
            },
            on_record=lambda record: (records.append(record), interrupt(record)),
        )
    assert [record.step for record in records] == [1, 2]
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]
    run(
        {
            **settings,
            "num_iterations": 2,
            "max_steps": 6,
            "save_strategy": "steps",
            "save_steps": 3,
        },
        resume=True,
    )
    assert {path.name for path in output.glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    }


@pytest.mark.parametrize("preset", ["ropd", "ropd-paper", "sdpo", "srpo", "srpo-rubric"])
@pytest.mark.parametrize("reward", [0.0, 0.5, 1.0])
def test_equal_rewards_are_trained_on_without_harm(
    preset: str, reward: float, settings: dict[str, Any]
) -> None:
    """One group of them a step; some rollouts end at once."""
    records: list[StepRecord] = []
    output = run(
        {
            **settings,
            "preset": preset,
            "per_device_train_batch_size": 4,
            "warmup_steps": 0,
            "distillation_top_k": 5,
        },
        client=ScriptedClient(lambda place, rollout: reward),
        on_record=records.append,
    )
    assert weights(output).isfinite().all()
    assert [record.reward for record in records] == [reward, reward]


def test_a_fresh_run_has_a_name_of_its_own(settings: dict[str, Any]) -> None:
    clients = [ScriptedClient(by_length), ScriptedClient(by_length)]
    for client in clients:
        run(settings, client=client)
    assert clients[0].calls[0]["run"].id != clients[1].calls[0]["run"].id


def test_the_first_process_alone_names_the_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's name in the file would give a resumed run different rubrics."""
    output = Path(settings["output_dir"])
    named = resolve_run_id(build_config(settings), output, resume=False)
    monkeypatch.setattr(TrainConfig, "process_index", 1)
    assert resolve_run_id(build_config(settings), output, resume=False) != named
    assert resolve_run_id(build_config(settings), output, resume=True) == named


def test_a_lost_service_saves_what_was_learnt(settings: dict[str, Any]) -> None:
    class Lost(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            if self.calls:
                raise MarkschemeError("connection refused")
            return super().score(groups, **options)

    with pytest.raises(
        TrainError,
        match=r"connection refused\nSaved .*checkpoint-1\. Once that is mended, go on with --res",
    ):
        run(settings, client=Lost(by_length))
    assert (Path(settings["output_dir"]) / "checkpoint-1" / "trainer_state.json").is_file()


def test_a_run_that_never_reached_the_service_says_so(settings: dict[str, Any]) -> None:
    class Absent(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            raise MarkschemeError("connection refused")

    with pytest.raises(TrainError, match=r"connection refused\nNo step was finished"):
        run(settings, client=Absent(by_length))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "/nowhere/at/all"}, ModelError, "there is no model folder `/nowhere/at/all`"),
        (
            {"per_device_train_batch_size": 32},
            ConfigError,
            "has 4 prompts, fewer than the 8 of one batch",
        ),
    ],
)
def test_what_cannot_start_says_why(
    settings: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run({**settings, **change})


def test_model_and_tokenizer_are_of_one_revision_whose_code_is_trusted_as_set(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for kind in (AutoModelForCausalLM, AutoTokenizer):

        def load(name: str, plain: Any = kind.from_pretrained, **options: Any) -> Any:
            asked.append((options["revision"], options["trust_remote_code"]))
            return plain(name)

        monkeypatch.setattr(kind, "from_pretrained", load)
    given = {"model_init_kwargs": {"revision": "v2"}, "trust_remote_code": True}
    load_model(build_config(settings | given))
    assert asked == [("v2", True)] * 2


def test_a_batch_of_which_too_much_is_unscored_is_not_learnt_from_and_comes_again(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**settings, "max_steps": 4}
    records: list[StepRecord] = []
    client = ScriptedClient(
        lambda place, rollout: None if place and len(client.calls) == 2 else by_length(0, rollout)
    )
    with pytest.raises(
        Interrupted,
        match=r"6 of 8 rollouts of step 2 are unscored \(6 timeout\); the step was not"
        r".*\n6 timeout: The judge did not answer in time\. .*"
        r"Once timeout has passed, --resume helps.* "
        r"Saved .*checkpoint-1; go on with --resume\.$",
    ):
        run(settings, client=client, on_record=records.append)
    assert [record.step for record in records] == [1]
    assert (Path(settings["output_dir"]) / "checkpoint-1" / "trainer_state.json").is_file()
    there = ScriptedClient(by_length)
    resumed = run(settings, client=there, resume=True, on_record=records.append)
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert there.calls[0]["groups"] == client.calls[1]["groups"], (
        "the very rollouts that could not be marked"
    )
    whole = run({**settings, "output_dir": str(tmp_path / "whole")})
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_what_asking_again_will_not_change_is_no_reason_to_start_again(
    settings: dict[str, Any],
) -> None:
    """A container would be restarted for ever."""

    class NoRubrics(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            batch = super().score(groups, **options)
            return batch.model_copy(
                update={
                    "groups": [
                        group.model_copy(
                            update={
                                "rollouts": [
                                    rollout.model_copy(update={"reason": UnscoredReason.NO_RUBRIC})
                                    for rollout in group.rollouts
                                ]
                            }
                        )
                        for group in batch.groups
                    ]
                }
            )

    with pytest.raises(TrainError, match=r"8 no_rubric.*\n.*raise max_unscored") as refused:
        run(settings, client=NoRubrics(lambda place, rollout: None))
    assert not isinstance(refused.value, Interrupted)
    last = str(refused.value).rpartition("\n")[2]
    assert last == (
        f"8 no_rubric: {REASON_HELP[UnscoredReason.NO_RUBRIC]} --resume alone does "
        "not help: mend that first, or raise max_unscored, then use it. "
        "No step was finished."
    )


def test_a_run_that_has_learnt_nothing_yet_may_become_another(settings: dict[str, Any]) -> None:
    class Absent(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            raise MarkschemeError("connection refused")

    with pytest.raises(TrainError, match="No step was finished"):
        run({**settings, "learning_rate": 1.0}, client=Absent(by_length))
    first = (Path(settings["output_dir"]) / "run_id").read_text()
    output = run(settings, resume=True)
    assert (output / "run_id").read_text() != first
    assert (
        json.loads((output / "settings.json").read_text())["learning_rate"]
        == settings["learning_rate"]
    )


def test_gradients_that_are_no_numbers_are_never_stepped_on(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, losses = MarkschemeTrainer._compute_loss, []

    def broken(self: MarkschemeTrainer, model: Any, inputs: Any) -> torch.Tensor:
        losses.append(plain(self, model, inputs))
        return losses[-1] * (float("nan") if len(losses) == 2 else 1.0)

    monkeypatch.setattr(MarkschemeTrainer, "_compute_loss", broken)
    with pytest.raises(Diverged, match="step 2 are no numbers"):
        run({**settings, "save_strategy": "steps", "save_steps": 1})
    assert weights(Path(settings["output_dir"]) / "checkpoint-1").isfinite().all()
    assert not (Path(settings["output_dir"]) / "checkpoint-2").exists()


def test_a_run_that_is_done_is_resumed_to_its_model(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """As after a kill between the last checkpoint and the model: no step is added."""
    output = run({**settings, "save_strategy": "steps", "save_steps": 1, "max_steps": 3})
    model = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    client = ScriptedClient(by_length)
    run(
        {**settings, "save_strategy": "steps", "save_steps": 1, "max_steps": 3},
        resume=True,
        client=client,
    )
    assert (output / "model.safetensors").read_bytes() == model
    assert client.calls == []


def test_a_run_that_saved_nothing_yet_is_begun_again_under_its_name(
    settings: dict[str, Any],
) -> None:
    class Away(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            self.calls.append(options)
            raise ConnectionFailed("connection refused")

    away, there = Away(by_length), ScriptedClient(by_length)
    with pytest.raises(Interrupted, match="No step was finished; start again with --resume"):
        run({**settings, "max_outage_s": 0.0}, client=away)
    run(settings, client=there, resume=True)
    assert there.calls[0]["run"] == away.calls[0]["run"]


def test_what_no_figure_can_be_taken_of_is_null(settings: dict[str, Any]) -> None:
    """TRL logs NaN there, which is no JSON."""
    output = run(
        {**settings, "preset": "sdpo", "max_unscored": 1.0},
        client=ScriptedClient(lambda place, rollout: None),
    )
    lines = (output / "steps.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines)
    assert json.loads(lines[0])["metrics"]["reward"] is None


def test_what_a_killed_part_paid_is_not_forgotten(settings: dict[str, Any]) -> None:
    class Paid(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            batch = super().score(groups, **options)
            return batch.model_copy(
                update={"usage": batch.usage.model_copy(update={"judge_calls": self.price})}
            )

        price = 7

    class Killed(Exception):
        pass

    def kill(record: StepRecord) -> None:
        if record.step == 2:
            raise Killed

    config = {**settings, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(Killed):
        run(config, client=Paid(by_length), on_record=kill)
    cheaper = Paid(by_length)
    cheaper.price = 1
    output = run(config, client=cheaper, resume=True)
    assert [
        json.loads(line)["judge_calls"]
        for line in (output / "steps.jsonl").read_text().splitlines()
    ] == [7, 8, 1]


def test_a_criterion_with_odd_characters_breaks_no_record(settings: dict[str, Any]) -> None:
    class Odd(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> Any:
            batch = super().score(groups, **options)
            criterion = CRITERION.model_copy(update={"text": "It is\u2028\x85 short."})
            return batch.model_copy(
                update={
                    "groups": [
                        group.model_copy(
                            update={
                                "rubric": group.rubric.model_copy(update={"criteria": [criterion]})
                            }
                        )
                        for group in batch.groups
                        if group.rubric is not None
                    ]
                }
            )

    config = {**settings, "save_strategy": "steps", "save_steps": 1}
    run(config, client=Odd(by_length))
    output = run({**config, "max_steps": 3}, client=Odd(by_length), resume=True)
    records = read_records(output / "steps.jsonl")
    assert [record.step for record in records] == [1, 2, 3]
    assert {rate.text for record in records for rate in record.criteria} == {
        "It is\u2028\x85 short."
    }


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"disable_dropout": False}, False),
        ({"top_p": 0.9}, False),
        ({"ask_teacher": 1}, False),
        ({"optim": "sgd"}, False),
        ({"lr_scheduler_type": "cosine"}, False),
        ({"save_steps": 7, "logging_steps": 3}, True),
        ({"markscheme_url": "http://elsewhere", "max_outage_s": 1.0}, True),
        ({"output_dir": "/elsewhere"}, True),
        ({"max_steps": 50}, True),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, True),
        ({"per_device_train_batch_size": 4}, False),
        ({"gradient_accumulation_steps": 2}, False),
        ({"steps_per_generation": 2}, False),
    ],
)
def test_what_decides_a_run(change: dict[str, Any], same: bool, settings: dict[str, Any]) -> None:
    one, two = (
        config_fingerprint(build_config(given)) for given in (settings, {**settings, **change})
    )
    assert (one == two) is same
    json.dumps(one)


def test_whether_weights_are_in_shards_decides_a_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(settings)
    whole = config_fingerprint(config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert config_fingerprint(config) != whole


def test_another_number_of_processes_is_told_what_starts_anew(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    for rank in range(2):
        (tmp_path / f"rng_state_{rank}.pth").touch()
    config, told = build_config(settings), list[str]()
    check_processes(config, tmp_path, told.append)
    assert len(told) == 1
    assert "written by 2 processes and there are 1" in told[0]
    assert "the random numbers start anew" in told[0]
    (tmp_path / "rng_state_1.pth").unlink()
    check_processes(config, tmp_path, told.append)
    assert len(told) == 1


def test_generators_of_another_number_of_processes_start_anew_by_step_and_rank(
    tmp_path: Path,
) -> None:
    for rank in range(2):
        (tmp_path / f"rng_state_{rank}.pth").touch()

    def drawn(step: int, rank: int) -> float:
        trainer: Any = SimpleNamespace(
            accelerator=SimpleNamespace(process_index=rank, num_processes=4),
            state=SimpleNamespace(global_step=step),
            args=SimpleNamespace(seed=1),
        )
        MarkschemeTrainer._load_rng_state(trainer, str(tmp_path))
        return float(torch.rand(()))

    places = [(step, rank) for step in range(2) for rank in range(4)]
    first = [drawn(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [drawn(*place) for place in places] == first


def deepspeed(stage: int, device: str = "none") -> SimpleNamespace:
    zero = {"stage": stage, "offload_optimizer": {"device": device}}
    return SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": zero})


def written_by_two(folder: Path) -> Path:
    for rank in range(2):
        (folder / f"rng_state_{rank}.pth").touch()
    return folder


@pytest.mark.parametrize("plugin", [deepspeed(2), deepspeed(3, "nvme")], ids=["zero 2", "a disk"])
def test_deepspeed_cannot_go_on_with_another_number_of_processes(
    plugin: SimpleNamespace, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = build_config(settings)
    config.deepspeed_plugin = plugin
    with pytest.raises(ConfigError, match="by 2 processes and there are 1: resume it with 2"):
        check_processes(config, written_by_two(tmp_path), lambda message: None)


@pytest.mark.parametrize("plugin", [deepspeed(3), deepspeed(3, "cpu"), None])
def test_zero_3_and_whole_weights_go_on_with_another_number_of_processes(
    plugin: SimpleNamespace | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = build_config(settings)
    config.deepspeed_plugin = plugin
    said: list[str] = []
    check_processes(config, written_by_two(tmp_path), said.append)
    assert ["random numbers start anew" in message for message in said] == [True]


def test_with_a_schedule_its_length_decides_too(settings: dict[str, Any]) -> None:
    paper = {**settings, "preset": "ropd-paper"}
    assert config_fingerprint(build_config(paper)) != config_fingerprint(
        build_config({**paper, "max_steps": 50})
    )


def test_there_must_be_something_to_resume(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(settings, resume=True)


@pytest.mark.parametrize(
    ("template", "configured", "sent"),
    [
        (None, "auto", "auto"),
        ("{{ messages[0]['content'] }} :", "auto", "auto"),
        ("{{ messages[0]['content'] }}\n<think>\n", "auto", "strip"),
        ("{{ messages[0]['content'] }}\n<think>\n", "keep", "keep"),
    ],
)
def test_a_template_that_opens_the_thought_is_told_to_the_service(
    template: str | None,
    configured: str,
    sent: str,
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = template
    assert resolve_thinking(build_config(settings | {"thinking": configured}), tokenizer) == sent
