"""The guards around DeepSpeed's step, on an engine that notes what it is asked for."""

from types import SimpleNamespace

import pytest
import torch

from markscheme_train.errors import Diverged
from markscheme_train.zero import GuardedEngine


class Engine:
    """Notes its calls."""

    def __init__(self, *, overflow: bool = False, fp16: bool = False) -> None:
        self.calls: list[str] = []
        self._fp16 = fp16
        self._global_grad_norm = 3.0
        self.lr_scheduler = SimpleNamespace(step=lambda: self.calls.append("learning rate"))
        self.optimizer = SimpleNamespace(has_overflow=lambda: overflow)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.calls.append(f"boundary {is_boundary}")

    def backward(self, loss: torch.Tensor) -> None:
        self.calls.append("backward")

    def step(self) -> None:
        self.calls.append("step")

    def fp16_enabled(self) -> bool:
        return self._fp16


def backward(engine: Engine, *, teaches: bool = True, last: bool = True) -> list[str]:
    guarded = GuardedEngine(engine, teaches=lambda: teaches, step=lambda: 7)
    guarded.backward(torch.zeros(()), sync_gradients=last)
    return engine.calls


def test_a_micro_batch_is_learnt_from_and_the_last_one_steps() -> None:
    assert backward(Engine(), last=False) == ["boundary False", "backward"]
    assert backward(Engine()) == ["boundary True", "backward", "step"]


def test_a_step_with_nothing_to_learn_from_moves_the_learning_rate_alone() -> None:
    engine = Engine()
    assert backward(engine, teaches=False, last=False) == ["boundary False"]
    assert backward(Engine(), teaches=False) == ["boundary True", "learning rate"]


def test_the_gradient_of_a_step_that_was_left_out_is_none() -> None:
    engine = Engine()
    backward(engine, teaches=False)
    assert engine._global_grad_norm == 0.0


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step() -> None:
    engine = Engine(overflow=True)
    with pytest.raises(Diverged, match="gradients of step 7 are no numbers"):
        backward(engine)
    assert "step" not in engine.calls


def test_in_fp16_deepspeed_itself_skips_a_step_that_overflowed() -> None:
    assert backward(Engine(overflow=True, fp16=True))[-1] == "step"
