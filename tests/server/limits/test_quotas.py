"""Test that a call waits until both limits of its judge have room for it."""

from types import SimpleNamespace
from typing import Any

import pytest

from markscheme_server.limits import quotas
from markscheme_server.limits.quotas import MAX_WAIT_S, MIN_WAIT_S, Quotas


class Windows:
    """Refuse as many hits as there are waits, and say how long each takes."""

    def __init__(self, *waits_s: float) -> None:
        self.hits: list[tuple[Any, ...]] = []
        self._waits_s = list(waits_s)

    async def hit(self, limit: int, cost: int, *names: str) -> bool:
        self.hits.append((limit, cost, *names))
        return not self._waits_s

    async def limit_state(self, limit: int, cost: int, *names: str) -> Any:
        return SimpleNamespace(retry_after_s=self._waits_s.pop(0))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that quotas waited, which take no time."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(quotas, "asyncio", SimpleNamespace(sleep=sleep))
    return waits


async def acquire(windows: Windows, **limits: int | None) -> None:
    await Quotas("judge", windows, **limits).acquire(40, 0, "red")  # type: ignore[arg-type]


async def test_without_limits_nothing_is_counted() -> None:
    await acquire(windows := Windows(), rpm=None, tpm=None)
    assert windows.hits == []


@pytest.mark.parametrize(
    ("limits", "hits"),
    [
        ({"rpm": 60, "tpm": None}, [(60, 1, "judge", "calls")]),
        ({"rpm": None, "tpm": 900}, [(900, 40, "judge", "tokens")]),
        ({"rpm": 60, "tpm": 900}, [(60, 1, "judge", "calls"), (900, 40, "judge", "tokens")]),
    ],
)
async def test_a_call_counts_once_and_its_tokens_each(
    limits: dict[str, int | None], hits: list[tuple[Any, ...]]
) -> None:
    await acquire(windows := Windows(), **limits)
    assert windows.hits == hits


async def test_a_call_waits_as_long_as_the_window_says_within_bounds(slept: list[float]) -> None:
    await acquire(windows := Windows(30.0, 0.4, 0.0), rpm=None, tpm=900)
    assert slept == [MAX_WAIT_S, 0.4, MIN_WAIT_S]
    assert windows.hits == [(900, 40, "judge", "tokens")] * 4
