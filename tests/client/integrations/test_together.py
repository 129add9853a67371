"""Several rewards as one in `markscheme.integrations.trl`, without a trainer."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from markscheme import Client
from markscheme.errors import ConnectionFailed
from markscheme.integrations import pending
from markscheme.integrations.trl import AsyncRubricReward, RubricReward, Together
from markscheme.schema import ScoreBatch

ROWS: dict[str, Any] = {"prompts": ["p"] * 3, "completions": ["a", "b", "c"]}


class Rubric(RubricReward):
    def __init__(self, rewards: list[float | None]) -> None:
        super().__init__(Client("http://127.0.0.1:9"), num_generations=3, run_id="run")
        self.rewards = rewards

    def __call__(self, **_columns: Any) -> list[float | None]:
        return self.rewards


def sometimes(**_columns: Any) -> list[float | None]:
    return [None, 1.0, None]


async def late(**_columns: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [1.0, 1.0, 1.0]


def test_only_the_rubrics_null_makes_the_sum_null() -> None:
    together = Together([Rubric([0.5, None, 0.25]), sometimes], weights=[2, 1])
    assert together(**ROWS) == [1.0, None, 0.5]


def test_another_functions_nan_adds_nothing_to_its_row_or_its_mean() -> None:
    def broken(**_columns: Any) -> list[float]:
        return [float("nan"), 1.0, 3.0]

    logged: dict[str, float] = {}
    together = Together([Rubric([0.5, None, 0.25]), broken])
    assert together(**ROWS, log_metric=logged.__setitem__) == [0.5, None, 3.25]
    assert logged["together/broken"] == 2.0


def test_with_an_async_function_it_is_async() -> None:
    together = Together([late, Rubric([0.5, None, 0.25]), sometimes])
    assert asyncio.run(together(**ROWS)) == [1.5, None, 1.25]


def test_means_are_logged_by_function_without_nulls() -> None:
    logged: dict[str, float] = {}
    Together([Rubric([0.5, None, 0.25]), sometimes])(**ROWS, log_metric=logged.__setitem__)
    assert logged == {"together/rubric": 0.375, "together/sometimes": 1.0}


def test_it_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="a RubricReward among"):
        Together([sometimes])
    with pytest.raises(ValueError, match="2 functions need as many weights"):
        Together([Rubric([]), sometimes], weights=[1])
    reward = AsyncRubricReward(Client("http://127.0.0.1:9"), num_generations=1, run_id="run")
    with pytest.raises(TypeError, match="Together"):
        reward.where_scored(sometimes)


def test_it_can_be_pickled() -> None:
    together = Together([Rubric([0.5, None, 0.25]), late], weights=[1, 2])
    again = pickle.loads(pickle.dumps(together))
    assert asyncio.run(again(**ROWS)) == [2.5, None, 2.25]


def test_a_wait_for_an_absent_service_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "FIRST_RETRY_WAIT_S", 0.0)

    class Returning:
        errors = iter([ConnectionFailed("nobody there"), ZeroDivisionError("it is back")])

        def score(self, *_: Any, **_options: Any) -> ScoreBatch:
            raise next(self.errors)

    reward = RubricReward(Returning(), num_generations=1, run_id="run")
    state = SimpleNamespace(global_step=0)
    with pytest.raises(ZeroDivisionError):
        reward(prompts=["p"], completions=["a"], trainer_state=state)
    assert "nobody there; it is asked again in 0 s" in caplog.text
