"""The self-teacher: it starts as the student, follows it, and stays apart from it."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as distributed
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from markscheme_train.hidden_states import output_head
from markscheme_train.self_teacher import (
    AdapterCopy,
    ModelCopy,
    ShardedCopy,
    TrustRegion,
    scheduled,
)

# PEFT 0.21 still reads a name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

IDS = torch.tensor([[0, 0, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


class FlatShards:
    """One process has the only part of each weight, flat as under ZeRO 3."""

    def held(self, weight: Tensor) -> Tensor:
        return weight.detach().view(-1)

    def stepped(self, weight: Tensor) -> Tensor:
        return weight.detach().view(-1)

    def distributed(self, weight: Tensor, part: Tensor) -> Tensor:
        assert part.shape == (weight.numel(),)
        return part

    def whole(self, weight: Tensor, tensor: Tensor) -> Tensor:
        return tensor.view(weight.shape)

    def release(self) -> None:
        return

    def put(self, held: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list(held), list(values))


@pytest.fixture
def alone() -> Iterator[None]:
    """One process that may ask all processes."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def logits(teacher: ModelCopy | AdapterCopy | ShardedCopy | TrustRegion, keep: int = 2) -> Tensor:
    return teacher.head(teacher.states(IDS, MASK, keep))


def change(model: Any, by: float = 0.5) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by)


@pytest.fixture
def adapted(model: Any) -> Any:
    made = get_peft_model(
        model,
        LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False
        ),
    )
    return made.train()


def test_it_starts_as_the_student(model: Any) -> None:
    plain = model.eval()(input_ids=IDS, attention_mask=MASK).logits[:, -3:-1]
    torch.testing.assert_close(logits(ModelCopy(model)), plain)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("LlamaForCausalLM", {}),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 2.0, "head_dim": 8}),
        ("GraniteForCausalLM", {"logits_scaling": 3.0}),
        ("CohereForCausalLM", {"logit_scale": 0.5}),
        ("HyperCLOVAXForCausalLM", {"logits_scaling": 3.0}),
        ("NanoChatForCausalLM", {"final_logit_softcapping": 2.0}),
        (
            "FalconH1ForCausalLM",
            {
                "lm_head_multiplier": 0.5,
                "head_dim": 8,
                "mamba_d_ssm": 32,
                "mamba_n_heads": 4,
                "mamba_d_head": 8,
                "mamba_d_state": 8,
                "mamba_chunk_size": 8,
            },
        ),
    ],
)
def test_a_head_does_to_logits_what_its_model_does(kind: str, more: dict[str, Any]) -> None:
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    own = made(
        made.config_class(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
            **more,
        )
    ).eval()
    with torch.no_grad():
        own.get_output_embeddings().weight.normal_()
        states = own.base_model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        expected = own(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(output_head(own)(states), expected)
    torch.testing.assert_close(logits(ModelCopy(own)), expected[:, -3:-1])


def test_it_follows_by_a_moving_average_and_no_further(model: Any) -> None:
    teacher = ModelCopy(model)
    before = {name: value.clone() for name, value in teacher.weights().items()}
    change(model)
    assert all(torch.equal(value, before[name]) for name, value in teacher.weights().items())
    teacher.update(0.05)
    for name, own in model.named_parameters():
        torch.testing.assert_close(
            teacher.weights()[name], 0.95 * before[name] + 0.05 * own.detach()
        )
    teacher.update(0.0)
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_it_is_restored_exactly(model: Any) -> None:
    teacher = ModelCopy(model)
    change(model)
    teacher.update(0.3)
    saved = {name: value.clone() for name, value in teacher.weights().items()}
    other = ModelCopy(model)
    other.restore(saved)
    assert torch.equal(logits(other), logits(teacher))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head_is_trained", [False, True])
def test_second_shards_do_what_a_copy_does(
    head_is_trained: bool, bias: bool, model: Any, alone: None
) -> None:
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 64))
    model.lm_head.requires_grad_(head_is_trained)
    copy, shards = ModelCopy(model), ShardedCopy(model, FlatShards())
    shards.start()
    change(model)
    student = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for rate in (0.3, 0.1):
        assert torch.equal(logits(shards), logits(copy))
        for teacher in (copy, shards):
            teacher.update(rate)
    assert torch.equal(logits(shards), logits(copy))
    own = shards.weights()
    assert ("lm_head.weight" in own) == head_is_trained
    assert all(torch.equal(part, copy.weights()[name].view(-1)) for name, part in own.items())
    assert all(torch.equal(weight, student[name]) for name, weight in model.named_parameters())


