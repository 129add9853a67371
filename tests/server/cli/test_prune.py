"""Test ``markscheme prune``: it shows what would go, asks, and refuses if it cannot ask."""

import asyncio
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from fakes.processes import COMMAND, environment
from fakes.shell import command
from markscheme_server.cli.common import parse_age
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.engine.ids import now
from markscheme_server.store.ledger import CallDescription, JudgeCall
from markscheme_server.store.maintenance.batch_delete import Batch
from markscheme_server.store.maintenance.prune import Pruner
from markscheme_server.store.store import Store
from markscheme_server.store.tables import audit_entries, metadata, verdicts
from markscheme_server.store.verdicts import JudgeReply, StoredVerdict


@pytest.fixture
def home(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """Create a home with two old verdicts and a new one."""

    async def fill() -> None:
        store = Store(f"sqlite+aiosqlite:///{tmp_path / 'markscheme.db'}")
        for name in "abc":
            await store.verdicts.save(
                JudgeReply(
                    "t",
                    [
                        StoredVerdict(
                            name * 64, "p", "c", "r", "judge", StoredDecision(True, None, None)
                        )
                    ],
                    JudgeCall(
                        CallDescription("t", None, "verifier", "judge", ("c",)),
                        JudgeUsage(1, 10, 5),
                    ),
                )
            )
            if name == "b":
                async with store.database.writing(ALL_TEAMS) as connection:
                    for table in metadata.sorted_tables:
                        if "created_at" in table.c and table is not audit_entries:
                            await connection.execute(
                                sa.update(table).values(created_at=now() - timedelta(days=8))
                            )
        await store.close()

    shutil.copy(migrated_sqlite, tmp_path / "markscheme.db")
    asyncio.run(fill())
    return tmp_path


def left(home: Path) -> int:
    engine = sa.create_engine(f"sqlite:///{home / 'markscheme.db'}")
    with engine.connect() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(verdicts)).scalar_one()
    engine.dispose()
    return count


def prune(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return command("prune", *words, directory=home, settings={"home": home})


def counts(output: str) -> dict[str, int]:
    rows = [line.split() for line in output.splitlines()]
    return {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdecimal()}


def test_without_a_terminal_it_removes_only_when_told(home: Path) -> None:
    done = prune(home, "--older-than", "7d")
    assert done.returncode == 1
    assert "--yes" in done.stderr
    dry = prune(home, "--older-than", "7d", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert left(home) == 3
    real = prune(home, "--older-than", "7d", "--yes", "--vacuum")
    assert real.returncode == 0, real.stderr
    assert left(home) == 1
    for said in (dry.stdout, real.stdout):
        assert counts(said) == {
            "rollouts": 0,
            "assignments": 0,
            "replays": 0,
            "replay_groups": 0,
            "gathered_groups": 0,
            "gathered_rollouts": 0,
            "verdicts": 2,
            "judge_calls": 2,
            "idempotency_keys": 0,
            "claims": 0,
            "holds": 0,
            "texts": 0,
            "prompts": 0,
        }


@pytest.mark.parametrize(("answer", "remaining", "status"), [("y\n", 1, 0), ("n\n", 3, 1)])
def test_at_a_terminal_it_shows_and_asks(
    home: Path, answer: str, remaining: int, status: int
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "prune", "--older-than", "1w"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment({"home": home}),
        cwd=home,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    said, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == status, said
    assert "to be removed" in said
    assert "remove it?" in said
    assert left(home) == remaining


def test_a_database_that_lacks_a_table_is_explained_and_loses_nothing(home: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{home / 'markscheme.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE judge_calls"))
    engine.dispose()
    done = prune(home, "--older-than", "7d", "--yes")
    assert done.returncode == 1
    assert "pruning stopped (OperationalError). What was removed stays removed" in done.stderr
    assert "that 'markscheme migrate' was run on it" in done.stderr
    assert "Traceback" not in done.stderr
    assert left(home) == 3


def test_ctrl_c_keeps_what_was_removed_and_the_next_run_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing = Pruner.run

    async def stop(pruner: Pruner) -> AsyncIterator[Batch]:
        async for batch in removing(pruner):
            yield batch
            if batch.table == "verdicts":
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "run", stop)
        done = prune(home, "--older-than", "7d", "--yes")
    assert done.returncode == 130
    assert done.stderr.endswith(
        "stopped. What was removed stays removed; run it again to continue\n"
    )
    assert left(home) == 1
    rest = counts(prune(home, "--older-than", "7d", "--yes").stdout)
    assert (rest["verdicts"], rest["judge_calls"]) == (0, 2)


def test_it_runs_on_both_databases(database_url: str, tmp_path: Path) -> None:
    settings = {"database_url": database_url}
    assert command("migrate", directory=tmp_path, settings=settings).returncode == 0
    done = command("prune", "--older-than", "1d", "--yes", directory=tmp_path, settings=settings)
    assert done.returncode == 0, done.stderr
    assert set(counts(done.stdout).values()) == {0}


def test_a_database_that_was_never_migrated_is_explained(tmp_path: Path) -> None:
    done = prune(tmp_path, "--older-than", "90d", "--yes")
    assert done.returncode == 1
    assert f"there is no database {tmp_path / 'markscheme.db'}" in done.stderr
    assert "'markscheme migrate' creates it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "age"),
    [("90d", timedelta(days=90)), ("12h", timedelta(hours=12)), (" 6w ", timedelta(weeks=6))],
)
def test_ages(text: str, age: timedelta) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1.5d", "90m", "999999d", "90d x"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="90d"):
        parse_age(text)


def test_the_help_says_what_is_paid_for_again(tmp_path: Path) -> None:
    said = " ".join(prune(tmp_path, "--help").stdout.split())
    assert "judged and paid again" in said
    assert "Keeps rubrics with their lineage, inductions, teacher responses" in said
