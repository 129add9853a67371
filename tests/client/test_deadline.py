"""Test deadlines, keys and retries of both clients.

The scripted service answers, refuses or stays silent.
"""

import time
from collections.abc import Iterator

import pytest

from client.scripted import (
    ALL,
    BOTH_INDUCE,
    BOTH_SCORE,
    GROUP,
    HEARTBEAT,
    ONE,
    RUBRIC,
    SUMMARY,
    Call,
    Reply,
    ScriptedService,
    refusal,
)
from markscheme import AsyncClient, Client
from markscheme.deadline import Deadline
from markscheme.errors import Conflict, ConnectionFailed, DeadlineExceeded, ServiceUnavailable

LATE_S = 20
"""Longer than any machine needs to notice a deadline, shorter than what is waited for in vain."""


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


@ALL
def test_without_a_deadline_none_is_stated(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])]
    call(service.url)
    assert service.header("x-deadline-ms") == [None]
    assert "judge" not in service.asked[0][2]


@ALL
def test_a_date_that_is_none_is_not_waited_for(call: Call, service: ScriptedService) -> None:
    good = Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])
    year = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    service.replies = [refusal(503, "overloaded", year), good]
    call(service.url)
    assert len(service.asked) == 2


@ALL
def test_a_judge_is_named_in_the_body(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])]
    call(service.url, judge="strong")
    assert service.asked[0][2]["judge"] == "strong"


@ALL
def test_each_attempt_states_what_is_left(call: Call, service: ScriptedService) -> None:
    good = Reply(lines=[RUBRIC] if "induce" in call.__name__ else [GROUP, SUMMARY])
    service.replies = [refusal(503, "overloaded", "1"), Reply(None, wait_s=0.3), good]
    call(service.url, deadline_s=20)
    stated = [int(left or 0) for left in service.header("x-deadline-ms")]
    gone = [1000 * (at - service.asked[0][0]) for at, _, _ in service.asked]
    assert len(stated) == 3
    assert gone[1] > 900
    # A little less than what is left, so that the answer has time to arrive.
    assert all(10_000 < left + past <= 20_000 for left, past in zip(stated, gone, strict=True))
    assert stated[0] > stated[1] > stated[2]


@ALL
def test_silence_ends_at_the_deadline_and_is_not_retried(
    call: Call, service: ScriptedService
) -> None:
    service.replies = [Reply(wait_s=60)]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within the 0\.6 s") as caught:
        call(service.url, deadline_s=0.6)
    assert 0.4 < time.monotonic() - started < LATE_S
    assert len(service.asked) == 1
    assert isinstance(caught.value, (ConnectionFailed, TimeoutError))


@ALL
def test_a_pause_past_the_deadline_is_not_begun(call: Call, service: ScriptedService) -> None:
    service.replies = [refusal(503, "overloaded", "60")]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"could not answer within the 4 s .*it said: "):
        call(service.url, deadline_s=4)
    assert time.monotonic() - started < LATE_S
    assert len(service.asked) == 1


@BOTH_SCORE
def test_heartbeats_do_not_carry_a_call_past_its_deadline(
    call: Call, service: ScriptedService
) -> None:
    service.replies = [Reply(lines=[HEARTBEAT] * 600, every_s=0.1)]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call(service.url, deadline_s=0.7)
    assert 0.5 < time.monotonic() - started < LATE_S


@BOTH_SCORE
def test_an_answer_given_at_the_stated_time_still_arrives(
    call: Call, service: ScriptedService
) -> None:
    service.replies = [Reply(lines=[HEARTBEAT, GROUP, SUMMARY], every_s=1.0)]
    assert call(service.url, deadline_s=4).counts.unscored == 1


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_is_a_time_to_come(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        Deadline.after(deadline_s)


@BOTH_INDUCE
def test_no_service_is_no_connection_while_there_is_time(call: Call) -> None:
    with pytest.raises(ConnectionFailed, match="markscheme serve") as caught:
        call("http://127.0.0.1:1", deadline_s=30)
    assert not isinstance(caught.value, DeadlineExceeded)


@BOTH_INDUCE
def test_all_attempts_of_a_creating_call_carry_one_key(
    call: Call, service: ScriptedService
) -> None:
    service.replies = [Reply(None), refusal(409, "idempotency_key_running", "1"), Reply()]
    assert call(service.url).id == "rub_1"
    keys = service.header("idempotency-key")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    call(service.url)
    assert service.header("idempotency-key")[-1] not in (None, keys[0])
    assert 0.9 < service.asked[2][0] - service.asked[1][0] < LATE_S


@BOTH_INDUCE
def test_a_call_that_keeps_running_is_a_conflict(call: Call, service: ScriptedService) -> None:
    service.replies = [refusal(409, "idempotency_key_running", "1")]
    with pytest.raises(Conflict) as caught:
        call(service.url)
    assert caught.value.code == "idempotency_key_running"
    assert len(service.asked) == 3


def test_create_carries_a_key_and_score_none(service: ScriptedService) -> None:
    service.replies = [Reply(), refusal(409, "conflict", "1")]
    with Client(service.url) as client:
        client.create_rubric("p", [{"text": "t", "points": 1}])
        with pytest.raises(Conflict):
            client.score([ONE])
    assert [key is None for key in service.header("idempotency-key")] == [False, True]


@BOTH_INDUCE
def test_an_overloaded_service_is_asked_three_times(call: Call, service: ScriptedService) -> None:
    service.replies = [refusal(503, "overloaded", "1")]
    with pytest.raises(ServiceUnavailable):
        call(service.url, deadline_s=30)
    assert len(service.asked) == 3


async def test_a_callback_that_times_out_is_not_ours(service: ScriptedService) -> None:
    service.replies = [Reply(lines=[GROUP, SUMMARY])]

    def callback(_group: object) -> None:
        raise TimeoutError("the caller's own")

    async with AsyncClient(service.url) as client:
        with pytest.raises(TimeoutError, match="the caller's own"):
            await client.score([ONE], on_group=callback, deadline_s=30)
