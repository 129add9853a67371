"""Several endpoints of one judge, and several judges: one may die, none are mixed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, judges_file, score
from fakes.fast_judge import FastJudge, status
from fakes.load import quantile, send_all, send_at_rate
from fakes.stores import query

Serve = Callable[..., str]


@pytest.fixture
def three() -> Iterator[list[FastJudge]]:
    made = [FastJudge(latency_s=0.05) for _ in range(3)]
    yield made
    for judge in made:
        judge.close()


def die(judge: FastJudge, how: str) -> None:
    if how == "refuses":
        judge.refuse()
    else:
        judge.mode = fast_judge.HANG if how == "hangs" else status(500)


@pytest.mark.parametrize(
    ("how", "count", "per_s", "spare_s"),
    [
        ("refuses", 50, 15, 15.0),
        *(
            pytest.param(how, 500, 40, 0.1, marks=pytest.mark.slow)
            for how in ("refuses", "fails", "hangs")
        ),
    ],
)
def test_a_dead_endpoint_is_gone_round(
    how: str,
    count: int,
    per_s: float,
    spare_s: float,
    serve: Serve,
    three: list[FastJudge],
    tmp_path: Path,
) -> None:
    """Scored all the same, and in little more time; ``spare_s`` is the machine's."""
    config = judges_file(
        tmp_path / "judges.toml",
        {
            "pool": {"base_url": [judge.url for judge in three], "revision": "r1"}
            | ({"timeout_s": 2.0} if how == "hangs" else {})
        },
        role="pool",
    )
    url = serve(judge=None, config=config)
    rubric_id = create_rubric(url)
    healthy = send_at_rate(
        lambda i: score(url, rubric_id, [f"healthy {i}"]), per_s=per_s, for_s=count / per_s / 2
    )
    assert {r for a in healthy for r in a.rewards} == {1.0}
    assert three[0].count  # an idle judge's calls go to its first endpoint
    die(three[0], how)
    limping = send_at_rate(
        lambda i: score(url, rubric_id, [f"limping {i}"]), per_s=per_s, for_s=count / per_s
    )
    scored = sum(a.status == 200 and a.rewards == [1.0] for a in limping)
    assert scored >= 0.995 * len(limping)
    usual = quantile([a.elapsed_s for a in healthy], 0.95)
    assert quantile([a.elapsed_s for a in limping], 0.95) <= 2 * usual + spare_s


def test_a_group_is_judged_by_the_judge_that_was_named(
    serve: Serve, three: list[FastJudge], tmp_path: Path, database: str
) -> None:
    names = ["red", "green", "blue"]
    config = judges_file(
        tmp_path / "judges.toml",
        {
            name: {"base_url": judge.url, "model": name}
            for name, judge in zip(names, three, strict=True)
        },
        role="blue",
    )
    url = serve(judge=None, config=config, database_url=database)
    rubric_id = create_rubric(url, criteria=2)
    for judge, met in zip(three, (True, False, True), strict=True):
        judge.mode = fast_judge.Reply(met=met)
    texts = [f"answer {i}" for i in range(4)]
    answers = send_all(
        [
            *(score(url, rubric_id, texts, judge=name) for name in names[:2]),
            score(url, rubric_id, texts),
        ]
    )
    assert [a.rewards for a in answers] == [[1.0] * 4, [0.0] * 4, [1.0] * 4]
    assert [judge.count for judge in three] == [4, 4, 4]
    assert query(database, "SELECT count(*), count(DISTINCT judge) FROM verdicts") == [(24, 3)]


def test_a_judge_nobody_configured_is_refused(
    serve: Serve, judge: FastJudge, tmp_path: Path
) -> None:
    """By name only: a URL of the caller's own is no judge."""
    config = judges_file(tmp_path / "judges.toml", {"red": {"base_url": judge.url}}, role="red")
    url = serve(judge=None, config=config)
    rubric_id = create_rubric(url)
    refused = send_all([score(url, rubric_id, ["x"], judge=name) for name in ("pink", judge.url)])
    assert [a.status for a in refused] == [422, 422]
    assert judge.count == 0
