"""Test SDPO and SRPO in the trainer on a random one-layer model.

Covers the joint loss, its parts, and how the self-teacher changes.
"""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from markscheme_train.config import build_config
from markscheme_train.data import Example
from markscheme_train.errors import ConfigError
from markscheme_train.losses import SrpoConfig
from markscheme_train.reprompt import reprompt
from markscheme_train.reward import Row, RowScore, RubricReward
from markscheme_train.self_distillation import (
    BranchNorms,
    ScoredRows,
    SelfDistillation,
    TeacherContext,
    _relative_deviation,
)
from markscheme_train.self_teacher import ModelCopy
from markscheme_train.sharding import check_shards
from markscheme_train.student_forward import run_student
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.trainer_checkpoint import SELF_TEACHER_FILE
from markscheme_train.training import build_trainer, train
from train.routed_batch import PROMPTS, Maker, generate, mixed
from train.tiny import ScriptedClient

# TRL 1.16 and PEFT 0.21 still use names that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"
)


def gradient(trainer: MarkschemeTrainer, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters()])


def make_sure_of_itself(trainer: MarkschemeTrainer) -> None:
    """Let the self-teacher's entropies differ: as initialised, it is unsure of everything."""
    teacher = trainer.distillation and trainer.distillation.self_teacher
    assert isinstance(teacher, ModelCopy)
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.mul_(6)


def test_failed_rollouts_with_a_good_sibling_go_to_the_self_teacher(
    make_srpo_trainer: Maker,
) -> None:
    trainer = make_srpo_trainer()
    batch = generate(trainer)
    assert batch["routed"].tolist() == [False, True, True, False] * 2
    assert batch["advantages"].tolist() == pytest.approx([0.6, -0.4, -0.4, 0.2] * 2)
    counted = batch["completion_mask"].bool() & batch["routed"].unsqueeze(1)
    weights = (-batch["teacher_entropy"][counted]).exp() / batch["weight_mean"]
    assert weights.mean() == pytest.approx(1.0, abs=1e-5)
    assert not batch["teacher_entropy"][~counted].any()
    told = {
        name.partition("/")[2]: values[-1]
        for name, values in trainer._metrics["train"].items()
        if name.startswith("distillation/")
    }
    assert (told["routed_share"], told["informed_share"]) == (0.5, 1.0)
    assert told["weight_p10"] <= told["weight_p50"] <= told["weight_p90"]
    assert 0 < told["entropy_p10"] <= told["entropy_mean"] <= torch.log(torch.tensor(64.0))
    assert [None if s is None else len(s) for s in batch["teacher_states"]] == [
        n if routed else None
        for n, routed in zip(counted.sum(1).tolist(), batch["routed"].tolist(), strict=True)
    ]