def test_second_shards_start_once_and_are_restored_exactly(model: Any, alone: None) -> None:
    first, other = (ShardedCopy(model, FlatShards()) for _ in range(2))
    first.start()
    change(model)
    other.start()
    before = logits(first)
    first.start()
    assert torch.equal(logits(first), before)
    assert not torch.equal(logits(other), before)
    other.restore({name: part.clone() for name, part in first.weights().items()})
    assert torch.equal(logits(other), before)


def test_the_head_of_second_shards_has_the_precision_that_is_computed_with(
    model: Any, alone: None
) -> None:
    shards = ShardedCopy(model, FlatShards(), torch.bfloat16)
    shards.start()
    states = torch.randn(3, 16)
    expected = states.bfloat16() @ model.lm_head.weight.bfloat16().T
    assert torch.equal(shards.head(states), expected)
    assert {part.dtype for part in shards.weights().values()} == {torch.float32}


def test_second_shards_do_not_follow_a_broken_student(model: Any, alone: None) -> None:
    shards = ShardedCopy(model, FlatShards())
    shards.start()
    change(model, by=float("nan"))
    with pytest.raises(FloatingPointError):
        shards.update(0.05)


def test_a_student_in_half_precision_is_followed_in_full(model: Any) -> None:
    teacher = ModelCopy(model.bfloat16())
    before = {name: value.clone() for name, value in teacher.weights().items()}
    change(model)
    teacher.update(0.003)
    for name, own in model.named_parameters():
        expected = before[name].lerp(own.detach().float(), 0.003)
        assert torch.equal(teacher.weights()[name], expected), name


def test_a_model_whose_forward_was_replaced_is_refused(model: Any) -> None:
    model.forward = model.forward
    with pytest.raises(ValueError, match="before"):
        ModelCopy(model)


def test_it_does_not_follow_a_broken_student(model: Any) -> None:
    teacher = ModelCopy(model)
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(FloatingPointError, match="^the student's weights are no numbers"):
        teacher.update(0.05)


def test_an_adapter_starts_as_the_students_and_follows_it(adapted: Any) -> None:
    student = adapted.eval()(input_ids=IDS, attention_mask=MASK).logits[:, -3:-1].detach()
    adapted.train()
    teacher = AdapterCopy(adapted)
    torch.testing.assert_close(logits(teacher), student)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".default." in name for name in trainable)
    assert adapted.training
    assert adapted.active_adapter == "default"
    change(adapted)
    torch.testing.assert_close(logits(teacher), student)
    teacher.update(1.0)
    moved = adapted.eval()(input_ids=IDS, attention_mask=MASK).logits[:, -3:-1].detach()
    torch.testing.assert_close(logits(teacher), moved)
    assert not torch.allclose(moved, student)


def plain_logits(model: Any) -> Tensor:
    training = model.training
    with torch.no_grad():
        made: Tensor = model.eval()(input_ids=IDS, attention_mask=MASK).logits[:, -3:-1]
    model.train(training)
    return made


