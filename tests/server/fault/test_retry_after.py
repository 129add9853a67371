"""What a judge says about when to come back is obeyed, in every form, within reason."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from fakes.bodies import create_rubric, judges_file, score
from fakes.fast_judge import OK, Call, FastJudge, Reply
from fakes.load import Answer, send_all
from fakes.service import running
from markscheme_server.config import Settings

AT_ONCE_S = 4.0
"""Without a time of the judge's, the first retry comes after a quarter of a second and what a busy
machine adds."""


@dataclass(frozen=True)
class Row:
    """A judge's header and the allowed wait (least, most); ``None``: the call is given up."""

    header: Callable[[], dict[str, str]]
    waited_s: tuple[float, float] | None
    code: int = 429


def stated(value: str, name: str = "Retry-After") -> Callable[[], dict[str, str]]:
    return lambda: {name: value}


def date(in_s: float) -> Callable[[], dict[str, str]]:
    return lambda: {"Retry-After": formatdate(time.time() + in_s, usegmt=True)}


def about(seconds: float) -> tuple[float, float]:
    return 0.97 * seconds, 1.2 * seconds + AT_ONCE_S


ROWS = {
    "seconds": Row(stated("1"), about(1)),
    "five seconds": Row(stated("5"), about(5)),
    "fraction": Row(stated("0.8"), about(0.8)),
    "milliseconds": Row(stated("900", "retry-after-ms"), about(0.9)),
    "date": Row(date(3), (1.9, 3 + AT_ONCE_S)),
    "of a 503": Row(stated("1"), about(1), 503),
    "a date gone by": Row(date(-100), (0, AT_ONCE_S)),
    "words": Row(stated("soon"), (0, AT_ONCE_S)),
    "negative": Row(stated("-5"), (0, AT_ONCE_S)),
    "not a number": Row(stated("NaN"), (0, AT_ONCE_S)),
    "nothing": Row(dict, (0, AT_ONCE_S)),
    "too long": Row(stated("31"), None),
    "a date too far off": Row(date(3600), None),
    "past the deadline": Row(stated("29"), None),
}


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple[Answer, FastJudge]]]:
    """All rows tried at once, each on a judge of its own that refuses its first call."""

    def refusing(row: Row) -> Callable[[Call], Reply]:
        return lambda call: Reply("status", row.code, row.header()) if call.number == 1 else OK

    judges = {name: FastJudge(refusing(row)) for name, row in ROWS.items()}
    folder: Path = tmp_path_factory.mktemp("retry")
    names = {name: f"j{i}" for i, name in enumerate(ROWS)}
    config = judges_file(
        folder / "judges.toml", {names[n]: {"base_url": j.url} for n, j in judges.items()}
    )
    with running(Settings(_env_file=None, home=folder, config=config)) as url:
        rubric_id = create_rubric(url)
        answers = send_all(
            [
                score(url, rubric_id, ["blue"], judge=names[n], headers={"X-Deadline-Ms": "25000"})
                for n in ROWS
            ]
        )
    yield {name: (answer, judges[name]) for name, answer in zip(ROWS, answers, strict=True)}
    for judge in judges.values():
        judge.close()


@pytest.mark.parametrize("name", ROWS)
def test_the_judge_is_obeyed(name: str, outcomes: dict[str, tuple[Answer, FastJudge]]) -> None:
    answer, judge = outcomes[name]
    waited = ROWS[name].waited_s
    assert answer.status == 200
    if waited is None:
        assert (answer.rewards, judge.count) == ([None], 1)
        assert answer.reasons == {"rate_limited"}
        assert answer.elapsed_s < 15
    else:
        assert (answer.rewards, judge.count) == ([1.0], 2)
        assert waited[0] <= judge.arrivals[1] - judge.arrivals[0] <= waited[1]
