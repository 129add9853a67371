"""Answers as they come over the wire: odd characters and pieces, broken lines, paid errors."""

from collections.abc import Iterator
from typing import Any

import pytest

from client.scripted import (
    BOTH_INDUCE,
    BOTH_SCORE,
    GROUP,
    ONE,
    RUBRIC,
    SUMMARY,
    Call,
    Reply,
    ScriptedService,
    as_line,
    refusal,
)
from markscheme import Client
from markscheme.errors import (
    AnswerUnreadable,
    ConnectionFailed,
    JudgeReplyUnreadable,
    MarkschemeError,
    ServiceUnavailable,
)

ODD = "It names\x0b a\x0c colour.\x1c\x1d\x1e\x85\u2028\u2029\r A shade ❤ will do."
REF = {
    "id": "rub_1",
    "version": 1,
    "content_hash": "h",
    "origin": "given",
    "criteria": [{"id": "c1", "text": ODD, "points": 3, "category": "task_fulfilment"}],
}
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


def chunks(content: bytes, size: int) -> list[bytes]:
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]


@BOTH_SCORE
@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_no_character_and_no_piece_ends_a_line(
    call: Call, size: int, end: bytes, service: ScriptedService
) -> None:
    answer = (as_line(GROUP | {"rubric": REF}) + b"\n" + as_line(SUMMARY)).replace(b"\n", end)
    service.replies = [Reply(200, chunks(answer, size), CHUNKED)]
    assert call(service.url).groups[0].rubric.criteria[0].text == ODD


@BOTH_SCORE
@pytest.mark.parametrize(
    "line",
    [
        b"<html>\n",
        b"{}\n",
        b'{"object":"score.group","id":7}\n',
        b'{"object":"score.summary"}\n',
        b"\xff\xfe{\x00\n",
        b'{"object":"score.group","id":"\xe9"}\n',
        as_line(GROUP | {"status": "of a later version"}),
    ],
)
def test_a_line_that_is_not_the_services_is_said_plainly(
    call: Call, line: bytes, service: ScriptedService
) -> None:
    service.replies = [Reply(lines=[line, SUMMARY])]
    with pytest.raises(
        AnswerUnreadable, match=r"the answer, line 1: .*is this a Markscheme service"
    ):
        call(service.url)
    assert len(service.asked) == 1


@BOTH_SCORE
@pytest.mark.parametrize("cut", [1, 30, as_line(GROUP | {"rubric": REF}).index("❤".encode()) + 1])
def test_a_line_that_was_cut_off_is_an_answer_that_broke_off(
    call: Call, cut: int, service: ScriptedService
) -> None:
    service.replies = [Reply(lines=[as_line(GROUP | {"rubric": REF})[:cut]])]
    with pytest.raises(ConnectionFailed, match="broke off; send the batch again") as caught:
        call(service.url)
    assert not isinstance(caught.value, AnswerUnreadable)


@BOTH_SCORE
def test_a_summary_needs_no_end_of_line(call: Call, service: ScriptedService) -> None:
    service.replies = [Reply(lines=[GROUP, as_line(SUMMARY).rstrip()])]
    assert call(service.url).counts.unscored == 1


@BOTH_SCORE
def test_a_body_that_cannot_be_unpacked_is_no_bare_error(
    call: Call, service: ScriptedService
) -> None:
    service.replies = [Reply(lines=[GROUP, SUMMARY], headers={"Content-Encoding": "gzip"})]
    with pytest.raises(ConnectionFailed):
        call(service.url)


@BOTH_INDUCE
def test_a_judges_reply_that_cannot_be_read_is_paid_for_once(
    call: Call, service: ScriptedService
) -> None:
    service.replies = [refusal(502, "judge_reply", "1"), Reply(lines=[RUBRIC])]
    with pytest.raises(JudgeReplyUnreadable, match="scripted") as caught:
        call(service.url, deadline_s=30)
    assert len(service.asked) == 1
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (
        502,
        "judge_reply",
        "req_1",
    )
    assert isinstance(caught.value, MarkschemeError)
    assert not isinstance(caught.value, ServiceUnavailable)


@BOTH_INDUCE
@pytest.mark.parametrize(
    "gateway", [refusal(502, "other", "1"), Reply(502, [b"<html>Bad Gateway</html>"])]
)
def test_a_gateways_502_is_tried_again(
    call: Call, gateway: Reply, service: ScriptedService
) -> None:
    service.replies = [gateway, Reply(lines=[RUBRIC])]
    assert call(service.url).id == "rub_1"
    assert len(service.asked) == 2
    service.replies = [gateway]
    with pytest.raises(ServiceUnavailable):
        call(service.url)


def test_it_is_so_for_every_call(service: ScriptedService) -> None:
    service.replies = [refusal(502, "judge_reply")]
    calls: list[Any] = [lambda client: client.teach("p"), lambda client: client.score([ONE])]
    with Client(service.url) as client:
        for number, call in enumerate(calls, 1):
            with pytest.raises(JudgeReplyUnreadable):
                call(client)
            assert len(service.asked) == number
