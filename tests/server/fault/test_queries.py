"""Test the SQL of a score: few statements whatever its size, all indexed, none slow."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.bodies import create_rubric, model_judge, score
from fakes.fast_judge import FastJudge
from fakes.load import send_all
from fakes.processes import eventually
from fakes.stores import PostgresServer, query
from markscheme_server.store.maintenance.migrate import prepare

KNOWN_MOST = 4
"""Statements for rollouts whose verdicts are all known."""
SLOWEST_MS = 50
HANG_UP = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
"""Connections tell of what they scanned when they end, and else within a minute."""
COLD_MOST = 7
"""The most statements for a rollout judged in one call: ``KNOWN_MOST`` plus claim and reply."""


@pytest.fixture(scope="module")
def logging_postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL that logs every statement and its time, with a migrated database."""
    server = PostgresServer(log_min_duration_statement="0", log_line_prefix="%d|", lc_messages="C")
    asyncio.run(prepare(server.create("migrated").replace(":", "+asyncpg:", 1)))
    yield server
    server.close()


class Log:
    """The statements of one database since the last look."""

    def __init__(self, path: Path, database: str) -> None:
        self._path, self._database, self._place = path, database, 0

    def new(self) -> list[tuple[float, str]]:
        """Return new ``(milliseconds, statement)`` pairs.

        Leaves out transaction statements, pings and the queries repeated every half second: whether
        a key exists, the operator's limit, and the team's budgets; and the look for replays every
        two seconds.
        """
        text = self._path.read_text()
        fresh, self._place = text[self._place :], len(text)
        found = re.findall(
            rf"^{self._database}\|LOG:  duration: ([\d.]+) ms  (?:execute [^:]*|statement): (.*)",
            fresh,
            re.MULTILINE,
        )
        return [
            (float(ms), words)
            for ms, words in found
            if not re.match(
                r"(?i)\s*(begin|commit|rollback|;|select 1\b"
                r"|select exists \(select api_keys|select budgets\."
                r"|select distinct replays\.team"
                r"|select pg_catalog\.version|show |select current_schema"
                r"|reset|set |deallocate|close"
                r"|with recursive typeinfo_tree|$)",
                words,
            )
        ]


@pytest.fixture
def served(
    serve: Callable[..., str],
    logging_postgres: PostgresServer,
    judge: FastJudge,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str, Log]:
    """Start a service; return its URL, its database and the database's log."""
    name = re.sub(r"\W", "", request.node.name)[:40].lower()
    database = logging_postgres.create(name, template="migrated")
    monkeypatch.setattr("markscheme_server.app.CLAIM_LEASE_S", 60.0)  # no renewals in the log
    url = serve(**model_judge(judge.url), database_url=database)
    return url, database, Log(logging_postgres.log, name)