def test_the_log_says_how_much_is_taught_and_how_sure_the_self_teacher_is(
    make_srpo_trainer: Maker,
) -> None:
    rewards = [1.0, 0.0, None, 0.2, 1.0, None, 0.6, 0.3]
    places = iter(rewards)
    trainer = make_srpo_trainer(lambda place, rollout: next(places), entropy_beta=0.5)
    make_sure_of_itself(trainer)
    batch = generate(trainer)
    mask = batch["completion_mask"].bool()
    counted = mask & torch.tensor([False, True, False, True, False, False, False, True])[:, None]
    entropies = batch["teacher_entropy"][counted].double()
    weights = (-0.5 * entropies).exp()
    weights = weights / weights.mean()
    expected = {
        "routed_share": 3 / 8,
        # The lone success of the first group has no other one to be shown.
        "informed_share": 5 / 8,
        "failed_share": 3 / 8,
        "routed_token_share": counted.sum().item() / mask.sum().item(),
        "entropy_mean": entropies.mean().item(),
        "weight_std": weights.std(correction=0).item(),
    }
    for name, values in (("entropy", entropies), ("weight", weights)):
        ordered = sorted(values.tolist())
        for share in (10, 50, 90):
            expected[f"{name}_p{share}"] = ordered[(len(ordered) - 1) * share // 100]
    assert entropies.std() > 0.1
    told = {
        name.partition("/")[2]: values
        for name, values in trainer._metrics["train"].items()
        if name.startswith("distillation/")
    }
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        assert told[name] == [pytest.approx(value, rel=1e-5)], name
    student, _ = run_student(trainer, trainer.model, batch, pytest.fail)  # a CPU runs plainly
    trainer._compute_loss(trainer.model, batch)
    own = student.entropies[mask].mean().item()
    assert trainer._metrics["train"]["entropy"] == [pytest.approx(own)]


def test_where_nothing_is_routed_there_is_no_entropy_to_log(make_srpo_trainer: Maker) -> None:
    trainer = make_srpo_trainer(lambda place, rollout: None)
    generate(trainer)
    assert not any("entropy_" in name or "weight_" in name for name in trainer._metrics["train"])
    assert "distillation/routed_token_share" not in trainer._metrics["train"]
    assert trainer._metrics["train"]["distillation/routed_share"] == [0.0]


def test_the_best_of_the_teachers_responses_is_shown(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    config = build_config({**settings, "preset": "srpo", "teacher_demonstration": True})
    distillation = SelfDistillation(config, SimpleNamespace(), tokenizer)  # type: ignore[arg-type]
    rows = ScoredRows(
        [Row("w1", "w2", teacher_responses=["w60", "w61", "w62", "w63"])] * 8,
        [RowScore(0.2, False)] * 8,
        [[None, 0.7, 0.9, 0.9]] * 4 + [[None, None, 0.4, None]] * 4,
    )
    contexts = distillation.routes(rows)
    # The second group's best response is itself a failure.
    assert [context.demonstration for context in contexts] == ["w62"] * 4 + [None] * 4
    assert [context.external for context in contexts] == [True] * 4 + [False] * 4
    assert [context.routed for context in contexts] == [True] * 4 + [False] * 4
    assert not any(context.control for context in contexts)


@pytest.mark.parametrize(("most", "fits"), [(32, False), (64, True)])
def test_a_rollout_is_not_taught_where_the_self_teachers_prompt_would_be_too_long(
    most: int, fits: bool, make_srpo_trainer: Maker
) -> None:
    trainer = make_srpo_trainer(max_reprompt_length=most)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    task = " ".join(["w1"] * 20)
    batch = trainer._generate_and_score_completions([{"prompt": task}] * 4)
    assert batch["routed"].tolist() == [False, fits, fits, False]


@pytest.mark.parametrize("plain_device", ["cpu", "none"])
def test_how_strongly_each_branch_pulls(
    plain_device: str, make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the gradients of each branch alone, at the same hidden states."""
    monkeypatch.setattr(MarkschemeTrainer, "plain_device", plain_device)
    trainer = make_srpo_trainer()
    batch = generate(trainer)
    trainer._compute_loss(trainer.model, batch).backward()
    found = trainer.distillation.norms.take(torch.device("cpu")).sqrt().tolist()
    assert not trainer.distillation.norms.take(torch.device("cpu")).any()
    alone = []
    for lone in (
        {"weight_mean": torch.tensor(torch.inf)},
        {"advantages": torch.zeros_like(batch["advantages"])},
    ):
        trainer._compute_loss(trainer.model, {**batch, **lone}).backward()
        alone.append(trainer.distillation.norms.take(torch.device("cpu")).sum().sqrt().item())
    assert min(alone) > 0
    assert found == pytest.approx(alone, rel=1e-4)


CONTEXTS = [
    TeacherContext(True, "w5", (), external=True, failure=True, control=False),
    # A success that learns from feedback alone.
    TeacherContext(True, None, ["w6"], external=False, failure=False, control=False),
    TeacherContext(False, "w7", (), external=True, failure=True, control=False),
    TeacherContext(False, "w8", (), external=False, failure=False, control=True),
    TeacherContext(False, None, (), external=False, failure=False, control=False),
    TeacherContext(True, "w9", ["w6"], external=False, failure=True, control=False),
    TeacherContext(True, "w9", (), external=False, failure=False, control=True),
    TeacherContext(False, None, (), external=False, failure=True, control=False),
]


def test_each_rows_context_decides_what_it_learns_and_what_is_told(
    make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_srpo_trainer(teacher_demonstration=True)
    assert trainer.distillation is not None
    monkeypatch.setattr(trainer.distillation, "routes", lambda rows: CONTEXTS)
    batch = generate(trainer)
    assert batch["routed"].tolist() == [context.routed for context in CONTEXTS]
    assert batch["controls"].tolist() == [context.control for context in CONTEXTS]
    assert [row for row, is_failure in enumerate(batch["failures"]) if is_failure] == [0, 5]
    mask = batch["completion_mask"].bool()
    read = torch.tensor([c.routed or c.control for c in CONTEXTS]).unsqueeze(1)
    assert torch.equal(batch["teacher_log_probs"] != 0, mask & read)
    assert torch.equal(batch["teacher_entropy"] != 0, mask & batch["routed"].unsqueeze(1))
    assert [states is not None for states in batch["teacher_states"]] == batch["routed"].tolist()
    told = {
        name.partition("/")[2]: values
        for name, values in trainer._metrics["train"].items()
        if name.endswith("_share") and name.startswith("distillation/")
    }
    assert told == {
        "routed_share": [4 / 8],
        "informed_share": [6 / 8],
        "failed_share": [4 / 8],
        "teacher_response_share": [1 / 8],
        "routed_token_share": [pytest.approx(mask[batch["routed"]].sum() / mask.sum())],
    }


def test_a_process_prepares_its_own_rows_among_those_of_all(
    make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_srpo_trainer(teacher_demonstration=True)
    distillation = trainer.distillation
    assert distillation is not None
    make_sure_of_itself(trainer)
    monkeypatch.setattr(distillation, "routes", lambda rows: CONTEXTS)
    seen: list[ScoredRows] = []
    prepare = distillation.prepare

    def noting(batch: Any, rows: ScoredRows, **more: Any) -> Any:
        seen.append(rows)
        return prepare(batch, rows, **more)

    monkeypatch.setattr(distillation, "prepare", noting)
    batch = generate(trainer)
    alone = dict(batch)
    others, nothing = Row("w9 w9 w9", "w1"), TeacherContext(False, None, (), False, False, False)
    rows = ScoredRows([others] * 8 + list(seen[0].rollouts), [], [])
    monkeypatch.setattr(distillation, "routes", lambda rows: [nothing] * 8 + CONTEXTS)
    told = prepare(batch, rows, first=8, total=lambda sums: sums * 3)
    for name in ("routed", "failures", "controls", "teacher_entropy", "teacher_log_probs"):
        assert torch.equal(batch[name], alone[name]), name
    # Each of three processes has the same rows.
    assert told["distillation/routed_share"] == 4 / 8
    assert told["distillation/teacher_response_share"] == 1 / 8
    own = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert told == pytest.approx({name: own[name] for name in told}, rel=1e-4)


def test_a_demonstration_is_shown_in_part_where_all_of_it_does_not_fit(
    make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_srpo_trainer()
    distillation = trainer.distillation
    assert distillation is not None
    words = TeacherContext(True, "w5 w6 w7 w8", (), False, False, False)
    monkeypatch.setattr(distillation, "routes", lambda rows: [words] * 8)
    room = len(distillation._tokens(reprompt(PROMPTS[0], "")))
    trainer.args.max_reprompt_length = room + 2
    shown: list[str] = []
    states = distillation.self_teacher.states

    def noting(ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        shown.extend(trainer._tokenizer.batch_decode(ids[:, :-keep]))
        return states(ids, mask, keep)

    monkeypatch.setattr(distillation.self_teacher, "states", noting)
    assert generate(trainer)["routed"].all()
    first = [text for text in shown if "w1 w2 w3" in text]
    assert len(first) == 4
    assert all("w5 w6" in text and "w7" not in text for text in first)


@pytest.mark.parametrize(("others", "passes"), [(0, 2), (1, 2), (2, 2), (4, 4)])
def test_processes_with_shards_ask_the_self_teacher_equally_often(
    others: int, passes: int, make_srpo_trainer: Maker
) -> None:
    """Two rows a pass, three rows here, and another process that needs more passes or fewer."""
    trainer = make_srpo_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    distillation = trainer.distillation
    assert distillation is not None
    batch, prompts = generate(trainer), {1: [5, 6], 4: [7], 6: [8, 9, 10]}
    whole = distillation._teacher_states(batch, prompts, pytest.fail)
    asked: list[tuple[torch.Size, torch.Size, int]] = []

    class Sharded:
        sharded = True

        def states(self, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
            asked.append((ids.shape, mask.shape, keep))
            assert mask.dtype == ids.dtype
            made: torch.Tensor = teacher.states(ids, mask, keep)
            return made

    def total(numbers: torch.Tensor) -> torch.Tensor:
        assert numbers.tolist() == [0, 0, 1, 0, 0]
        return numbers + torch.eye(5)[others]

    teacher = distillation.self_teacher
    distillation.self_teacher = Sharded()  # type: ignore[assignment]
    found = distillation._teacher_states(batch, prompts, total)
    assert found.keys() == whole.keys() == prompts.keys()
    assert all(torch.equal(states, whole[row]) for row, states in found.items())
    assert len(asked) == passes
    alone = batch["completion_ids"][:1].shape
    assert asked[2:] == [(alone, alone, 1)] * (passes - 2)


@pytest.mark.parametrize("kind", ["ema", "trust_region"])
def test_states_kept_in_half_precision_make_the_same_logits(
    kind: str, make_srpo_trainer: Maker
) -> None:
    """Autocast brings them to it before the head, whatever the last norm made of them."""
    trainer = make_srpo_trainer(bf16=True, self_teacher=kind)
    batch = generate(trainer)
    teacher = trainer.distillation.self_teacher
    kept = [states for states in batch["teacher_states"] if states is not None]
    assert {states.dtype for states in kept} == {torch.bfloat16}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    with trainer.accelerator.autocast(), torch.no_grad():
        full = teacher.states(ids, torch.ones_like(ids), 3)
        assert full.dtype == torch.float32
        assert torch.equal(teacher.head(full), teacher.head(full.bfloat16()))


def test_micro_batches_add_up(make_srpo_trainer: Maker) -> None:
    trainer = make_srpo_trainer()
    make_sure_of_itself(trainer)
    batch = generate(trainer)
    whole = gradient(trainer, trainer._compute_loss(trainer.model, batch))
    parts = []
    for rows in ([0, 3], [1, 4, 5], [2, 6, 7]):
        part = {
            k: [v[i] for i in rows]
            if isinstance(v, list)
            else v[torch.tensor(rows)]
            if v.dim()
            else v
            for k, v in batch.items()
        }
        parts.append(trainer._compute_loss(trainer.model, part))
    torch.testing.assert_close(gradient(trainer, sum(parts)), whole, atol=1e-6, rtol=1e-4)


def test_where_all_succeed_it_is_grpo(make_srpo_trainer: Maker) -> None:
    trainer = make_srpo_trainer(lambda place, rollout: 0.6 + place / 10)
    batch = generate(trainer)
    assert not batch["routed"].any()
    ours = gradient(trainer, trainer._compute_loss(trainer.model, batch))
    trainer.distillation = None
    plain = gradient(trainer, trainer._compute_loss(trainer.model, batch))
    torch.testing.assert_close(ours, plain, atol=1e-7, rtol=1e-5)


def test_what_has_no_reward_is_in_neither_branch_and_shows_nothing(
    make_srpo_trainer: Maker,
) -> None:
    rewards = [None, 0.0, 1.0, None]
    batch = generate(make_srpo_trainer(lambda place, rollout: rewards[place]))
    assert batch["routed"].tolist() == [False, True, False, False] * 2
    assert not batch["completion_mask"][[0, 3, 4, 7]].any()
    assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum())


def test_sdpo_teaches_every_rollout_of_which_the_teacher_knows_more(
    make_srpo_trainer: Maker,
) -> None:
    trainer = make_srpo_trainer(preset="sdpo")
    batch = generate(trainer)
    assert batch["routed"].all()  # the success at 0 is shown to the others, that at 3 to it
    trainer.reward.client.script = lambda place, rollout: float(place == 0)  # type: ignore[attr-defined]
    lone = generate(trainer)
    assert lone["routed"].tolist() == [False, True, True, True] * 2
    assert not lone["completion_mask"][0].any()
    assert int(lone["num_items_in_batch"]) == int(lone["completion_mask"].sum())


def test_the_teacher_reads_demonstration_and_feedback(
    make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_srpo_trainer(preset="srpo-rubric")
    assert trainer.distillation is not None
    seen: list[str] = []
    plain = SelfDistillation._tokens
    monkeypatch.setattr(
        SelfDistillation,
        "_tokens",
        lambda self, prompt: seen.append(str(prompt)) or plain(self, prompt),
    )
    batch = generate(trainer)
    assert (
        batch["routed"].tolist() == [False, True, True, True] * 2
    )  # 0.6 is no success on a rubric's scale
    best = trainer._tokenizer.decode(batch["completion_ids"][0], skip_special_tokens=True)
    assert any(best in text for text in seen)


@pytest.mark.parametrize(
    ("thinking", "shown"), [("auto", "w5 w6"), ("strip", "w6"), ("keep", "w4 </think> w5 w6")]
)
def test_a_demonstration_is_shown_without_the_thought_that_is_not_judged(
    thinking: Any, shown: str, settings: dict[str, Any], tokenizer: Any
) -> None:
    config = build_config({**settings, "preset": "srpo"})
    distillation = SelfDistillation(config, SimpleNamespace(), tokenizer, thinking=thinking)  # type: ignore[arg-type]
    # With `strip` the chat template has opened the thought.
    text = "w5 </think> w6" if thinking == "strip" else "<think> w4 </think> w5 w6"
    expected = shown if thinking != "keep" else text
    for demonstration in (text, [{"role": "assistant", "content": text}]):
        whole, cut = distillation._readable(demonstration)
        assert whole == expected
        # Where all of it fits nothing else comes or goes; words that are not known become one.
        assert cut(expected, 9) == tokenizer.decode(distillation._ids(expected))


def test_a_demonstration_is_counted_and_cut_without_the_tokenizers_own_tokens(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    config = build_config({**settings, "preset": "srpo", "min_demonstration_tokens": 3})
    distillation = SelfDistillation(config, SimpleNamespace(), tokenizer)  # type: ignore[arg-type]
    for demonstration in ("w1 w2 w3", [{"role": "assistant", "content": "w1 w2 w3"}]):
        text, cut = distillation._readable(demonstration)
        assert text == "w1 w2 w3"
        assert cut(text, 2) == "w1 w2"
    assert distillation._is_too_short("w1 w2")
    distillation.config.min_demonstration_tokens = 1
    assert distillation._is_too_short("")
    distillation.config.min_demonstration_tokens = 3
    assert not distillation._is_too_short("w1 w2 w3")


def test_a_chat_is_rendered_as_the_students_prompts_are(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w9 {% endif %}"
        "{% if tools %}w8 {% endif %}{% if enable_thinking %}w7{% endif %}"
    )
    config = build_config(
        {**settings, "preset": "srpo", "chat_template_kwargs": {"enable_thinking": True}}
    )
    tool = {"type": "function", "function": {"name": "look_up"}}
    chat = [{"role": "user", "content": "w1 w2"}]
    for template, expected in (({"tools": [tool]}, "w1 w2 w9 w8 w7"), (None, "w1 w2 w9 w7")):
        distillation = SelfDistillation(config, SimpleNamespace(), tokenizer, template)  # type: ignore[arg-type]
        assert distillation._tokens(chat) == tokenizer(expected)["input_ids"]
        assert distillation._tokens("w1 w2") == tokenizer("w1 w2")["input_ids"]


def test_norms_are_summed_in_full_precision() -> None:
    norms, states = BranchNorms(), torch.ones(2, 1, 3, dtype=torch.bfloat16, requires_grad=True)
    norms.watch([states], torch.tensor([True, False]))
    states.sum().backward()
    # Three ones: their norm is the root of 3, which bf16 rounds to 1.734.
    torch.testing.assert_close(norms.take(torch.device("cpu")), torch.tensor([3.0, 3.0]))
    assert norms.take(torch.device("cpu")).tolist() == [0.0, 0.0]


def test_the_loss_has_the_configurations_settings(settings: dict[str, Any], tokenizer: Any) -> None:
    given = {
        "epsilon": 0.11,
        "epsilon_high": 0.12,
        "delta": 2.3,
        "entropy_beta": 0.4,
        "importance_cap": 1.5,
    }
    for high, expected in ((0.12, 0.12), (None, 0.11)):
        config = build_config({**settings, "preset": "srpo", **given, "epsilon_high": high})
        made = SelfDistillation(config, SimpleNamespace(), tokenizer)  # type: ignore[arg-type]
        assert made.loss_config == SrpoConfig(0.11, expected, 2.3, 0.4, 1.5)


def test_norms_and_gains_of_a_step_are_those_of_all_processes(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    config = build_config({**settings, "preset": "srpo"})
    made = SelfDistillation(config, SimpleNamespace(), tokenizer)  # type: ignore[arg-type]
    states = torch.ones(2, 1, 1, requires_grad=True)
    made.norms.watch([states], torch.tensor([False, True]))
    (states.flatten() @ torch.tensor([3.0, 2.0])).backward()
    rows = {
        "teacher_log_probs": torch.full((2, 3), -1.0),
        "failures": torch.tensor([True, False]),
        "controls": torch.tensor([False, False]),
    }
    made.gains.add(rows, torch.full((2, 3), -3.0), torch.ones(2, 3, dtype=torch.bool))
    # Four processes, each of which has multiplied its loss by two.
    told = made.step_metrics(torch.device("cpu"), total=lambda sums: 4 * sums, loss_scale=2)
    assert told == pytest.approx(
        {
            "gradient_norm/policy": 3.0,
            "gradient_norm/distillation": 2.0,
            "distillation/teacher_gain": 2.0,
            "distillation/teacher_gain_success": math.nan,
        },
        nan_ok=True,
    )


def test_weights_that_all_underflow_have_no_deviation() -> None:
    assert _relative_deviation(3, 0.0, 0.0) == 0.0
    assert _relative_deviation(2, 4.0, 10.0) == pytest.approx(0.5)


def test_for_want_of_a_sibling_the_teachers_response_is_shown_if_allowed_and_that_is_told(
    settings: dict[str, Any], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain = SelfDistillation._tokens
    monkeypatch.setattr(
        SelfDistillation,
        "_tokens",
        lambda self, prompt: seen.append(str(prompt)) or plain(self, prompt),
    )
    config = build_config(
        {**settings, "preset": "srpo", "distillation_top_k": 5, "teacher_demonstration": True}
    )
    # The first group has a success to show, the second one none.
    answers = iter([1.0, 0.0, 0.0, 0.0] + [0.0] * 4)
    reward = RubricReward(
        ScriptedClient(lambda place, rollout: next(answers)),
        num_generations=4,
        run_id="run",
        score_teachers=True,
    )
    trainer = build_trainer(config, model, tokenizer, [Example(prompt=p) for p in PROMPTS], reward)
    trainer.model.train()
    rows = [
        {"prompt": prompt, "teacher_responses": ["w60 w59 w58"]}
        for prompt in PROMPTS
        for _ in range(4)
    ]
    batch = trainer._generate_and_score_completions(rows)
    assert batch["routed"].tolist() == [False, True, True, True] + [True] * 4
    assert sum("w60 w59 w58" in text for text in seen) == 4
    assert trainer._metrics["train"]["distillation/teacher_response_share"][-1] == 0.5


NOTHING = (False, None, False, False)
"""Not routed, no demonstration, no failure, no control."""


@pytest.mark.parametrize(
    ("change", "scores", "expected"),
    [
        pytest.param(
            {},
            [(0.6, False, []), (0.2, False, []), (0.9, False, []), (None, False, [])],
            [(False, 2, False, True), (True, 2, True, False), (False, 0, False, False), NOTHING],
            id="as published",
        ),
        pytest.param(
            {"demonstration_threshold": 0.95},
            [(0.6, False, []), (0.2, False, []), (0.9, False, []), (None, False, [])],
            [NOTHING, (False, None, True, False), NOTHING, NOTHING],
            id="a threshold of demonstrations",
        ),
        pytest.param(
            {"demonstration_gap": 0.35},
            [(0.6, False, []), (0.2, False, []), (0.9, False, []), (None, False, [])],
            [NOTHING, (True, 2, True, False), NOTHING, NOTHING],
            id="a gap",
        ),
        pytest.param(
            {},
            [(0.6, False, []), (0.2, False, []), (0.9, True, []), (None, False, [])],
            [(False, 2, False, True), (True, 0, True, False), (False, 0, False, False), NOTHING],
            id="a response that was cut off is shown last",
        ),
        pytest.param(
            {"truncated_fails": True},
            [(0.6, False, []), (0.2, False, []), (0.9, True, []), (None, False, [])],
            [NOTHING, (True, 0, True, False), (True, 0, True, False), NOTHING],
            id="a response that was cut off fails",
        ),
        pytest.param(
            {"rubric_feedback": True, "demonstration_threshold": 0.95},
            [(0.6, False, ["w6"]), (0.2, False, ["w7"]), (0.1, False, []), (None, False, ["w8"])],
            [NOTHING, (True, None, True, False), (False, None, True, False), NOTHING],
            id="feedback alone",
        ),
        pytest.param(
            {"rubric_feedback": False, "demonstration_threshold": 0.95},
            [(0.6, False, ["w6"]), (0.2, False, ["w7"]), (0.1, False, []), (None, False, ["w8"])],
            [NOTHING, (False, None, True, False), (False, None, True, False), NOTHING],
            id="feedback that is not shown",
        ),
        pytest.param(
            {"preset": "sdpo", "rubric_feedback": True, "demonstration_threshold": 0.95},
            [(0.6, False, ["w6"]), (0.2, False, ["w7"]), (0.1, False, []), (None, False, ["w8"])],
            [
                (True, None, False, False),
                (True, None, True, False),
                (False, None, True, False),
                NOTHING,
            ],
            id="feedback alone for sdpo",
        ),
    ],
)
def test_rows_are_routed_by_what_the_configuration_says(
    change: dict[str, Any],
    scores: list[tuple[float | None, bool, list[str]]],
    expected: list[tuple[bool, int | None, bool, bool]],
    settings: dict[str, Any],
    tokenizer: Any,
) -> None:
    config = build_config({**settings, "preset": "srpo", **change})
    texts = ["w1 w2", "w3", "w4 w5", "w6"]
    rows = ScoredRows(
        [Row("w1", text) for text in texts], [RowScore(*score) for score in scores], [[]] * 4
    )
    contexts = SelfDistillation(config, SimpleNamespace(), tokenizer).routes(rows)  # type: ignore[arg-type]
    assert [
        (context.routed, context.demonstration, context.failure, context.control)
        for context in contexts
    ] == [
        (routed, None if shown is None else texts[shown], failure, control)
        for routed, shown, failure, control in expected
    ]
    shown = [score[2] if change.get("rubric_feedback") else [] for score in scores]
    assert [list(context.feedback) for context in contexts] == shown


def test_a_teachers_response_that_is_long_enough_is_shown(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    config = build_config(
        settings | {"preset": "srpo", "teacher_demonstration": True, "min_demonstration_tokens": 2}
    )
    rows = ScoredRows(
        [Row("w1", "w2 w3", teacher_responses=["w60 w59"])] * 4,
        [RowScore(0.0, False)] * 4,
        [[1.0]] * 4,
    )
    contexts = SelfDistillation(config, SimpleNamespace(), tokenizer).routes(rows)  # type: ignore[arg-type]
    assert [context.demonstration for context in contexts] == ["w60 w59"] * 4


def test_a_group_of_which_nothing_can_be_sent_is_taught_nothing(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    config = build_config({**settings, "preset": "srpo", "teacher_demonstration": True})
    rows = ScoredRows(
        [Row("w1", "", problem="an image", teacher_responses=["w60"])] * 4,
        [RowScore(None, False)] * 4,
        [[1.0]] * 4,
    )
    contexts = SelfDistillation(config, SimpleNamespace(), tokenizer).routes(rows)  # type: ignore[arg-type]
    assert not any(context.routed or context.demonstration for context in contexts)


def test_a_rollout_that_cannot_be_sent_hides_no_teacher_response_from_its_group(
    settings: dict[str, Any], tokenizer: Any
) -> None:
    config = build_config({**settings, "preset": "srpo", "teacher_demonstration": True})
    sent = Row("w1", "w2", teacher_responses=["w60"])
    rows = ScoredRows(
        [Row("w1", "", problem="an image"), sent, sent, sent],
        [RowScore(None, False), *[RowScore(0.0, False)] * 3],
        [[1.0]] * 4,
    )
    contexts = SelfDistillation(config, SimpleNamespace(), tokenizer).routes(rows)  # type: ignore[arg-type]
    assert [context.demonstration for context in contexts] == [None, "w60", "w60", "w60"]


@pytest.mark.parametrize(
    ("change", "saved_at"),
    [
        ({"gradient_accumulation_steps": 2, "max_steps": 2}, [1, 2]),
        # Two optimiser steps a batch, on which there are two passes.
        ({"steps_per_generation": 2, "num_iterations": 2, "max_steps": 8}, [4, 8]),
    ],
)
def test_the_self_teacher_follows_once_a_batch_and_is_saved(
    change: dict[str, Any], saved_at: list[int], settings: dict[str, Any]
) -> None:
    config = {
        **settings,
        "preset": "srpo",
        "distillation_top_k": 5,
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        **change,
    }
    followed: list[float] = []
    before = ModelCopy.update
    try:
        ModelCopy.update = lambda self, rate: (followed.append(rate), before(self, rate))[1]  # type: ignore[method-assign]
        output = train(
            build_config(config),
            ScriptedClient(mixed),
            resume=False,
            on_record=lambda record: None,
        )
    finally:
        ModelCopy.update = before  # type: ignore[method-assign]
    assert followed == [0.05, 0.05]
    one, two = (
        torch.load(Path(output) / f"checkpoint-{step}" / SELF_TEACHER_FILE) for step in saved_at
    )
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_has_the_same_teacher(settings: dict[str, Any], tmp_path: Path) -> None:
    config = {
        **settings,
        "preset": "srpo",
        "distillation_top_k": 5,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole = train(
        build_config({**config, "output_dir": str(tmp_path / "whole")}),
        ScriptedClient(mixed),
        resume=False,
        on_record=lambda record: None,
    )

    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record.step == 2:
            raise Stop

    parts = {**config, "output_dir": str(tmp_path / "parts")}
    with pytest.raises(Stop):
        train(build_config(parts), ScriptedClient(mixed), resume=False, on_record=stop)
    resumed = train(
        build_config(parts), ScriptedClient(mixed), resume=True, on_record=lambda record: None
    )
    one, two = (
        torch.load(Path(run) / "checkpoint-3" / SELF_TEACHER_FILE) for run in (whole, resumed)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_is_taught_by_an_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    config = {
        **settings,
        "preset": "srpo",
        "distillation_top_k": 5,
        "lora_rank": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 3,
        "activation_checkpointing": True,
    }
    whole = train(
        build_config({**config, "output_dir": str(tmp_path / "whole")}),
        ScriptedClient(mixed),
        resume=False,
        on_record=lambda record: None,
    )
    saved = [
        load_file(whole / f"checkpoint-{step}" / folder / "adapter_model.safetensors")
        for step in (2, 3)
        for folder in ("", "teacher")
    ]
    assert saved[0].keys() == saved[1].keys()
    assert all(
        any(not torch.equal(one[name], two[name]) for name in one)
        for one, two in ((saved[0], saved[1]), (saved[0], saved[2]), (saved[1], saved[3]))
    )

    parts = {**config, "output_dir": str(tmp_path / "parts")}
    train(
        build_config({**parts, "max_steps": 2}),
        ScriptedClient(mixed),
        resume=False,
        on_record=lambda record: None,
    )
    resumed = train(
        build_config(parts), ScriptedClient(mixed), resume=True, on_record=lambda record: None
    )
    for folder in ("", "teacher"):
        one, two = (
            load_file(path / "checkpoint-3" / folder / "adapter_model.safetensors")
            for path in (whole, resumed)
        )
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("adapter", [None, 2])
@pytest.mark.parametrize("kind", ["frozen", "trust_region"])
def test_a_resumed_run_with_any_self_teacher_is_the_same_run(
    kind: str, adapter: int | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = {
        **settings,
        "preset": "srpo",
        "distillation_top_k": 5,
        "self_teacher": kind,
        "trust_region_coefficient": 0.5,
        "teacher_rate_schedule": "linear",
        "lora_rank": adapter,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 3,
    }

    class Killed(Exception):
        pass

    def kill(record: Any) -> None:
        if record.step == 2:
            raise Killed

    def run(name: str, resume: bool, on_record: Callable[[Any], None]) -> Path:
        made = build_config({**config, "output_dir": str(tmp_path / name)})
        return train(made, ScriptedClient(mixed), resume=resume, on_record=on_record)

    whole = run("whole", False, lambda record: None)
    with pytest.raises(Killed):
        run("parts", False, kill)
    resumed = run("parts", True, lambda record: None)
    names = ["adapter_model.safetensors", "teacher/adapter_model.safetensors"]
    for name in names if adapter else ["model.safetensors"]:
        one, two = (load_file(path / "checkpoint-3" / name) for path in (whole, resumed))
        assert all(torch.equal(one[key], two[key]) for key in one)
    if adapter is None:
        # The initial weights, at the first step as at the last.
        first, last = (torch.load(whole / f"checkpoint-{n}" / SELF_TEACHER_FILE) for n in (1, 3))
        assert all(torch.equal(first[key], last[key]) for key in first)


def test_the_coefficient_of_a_trust_region_decides_the_loss(make_srpo_trainer: Maker) -> None:
    trainer = make_srpo_trainer(self_teacher="trust_region", entropy_beta=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    losses = []
    for coefficient in (0.0, 1.0):
        trainer.args.trust_region_coefficient = coefficient
        torch.manual_seed(1)  # the same rollouts
        losses.append(trainer._compute_loss(trainer.model, generate(trainer)).item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_short_response_is_no_demonstration(settings: dict[str, Any], tokenizer: Any) -> None:
    config = build_config(
        {
            **settings,
            "preset": "srpo",
            "teacher_demonstration": True,
            "min_demonstration_tokens": 3,
        }
    )
    texts = ["w1 w2", "<think>w1 w2 w3</think> w4", "w1 w2 w3", "w5"]
    rows = ScoredRows(
        [Row("w1", text, teacher_responses=["w60 w59"]) for text in texts],
        [RowScore(score, False) for score in (1.0, 1.0, 0.9, 0.0)],
        [[1.0]] * 4,
    )
    teach = SelfDistillation(config, SimpleNamespace(), tokenizer)  # type: ignore[arg-type]
    contexts = teach.routes(rows)
    assert [context.demonstration for context in contexts] == [
        "w1 w2 w3",
        "w1 w2 w3",
        None,
        texts[2],
    ]


@pytest.mark.parametrize(
    ("fsdp_version", "zero_stage", "saves", "advice"),
    [
        (1, None, True, "method srpo has a self-teacher.*set fsdp_version: 2"),
        (None, 3, False, "would save no model: set zero3_save_16bit_model: true"),
        (None, 0, False, "zero_stage 0 shards nothing"),
    ],
)
def test_shards_that_cannot_be_trained_or_saved_are_refused(
    fsdp_version: int | None, zero_stage: int | None, saves: bool, advice: str
) -> None:
    def trainer(fsdp_version: int | None, zero_stage: int | None, saves: bool = True) -> Any:
        zero = {"stage3_gather_16bit_weights_on_model_save": saves}
        state = SimpleNamespace(
            deepspeed_plugin=SimpleNamespace(
                zero_stage=zero_stage, deepspeed_config={"zero_optimization": zero}
            ),
            fsdp_plugin=SimpleNamespace(fsdp_version=fsdp_version),
        )
        return SimpleNamespace(
            is_fsdp_enabled=fsdp_version is not None,
            is_deepspeed_enabled=zero_stage is not None,
            args=SimpleNamespace(method="srpo", fsdp_plugin_args=None),
            accelerator=SimpleNamespace(state=state),
        )

    with pytest.raises(ConfigError, match=advice):
        check_shards(trainer(fsdp_version, zero_stage, saves))
    check_shards(trainer(2, None))
    check_shards(trainer(None, 2))
    check_shards(trainer(None, 3))


def test_fsdp_that_accelerate_would_leave_out_is_refused(
    make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="accelerate shards no weights on a CPU"):
        make_srpo_trainer()


@pytest.mark.parametrize("kind", ["ema", "trust_region"])
def test_a_micro_batch_without_routed_rows_needs_no_self_teacher(
    kind: str, make_srpo_trainer: Maker
) -> None:
    """A trust region's states are those of two models side by side, the student's of one."""
    made = make_srpo_trainer(lambda place, _: 0.6 + place / 10, self_teacher=kind, max_steps=1)
    made.train()
    assert made.state.global_step == 1
