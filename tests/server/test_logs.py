"""Test what is logged and how, in a separate process: logging is set up per process."""

import json
import subprocess
import sys

import pytest

from markscheme_server.logs import drop_exception_messages, keep_first_line

SECRET = "sk-planted-7f3a"
NOISY = f'''
import asyncio, logging, os, threading, warnings
os.environ["OPENAI_LOG"] = "debug"
from markscheme_server import logs
logs.configure("info")
import openai, structlog
log = structlog.get_logger()

def fail():
    raise ValueError("{SECRET}")

def in_handler():
    try:
        fail()
    except ValueError as error:
        raise RuntimeError("{SECRET} again") from error

async def lost():
    task = asyncio.ensure_future(asyncio.sleep(0))
    broken = asyncio.get_running_loop().create_future()
    broken.set_exception(ValueError("{SECRET}"))
    del broken
    await task

class Unfinished:
    def __del__(self):
        fail()

log.debug("quiet")
log.info("said", number=1)
try:
    in_handler()
except RuntimeError:
    log.error("caught", exc_info=True)
    logging.getLogger("uvicorn.error").exception("Exception in ASGI application\\n")
logging.getLogger("openai").debug("{SECRET}")
logging.getLogger("httpx").info("{SECRET}")
asyncio.run(lost())
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Unfinished()
warnings.warn("old")
'''


@pytest.fixture(scope="module")
def lines() -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", NOISY], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    assert SECRET not in done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_is_json_with_a_time_and_a_level(lines: list[dict[str, object]]) -> None:
    assert len(lines) == 7
    assert all(line["timestamp"] and line["level"] for line in lines)


def test_levels_are_kept_and_libraries_speak_from_warnings_up(
    lines: list[dict[str, object]],
) -> None:
    assert lines[0] | {"timestamp": ""} == {
        "event": "said",
        "number": 1,
        "level": "info",
        "timestamp": "",
    }
    assert [line["event"] for line in lines[1:6]] == [
        "caught",
        "Exception in ASGI application",
        "Future exception was never retrieved",
        "thread_failed",
        "finaliser_failed",
    ]
    assert "old" in str(lines[6]["event"])


def test_an_exception_is_told_by_type_cause_and_place(lines: list[dict[str, object]]) -> None:
    for line in lines[1:3]:
        assert line["error"] == "RuntimeError from ValueError"
        places = line["at"]
        assert isinstance(places, list)
        assert places[-1].endswith(" in_handler")
    assert lines[3]["error"] == lines[4]["error"] == lines[5]["error"] == "ValueError"


def test_a_cycle_of_causes_ends() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    event = drop_exception_messages(None, "error", {"event": "x", "exc_info": first})
    assert event == {"event": "x", "error": "ValueError from KeyError", "at": []}


def test_only_the_first_line_of_a_foreign_message_is_kept() -> None:
    assert keep_first_line(None, "error", {"event": f"Task failed\nfuture: {SECRET}"}) == {
        "event": "Task failed"
    }
