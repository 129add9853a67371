"""Chunked distributions against the plain ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from markscheme_train import losses
from markscheme_train.distillation import divergences, entropies, token_log_probs

POSITIONS, WIDTH, VOCABULARY = 11, 5, 17


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, nn.Linear, nn.Linear]:
    torch.manual_seed(1)
    heads = [nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64) for _ in range(2)]
    states = [torch.randn(POSITIONS, WIDTH, dtype=torch.float64) for _ in range(2)]
    return states[0].requires_grad_(), states[1], heads[0], heads[1]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_entropies(chunk: int, parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear]) -> None:
    _, states, _, head = parts
    plain = losses.entropy((head(states) / 0.7).log_softmax(-1))
    torch.testing.assert_close(
        entropies(states, head, temperature=0.7, chunk=chunk), plain.detach()
    )


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("top_k", [None, 3, VOCABULARY])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_divergences_and_their_gradients(
    chunk: int, top_k: int | None, alpha: float, parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear]
) -> None:
    own, other, own_head, other_head = parts
    student, teacher = (
        (own_head(own) / 1.3).log_softmax(-1),
        (other_head(other) / 1.3).log_softmax(-1),
    )
    if top_k == 3:
        top = student.topk(3).indices
        student, teacher = losses.topk_with_tail(student, top), losses.topk_with_tail(teacher, top)
    plain = losses.generalized_jsd(student, teacher, alpha=alpha)
    weights = torch.rand(POSITIONS, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weights).sum(), [own, own_head.weight])
    found = divergences(
        own, other, own_head, other_head, alpha=alpha, top_k=top_k, temperature=1.3, chunk=chunk
    )
    torch.testing.assert_close(found, plain)
    for one, two in zip(
        torch.autograd.grad((found * weights).sum(), [own, own_head.weight]), expected, strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("temperature", [1.3, 2.0])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_token_log_probs_and_their_gradients(
    chunk: int, temperature: float, parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear]
) -> None:
    own, _, head, _ = parts
    tokens, weights = torch.arange(POSITIONS), torch.rand(POSITIONS, dtype=torch.float64)
    every = (head(own) / temperature).log_softmax(-1)
    plain = every.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    expected = torch.autograd.grad((plain * weights).sum(), [own, head.weight])
    found, spread = token_log_probs(own, tokens, head, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(spread, losses.entropy(every).detach())
    assert not spread.requires_grad
    for one, two in zip(
        torch.autograd.grad((found * weights).sum(), [own, head.weight]), expected, strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("top_k", [3, None])
def test_no_more_than_a_chunk_of_logits_is_ever_there(
    top_k: int | None, parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear]
) -> None:
    """Neither at once nor for the backward pass: the largest saved tensor is a state or a head."""
    own, other, own_head, other_head = parts
    kept: list[int] = []
    seen: list[int] = []

    def watched(head: nn.Linear) -> Any:
        return lambda states: seen.append(len(states)) or head(states)

    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        found = divergences(
            own,
            other,
            watched(own_head),
            watched(other_head),
            alpha=0.5,
            top_k=top_k,
            temperature=1.0,
            chunk=4,
        )
        logps, _ = token_log_probs(
            own, torch.arange(POSITIONS), watched(own_head), temperature=1.0, chunk=4
        )
    assert max(seen) == 4
    assert max(kept, default=0) <= VOCABULARY * WIDTH
    assert not any(size % VOCABULARY == 0 and size != VOCABULARY * WIDTH for size in kept)
    (found.sum() + logps.sum()).backward()
    assert max(seen) == 4
    # There are three chunks. For each loss the student's head runs twice, forward and in the
    # backward pass; the teacher's head runs once if the values needed from it are small.
    assert len(seen) == 3 * (2 + 2 + (1 if top_k else 2))


def test_no_positions_are_no_divergence_and_keep_the_graph(
    parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear],
) -> None:
    own, other, own_head, other_head = parts
    nothing = divergences(
        own[:0], other[:0], own_head, other_head, alpha=0.5, top_k=3, temperature=1.0
    )
    assert nothing.shape == (0,)
    nothing.sum().backward()
    assert own.grad is not None
    assert not own.grad.any()
    assert entropies(other[:0], other_head).shape == (0,)
    for empty in token_log_probs(own[:0], torch.arange(0), own_head, temperature=1.0):
        assert empty.shape == (0,)


def test_states_that_do_not_belong_together_are_refused(
    parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear],
) -> None:
    own, other, own_head, other_head = parts
    with pytest.raises(ValueError, match="zip"):
        token_log_probs(own, torch.arange(4), own_head, temperature=1.0, chunk=4)
    with pytest.raises(ValueError, match="zip"):
        divergences(
            own, other[:4], own_head, other_head, alpha=0.5, top_k=3, temperature=1.0, chunk=4
        )


@pytest.mark.parametrize("top_k", [3, None])
@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0])
def test_half_precision_states_are_reduced_in_full(
    temperature: float, top_k: int | None, parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear]
) -> None:
    low = [x.detach().bfloat16() for x in parts[:2]]
    heads = [head.bfloat16() for head in parts[2:]]
    tokens = torch.arange(POSITIONS)

    def losses_of(*logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all losses of logits that are there already."""
        both = [(lambda found: lambda _: found)(one) for one in logits]
        found = divergences(*low, *both, alpha=0.5, top_k=top_k, temperature=temperature)
        return (found, *token_log_probs(low[0], tokens, both[0], temperature=temperature))

    logits = [head(states).detach() for head, states in zip(heads, low, strict=True)]
    for one, two in zip(
        losses_of(*logits), losses_of(*(one.float() for one in logits)), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_as_many_tokens_as_there_are_have_no_bucket_of_others(
    parts: tuple[Tensor, Tensor, nn.Linear, nn.Linear],
) -> None:
    all_of_them, whole = (
        divergences(*parts, alpha=0.5, top_k=top_k, temperature=1.0) for top_k in (VOCABULARY, None)
    )
    assert torch.equal(all_of_them, whole)


def test_chunks_add_up_the_head_s_gradient_in_half_precision_without_a_bias() -> None:
    """Autocast sums them as it casts the head, in bf16: 64 add little to what one rounds away."""
    torch.manual_seed(1)
    positions, width, tokens = 2048, 32, 256
    states = torch.randn(positions, width)
    others = states + 0.3 * torch.randn(positions, width)
    own, other = (nn.Linear(width, tokens, bias=False) for _ in range(2))
    nn.init.normal_(own.weight, std=0.3)
    with torch.no_grad():
        other.weight.copy_(own.weight + 0.05 * torch.randn_like(own.weight))

    def gradient(chunk: int, *, half: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = divergences(
                states, others, own, other, alpha=0.5, top_k=20, temperature=1.0, chunk=chunk
            )
        return torch.autograd.grad(found.mean(), own.weight)[0].double()

    exact = gradient(positions, half=False)
    one, many = (gradient(positions // count, half=True) for count in (1, 64))
    errors = [float((found - exact).norm() / exact.norm()) for found in (one, many)]
    assert errors[1] < 1.1 * errors[0] < 0.06
    along = float((many * exact).sum() / exact.square().sum())
    assert along == pytest.approx(1.0, abs=3e-3)