def settled(log: Log, known: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Wait until no more statements come, since some are written after the answer; return all."""
    for attempt in eventually(every_s=0.2):
        with attempt:
            more = log.new()
            known += more
            assert not more
    return known


def test_a_score_costs_a_few_statements_whatever_its_criteria(served: tuple[str, str, Log]) -> None:
    url, _, log = served
    warm = create_rubric(url, "a first prompt")
    send_all([score(url, warm, ["what a process asks once"], prompt="a first prompt")])
    for attempt in eventually():  # one that ends late on a busy machine counts for the next
        with attempt:
            counts: dict[str, list[int]] = {"cold": [], "known": []}
            said = {}
            for criteria in (1, 50):
                prompt = f"prompt {criteria} {attempt.retry_state.attempt_number}"
                rubric_id = create_rubric(url, prompt, criteria=criteria)
                settled(log, [])
                for state in ("cold", "known"):
                    asked = score(url, rubric_id, ["an answer"], prompt=prompt)
                    assert send_all([asked])[0].rewards == [1.0]
                    said[state] = settled(log, log.new())
                    counts[state].append(len(said[state]))
            listed = {state: "\n".join(words[:160] for _, words in said[state]) for state in said}
            assert counts["known"][0] == counts["known"][1] <= KNOWN_MOST, listed["known"]
            assert counts["cold"][0] == counts["cold"][1] <= COLD_MOST, listed["cold"]


def test_rollouts_and_groups_do_not_multiply_it(served: tuple[str, str, Log]) -> None:
    url, _, log = served
    rubric_id = create_rubric(url, criteria=6)
    for attempt in eventually():  # as above
        with attempt:
            counts = []
            for rollouts in (2, 64):
                texts = [f"answer {i}" for i in range(rollouts)]
                assert None not in send_all([score(url, rubric_id, texts)])[0].rewards
                settled(log, [])
                again = send_all([score(url, rubric_id, texts)])[0]
                assert again.json["usage"]["judge_calls"] == 0
                counts.append(len(settled(log, log.new())))
            assert counts[0] == counts[1] <= KNOWN_MOST


@pytest.mark.timed
@pytest.mark.parametrize("stored", [100_000])
def test_many_verdicts_slow_nothing_down(
    stored: int, served: tuple[str, str, Log], judge: FastJudge
) -> None:
    """Among 100,000 verdicts no statement takes 50 ms, and none scans a big table."""
    url, database, log = served
    rubric_id = create_rubric(url, criteria=6)
    for statement, rows in (
        (
            "INSERT INTO verdicts "
            "(key, team, prompt_key, criterion_key, response_key, judge, met, created_at) "
            "SELECT md5(i::text) || md5((i + 1)::text), 'default', 'p', 'c', 'r', 'j', true, now() "
            "FROM generate_series(1, $1::int) i",
            stored,
        ),
        (
            "INSERT INTO texts SELECT md5(i::text), 'x', now() FROM generate_series(1, $1::int) i",
            stored // 10,
        ),
        (
            "INSERT INTO judge_calls "
            "(id, team, role, judge, criteria, calls, prompt_tokens, completion_tokens, "
            "created_at) SELECT md5(i::text), 'default', 'verifier', 'j', '[]', 1, 1, 1, now() "
            "FROM generate_series(1, $1::int) i",
            stored // 10,
        ),
    ):
        query(database, statement, rows)
    for statement in (
        "VACUUM ANALYZE verdicts",
        "VACUUM ANALYZE texts",
        "VACUUM ANALYZE judge_calls",
    ):
        query(database, statement)
    query(database, HANG_UP)
    settled(log, [])
    before = _scans(database)
    fastest: dict[str, float] = {}  # of several times: a busy machine interrupts one or the other
    for turn in range(3):
        texts = [f"{turn}, answer {i}" for i in range(32)]
        for group, calls in (("new", 32), ("again", 0)):
            judge.forget()
            asked = score(url, rubric_id, texts, group=f"{group} {turn}")
            assert send_all([asked])[0].rewards == [1.0] * 32
            assert judge.count == calls
        for ms, words in settled(log, log.new()):
            fastest[words] = min(ms, fastest.get(words, ms))
    query(database, HANG_UP)
    for attempt in eventually(every_s=0.1):
        with attempt:
            after = _scans(database)
            assert after["verdicts"][1] > before["verdicts"][1]
    assert fastest
    assert max(fastest.values()) <= SLOWEST_MS, max(fastest, key=fastest.__getitem__)
    assert {table: after[table][0] - before[table][0] for table in after} == dict.fromkeys(after, 0)


def _scans(database: str) -> dict[str, tuple[int, int]]:
    """Sequential and index scans by table, once the server has told of those that were."""
    rows = query(
        database,
        "SELECT pg_stat_force_next_flush(), relname, seq_scan, coalesce(idx_scan, 0) "
        "FROM pg_stat_user_tables WHERE relname IN ('verdicts', 'texts', 'judge_calls')",
    )
    return {name: (sequential, by_index) for _, name, sequential, by_index in rows}