@pytest.mark.parametrize("kind", ["whole weights", "an adapter"])
def test_a_trust_region_mixes_the_initial_and_the_current_student_in_log_space(
    kind: str, request: pytest.FixtureRequest
) -> None:
    student = request.getfixturevalue("model" if kind == "whole weights" else "adapted")
    training, initial = student.training, plain_logits(student).log_softmax(-1)
    copied = ModelCopy(student) if kind == "whole weights" else AdapterCopy(student)
    share = 0.25
    teacher = TrustRegion(copied, student, lambda: share)
    torch.testing.assert_close(logits(teacher).log_softmax(-1), initial)
    change(student, by=0.1)
    current = plain_logits(student).log_softmax(-1)
    # The normalised weighted geometric mean of the two distributions.
    mixed = (initial.exp() ** 0.75) * (current.exp() ** 0.25)
    expected = mixed / mixed.sum(-1, keepdim=True)
    torch.testing.assert_close(logits(teacher).softmax(-1), expected)
    teacher.update(1.0)
    torch.testing.assert_close(logits(teacher).softmax(-1), expected)
    share = 0.0
    torch.testing.assert_close(logits(teacher).log_softmax(-1), initial)
    share = 1.0
    torch.testing.assert_close(logits(teacher).log_softmax(-1), current)
    assert student.training == training


def test_a_trust_region_keeps_the_share_with_which_its_states_were_made(model: Any) -> None:
    share = 0.25
    teacher = TrustRegion(ModelCopy(model), model, lambda: share)
    change(model, by=0.1)
    states = teacher.states(IDS, MASK, 2)
    before = teacher.head(states)
    share = 0.75
    torch.testing.assert_close(teacher.head(states), before)


def test_a_trust_region_of_a_model_in_half_precision_mixes_in_full(model: Any) -> None:
    student = model.to(torch.bfloat16)
    teacher = TrustRegion(ModelCopy(student), student, lambda: 0.5)
    assert logits(teacher).dtype == torch.float32


def test_a_trust_region_mixes_in_full_where_the_reference_is_in_half_precision(model: Any) -> None:
    """As where the whole head of a self-teacher in shards is."""
    copied = ModelCopy(model)
    reference: Any = SimpleNamespace(
        states=copied.states, head=lambda states: copied.head(states).bfloat16()
    )
    mixed = logits(TrustRegion(reference, model, lambda: 0.5))
    assert mixed.dtype == torch.float32
    full = logits(TrustRegion(copied, model, lambda: 0.5))
    torch.testing.assert_close(mixed, full, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.4, 0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.4, 0.3, 0.2, 0.1, 0.0]),
        ("cosine", [0.4, 0.341421356, 0.2, 0.058578644, 0.0]),
    ],
)
def test_a_rate_falls_over_the_run_as_scheduled(schedule: Any, expected: list[float]) -> None:
    found = [scheduled(0.4, schedule, step, 4) for step in range(5)]
    assert found == pytest.approx(expected)
    assert scheduled(0.4, schedule, 9, 4) == pytest.approx(expected[-1])
    assert scheduled(0.4, schedule, 1, 1) == pytest.approx(expected[-1])


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"logit_scale": 0.5}, 0.5),
        ({"output_multiplier": 0.5}, 0.5),
        ({"lm_head_multiplier": 0.5}, 0.5),
        ({"logits_scaling": 4.0}, 0.25),
        ({"logits_scaling": 4.0, "model_type": "hyperclovax"}, 4.0),
        ({"logit_scale": 2.0}, 2.0),
        ({"logit_scale": 2.0, "logits_scaling": 4.0}, 0.5),
    ],
)
def test_a_factor_of_logits_goes_by_many_names(settings: dict[str, Any], factor: float) -> None:
    """Also for families whose models are too large for a test."""
    text = SimpleNamespace(**{"model_type": "any", **settings})
    model = SimpleNamespace(
        get_output_embeddings=torch.nn.Identity,
        config=SimpleNamespace(get_text_config=lambda: text),
    )
    states = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(output_head(model)(states), factor * states)


def test_a_restored_trust_region_has_its_reference_back(model: Any) -> None:
    teacher = TrustRegion(ModelCopy(model), model, lambda: 0.25)
    saved = {name: value.clone() for name, value in teacher.weights().items()}
    before = logits(teacher)
    with torch.no_grad():
        for value in teacher.weights().values():
            value.zero_()
    teacher.restore(saved)
    torch.testing.assert_close(logits(teacher), before)
