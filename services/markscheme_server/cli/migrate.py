"""`markscheme migrate`: bring the database to the newest revision."""

import typer

from markscheme_server.cli.common import (
    EnvFile,
    migrate_database,
    name_database,
    read_settings,
)


def migrate(_env_file: EnvFile = None) -> None:
    """Bring the database to the newest revision, or create it."""
    settings = read_settings()
    before, after = migrate_database(settings)
    if before == after:
        change = ", as before"
    else:
        change = f"; it was at {before}" if before else "; it was empty"
    typer.echo(f"the database {name_database(settings)} is at revision {after}{change}")
