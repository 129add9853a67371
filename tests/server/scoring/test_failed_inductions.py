"""Failed inductions are not paid for again for a while, and only so many are remembered."""

import pytest

from fakes.clock import Clock
from markscheme.vocabulary import UnscoredReason
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.scoring import failed_inductions
from markscheme_server.scoring.failed_inductions import REMEMBER_S, FailedInductions

REFUSED = JudgeFailure(UnscoredReason.REFUSED, "the judge refused")


def test_a_failure_is_asked_again_after_ten_minutes() -> None:
    clock = Clock()
    failed = FailedInductions(clock)
    failed.remember(REFUSED, "key")
    clock.advance(REMEMBER_S - 1)
    found = failed.find("key")
    assert found is not None
    assert found.reason == UnscoredReason.REFUSED
    assert "this failed 599 s ago" in str(found)
    clock.advance(1)
    assert failed.find("key") is None
    assert failed.find("key") is None


def test_of_too_many_failures_the_oldest_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_inductions, "MAX_FAILURES", 2)
    failed = FailedInductions(Clock())
    for key in ("first", "second", "first", "third"):
        failed.remember(REFUSED, key)
    assert [key for key in ("first", "second", "third") if failed.find(key)] == ["first", "third"]
