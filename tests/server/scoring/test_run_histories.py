"""The cost of a run that changed long ago is cached for longer."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from markscheme_server.scoring import run_histories
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.store.engine.ids import now
from markscheme_server.store.runs import RunCost, StoredRun


class Costs:
    """A store that counts how often the cost of each run was read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    async def costs(self, _team: str, run_ids: Sequence[str]) -> dict[str, RunCost]:
        self.read += run_ids
        return {run_id: RunCost(cost_usd=len(self.read)) for run_id in run_ids}


def a_run(name: str, idle: timedelta) -> StoredRun:
    at = now() - idle
    return StoredRun(name, "red", "running", None, None, {}, at, at, at)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    at = [1000.0]
    monkeypatch.setattr(run_histories, "monotonic", lambda: at[0])
    return at


async def test_the_cost_of_a_run_that_changed_long_ago_is_cached_for_longer(
    clock: list[float],
) -> None:
    store = Costs()
    histories = RunHistories(store)  # type: ignore[arg-type]
    runs = [a_run("now", timedelta()), a_run("ended", timedelta(days=1))]
    assert set(await histories.costs(runs)) == {"now", "ended"}
    for waited_s, read in ((0.0, []), (1.9, []), (2.1, ["now"]), (60.1, ["now", "ended"])):
        store.read.clear()
        clock[0] = 1000.0 + waited_s
        costs = await histories.costs(runs)
        assert set(costs) == {"now", "ended"}
        assert store.read == read


async def test_a_full_cache_loses_no_cost_of_the_answer(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_histories, "MAX_COSTS", 1)
    histories = RunHistories(Costs())  # type: ignore[arg-type]
    one, two = a_run("one", timedelta()), a_run("two", timedelta())
    await histories.costs([one])
    assert set(await histories.costs([one, two])) == {"one", "two"}
