"""Test PostgreSQL migrations: every statement's wait for a lock is bounded; squawk's rules pass."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from markscheme_server.store.engine.database import Database, create_engine
from markscheme_server.store.maintenance.migrate import alembic_config, migrate

LOCKS = re.compile(
    r"\s*(?:ALTER|DROP|TRUNCATE|LOCK|CREATE (?!TABLE|ROLE)|REINDEX|CLUSTER|VACUUM|COMMENT|"
    r"GRANT|REVOKE|UPDATE|DELETE|INSERT|SELECT pg_advisory)",
    re.IGNORECASE,
)
"""Statements that may have to wait for somebody else's lock."""
BOUND = re.compile(r"\s*SET LOCAL lock_timeout = '(\d+)s'", re.IGNORECASE)
MOST_S = 5
NOT_FOR_US = {
    "prefer-text-field": "bounded columns are a wall behind the schema's own bounds",
    "prefer-bigint-over-int": "numbers of rollouts, steps and versions, bounded by the schema",
    "require-statement-timeout": (
        "to copy a large table takes its time; what is bounded is waiting for its lock"
    ),
}
"""Squawk's rules that are not kept, and why."""
KNOWN = {"changing-column-type": 6, "ban-drop-constraint": 1}
"""Squawk's findings in released revisions: exact money (0006), shares with any team (0007)."""


@pytest.fixture(scope="module")
def statements(postgres: Any) -> list[str]:
    """All that a migration from nothing to the newest revision sends, in order."""
    sent: list[str] = []
    url = postgres.create("recorded").replace("postgresql://", "postgresql+asyncpg://")

    async def record() -> None:
        database = Database(create_engine(url))

        @sa.event.listens_for(database.engine.sync_engine, "before_cursor_execute")
        def note(
            _connection: Any,
            _cursor: Any,
            statement: str,
            _parameters: Any,
            _context: Any,
            _many: bool,
        ) -> None:
            sent.append(statement.strip())

        try:
            await migrate(database)
        finally:
            await database.close()

    asyncio.run(record())
    return sent


def test_no_statement_waits_for_a_lock_without_a_bound(
    statements: list[str], record_property: Callable[[str, str], None]
) -> None:
    first = next(i for i, statement in enumerate(statements) if BOUND.match(statement))
    assert [s for s in statements[:first] if LOCKS.match(s)] == []
    locking = [s for s in statements[first:] if LOCKS.match(s)]
    assert len(locking) > 50
    bounds = [BOUND.match(s) for s in statements if "lock_timeout" in s]
    assert all(bound is not None and 0 < int(bound[1]) <= MOST_S for bound in bounds)
    assert not any(
        re.match(r"\s*(COMMIT|RESET|ROLLBACK)", s, re.IGNORECASE) for s in statements[first:]
    ), "the bound would be gone"
    record_property("figure", f"{len(locking)} statements that lock, each waits {MOST_S} s at most")


def test_no_revision_takes_the_bound_away() -> None:
    """Also when a revision runs alone: its SQL sets no time-outs and ends no transaction."""
    for script in ScriptDirectory.from_config(alembic_config()).walk_revisions():
        text = Path(script.path).read_text("utf-8")
        assert not re.search(r"lock_timeout|autocommit_block|\bCOMMIT\b|isolation_level", text), (
            script.revision
        )


@pytest.mark.slow
def test_squawk_finds_nothing_new(
    statements: list[str], tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    beside = Path(sys.executable).with_name("squawk")
    squawk = str(beside) if beside.exists() else shutil.which("squawk")
    if squawk is None:
        pytest.skip("squawk is not installed")
    changes = [
        s
        for s in statements
        if re.match(r"(ALTER|DROP|CREATE|UPDATE|INSERT|DELETE|SET LOCAL)", s)
        and "alembic_version" not in s
    ]
    file = tmp_path / "migrations.sql"
    file.write_text("".join(f"{statement.rstrip(';')};\n" for statement in changes))
    done = subprocess.run(
        [
            squawk,
            "--reporter",
            "Json",
            "--exclude",
            ",".join(NOT_FOR_US),
            "--assume-in-transaction",
            str(file),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = json.loads(done.stdout)
    assert Counter(finding["rule_name"] for finding in found) == KNOWN, found
    record_property("figure", f"squawk: no finding in {len(changes)} statements but {KNOWN}")
