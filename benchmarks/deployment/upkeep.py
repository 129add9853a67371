"""What an operator does with a running deployment: keys, backups, secrets from files, the end."""

import json
import time
from typing import Any

from deployment.access import redis_says
from deployment.containment import HOLDERS
from deployment.preparation import write_settings
from deployment.project import ROOM, Run

FROM_FILES = {
    "redis": {"REDIS_PASSWORD_FILE": "REDIS_PASSWORD"},
    "migrate": {
        "MARKSCHEME_DATABASE_PASSWORD_FILE": "POSTGRES_APP_PASSWORD",
        "MARKSCHEME_MIGRATION_PASSWORD_FILE": "POSTGRES_PASSWORD",
    },
    "trainer-key": {
        "MARKSCHEME_DATABASE_PASSWORD_FILE": "POSTGRES_APP_PASSWORD",
        "MARKSCHEME_KEY_PEPPER_FILE": "MARKSCHEME_KEY_PEPPER",
    },
    "rubric": {
        "MARKSCHEME_API_KEY_FILE": "MARKSCHEME_API_KEY",
        "MARKSCHEME_DATABASE_PASSWORD_FILE": "POSTGRES_APP_PASSWORD",
        "MARKSCHEME_REDIS_PASSWORD_FILE": "REDIS_PASSWORD",
        "MARKSCHEME_KEY_PEPPER_FILE": "MARKSCHEME_KEY_PEPPER",
    },
}
"""By service, the variables that name a file, and the secret in it."""


def renew_the_key(run: Run) -> None:
    """Revoke the trainer's key and make a new one, as an operator does after a leak."""
    read = ("run", "--rm", "--no-deps", "--entrypoint", "cat", "demo", "/keys/trainer")
    old = run.compose(*read).stdout.strip()
    run.compose("up", "--no-deps", "trainer-key")
    same = run.compose(*read).stdout.strip() == old
    run.compose("exec", "-T", "rubric", "markscheme", "keys", "revoke", old[:11])
    run.wait(
        lambda: run.call("GET", "/v1/rubrics", old).status_code == 401,
        within_s=5,
        what="the end of a revoked key",
    )
    run.compose("up", "--no-deps", "trainer-key")
    new = run.compose(*read).stdout.strip()
    again = run.call("GET", "/v1/rubrics", new).status_code
    run.expect(
        "the trainer's key stays, and a new one is made when it was revoked",
        same and new != old and again == 403,
        f"the revoked one is answered 401, the new one {again} where it lacks the scope",
    )


def back_up_and_restore(run: Run) -> None:
    """Check the commands of docs/deploy.md for backup and restore."""
    run.console.print("Backing PostgreSQL up, dropping the database, and restoring it …")
    before, dump = run.counts(), ROOM / "markscheme.dump"
    with dump.open("wb") as file:
        run.compose(
            "exec",
            "-T",
            "postgres",
            "pg_dump",
            "-U",
            "markscheme",
            "-Fc",
            "markscheme",
            capture_output=False,
            stdout=file,
        )
    first = rubrics(run)
    run.compose("stop", "rubric")
    for command in ("dropdb", "createdb"):
        run.compose("exec", "-T", "postgres", command, "-U", "markscheme", "markscheme")
    with dump.open("rb") as file:
        run.compose(
            "exec",
            "-T",
            "postgres",
            "pg_restore",
            "-U",
            "markscheme",
            "--exit-on-error",
            "-d",
            "markscheme",
            stdin=file,
        )
    run.compose("up", "--detach", "--wait", "--no-deps", "rubric")
    after = run.counts()
    run.expect(
        "a backup restores everything",
        before == after and rubrics(run) == first,
        f"{dump.stat().st_size / 1e6:.1f} MB, {sum(after.values()):,} rows; the service answers "
        "as before",
    )


def rubrics(run: Run) -> Any:
    """Return the service's list of the newest rubrics."""
    return (
        run.call("GET", "/v1/rubrics", run.secrets["MARKSCHEME_API_KEY"]).raise_for_status().json()
    )


def secrets_from_files(run: Run) -> None:
    """Start again with every secret in a file: .env has a word in its place."""
    run.console.print("Starting again with secrets from files …")
    folder = (ROOM / "secrets").resolve()
    folder.mkdir()
    for name, value in run.secrets.items():
        (folder / name).write_text(value + "\n")
    write_settings(dict.fromkeys(run.secrets, "in-a-file"))
    services = {
        service: {
            "environment": {variable: f"/run/secrets/{name}" for variable, name in given.items()},
            "secrets": sorted(set(given.values())),
        }
        for service, given in FROM_FILES.items()
    }
    (ROOM / "secrets.json").write_text(
        json.dumps(
            {
                "services": services,
                "secrets": {name: {"file": str(folder / name)} for name in run.secrets},
            }
        )
    )
    run.files += ["-f", str(ROOM / "secrets.json")]
    run.compose("up", "--detach", "--wait", "rubric")
    run.compose("up", "--no-deps", "trainer-key")
    keys = (run.secrets["MARKSCHEME_API_KEY"], "in-a-file")
    codes = [run.call("GET", "/v1/rubrics", key).status_code for key in keys]
    said = [redis_says(run, given) for given in ("in-a-file", run.secrets["REDIS_PASSWORD"])]
    held = {service for name in HOLDERS for service in run.holders(run.secrets[name])}
    ended = {
        service: run.state(service)["State"]["ExitCode"] for service in ("migrate", "trainer-key")
    }
    run.expect(
        "secrets from files do as well, and then the engine knows none of them",
        codes == [200, 401]
        and "WRONGPASS" in said[0]
        and said[1] == "PONG"
        and not held
        and not any(ended.values()),
        f"the service answers {codes[0]} to the key in the file, {codes[1]} to the word in .env; "
        f"Redis {said[1]} to the password in the file; "
        f"containers that show a secret: {', '.join(sorted(held)) or 'none'}",
    )


def stop(run: Run) -> None:
    """End the service as an operator does."""
    started = time.monotonic()
    run.compose("stop", "rubric")
    took, code = time.monotonic() - started, run.state("rubric")["State"]["ExitCode"]
    run.expect(
        "the service ends by itself within its 30 s",
        code == 0 and took < 30,
        f"status {code} after {took:.0f} s",
    )
