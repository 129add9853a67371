"""Start the service without a trainer, and check who gets access to it and to its data."""

import json
import time

from deployment.project import Run

FORBIDDEN = (
    "ALTER TABLE rubrics ADD COLUMN x int",
    "ALTER TABLE rubrics DISABLE ROW LEVEL SECURITY",
    "DROP TABLE verdicts",
    "TRUNCATE verdicts",
    "CREATE TABLE x (y int)",
    "CREATE ROLE x",
    "SET ROLE markscheme",
    "ALTER ROLE markscheme_app BYPASSRLS",
    "DELETE FROM audit_entries",
    "UPDATE audit_entries SET action = 'x'",
    "DELETE FROM alembic_version",
    "SELECT rolpassword FROM pg_authid",
    "COPY rubrics TO PROGRAM 'id'",
)
STATEMENTS = """
import asyncio, json, sys
import sqlalchemy as sa
from markscheme_server.config import Settings
from sqlalchemy.ext.asyncio import create_async_engine

async def allowed(url, statement):
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execute(sa.text(statement))
            await connection.rollback()
    except Exception as error:
        if getattr(getattr(error, "orig", error), "sqlstate", None) not in ("42501", "28P01"):
            raise
        return False
    finally:
        await engine.dispose()
    return True

async def main():
    url = sa.make_url(Settings().sqlalchemy_url)
    tries = [(url, statement) for statement in sys.argv[1:]]
    tries += [(url.set(username="markscheme"), "SELECT 'the owner'")]
    passed = [statement for as_whom, statement in tries if await allowed(as_whom, statement)]
    print(json.dumps(passed))

asyncio.run(main())
"""
"""Prints the statements that the service's role may execute; each is rolled back.

Runs in the service's container with its settings. One statement is tried as the owner, with the
service's password.
"""


def start_alone(run: Run) -> None:
    """Start the service as documented, without a trainer, and check who gets access."""
    run.console.print("Starting PostgreSQL, Redis and the service …")
    started = time.monotonic()
    run.compose("up", "--detach", "--wait", "rubric")
    run.figure(
        "start of PostgreSQL, Redis and the service, until it is ready",
        f"{time.monotonic() - started:.0f} s",
    )
    states = {service: found["State"] for service, found in run.containers().items()}
    run.expect(
        "`docker compose up rubric` starts the service, what it needs, and nothing else",
        set(states) == {"postgres", "redis", "migrate", "rubric"}
        and states["migrate"]["ExitCode"] == 0,
        ", ".join(f"{service} {state['Status']}" for service, state in sorted(states.items())),
    )
    judges = [line for line in run.log("rubric").splitlines() if line.startswith("judge")]
    run.expect(
        "the service says at its start which judge it has", len(judges) == 1, "; ".join(judges)
    )
    keys = (run.secrets["MARKSCHEME_API_KEY"], "wrong", "")
    codes = [run.call("GET", "/v1/rubrics", key).status_code for key in keys]
    run.expect(
        "the service answers to the operator's key and to no other",
        codes == [200, 401, 401],
        f"{codes[0]} with it, {codes[1]} with another, {codes[2]} without",
    )
    held = run.query(
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.rolname = a.usename "
        "WHERE r.rolname = 'markscheme_app' AND NOT (r.rolsuper OR r.rolbypassrls)"
    )
    run.expect(
        "the service works as a role that row-level security holds for",
        int(held) > 0,
        f"{held} connections as markscheme_app",
    )
    allowed = json.loads(run.python("rubric", STATEMENTS, "SELECT 1", *FORBIDDEN))
    run.expect(
        "the service's role can change no table, role or audit entry, and its password is not "
        "the owner's",
        allowed == ["SELECT 1"],
        f"refused: {len(FORBIDDEN)} statements, and to log in as the owner"
        if allowed == ["SELECT 1"]
        else f"allowed: {allowed}",
    )
    password = run.secrets["REDIS_PASSWORD"]
    said = [redis_says(run, given) for given in ("", "wrong", password)]
    shown = password in run.docker("top", run.container("redis"), "-eo", "pid,args").stdout
    run.expect(
        "Redis refuses who has no password or another, and no command line shows it",
        "NOAUTH" in said[0] and "WRONGPASS" in said[1] and said[2] == "PONG" and not shown,
        "; ".join(words[:60] for words in said),
    )


def redis_says(run: Run, password: str) -> str:
    """Return Redis's answer to a ping with this password; an empty one sends none."""
    return " ".join(
        run.compose(
            "exec",
            "-T",
            "-e",
            f"REDISCLI_AUTH={password}",
            "redis",
            "sh",
            "-c",
            'test -n "$REDISCLI_AUTH" || unset REDISCLI_AUTH; '
            'redis-cli -p "${REDIS_PORT:-6379}" ping 2>&1',
        ).stdout.split()
    )
