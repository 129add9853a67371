"""`markscheme keys`: API keys, in the database and without a running service."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar, cast

import typer

from markscheme.vocabulary import SCOPES, Scope
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.cli.common import EnvFile, age_option, fail, print_table, run_with_store
from markscheme_server.config import Settings
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.ids import now
from markscheme_server.store.store import Store
from markscheme_server.store.teams import Key

T = TypeVar("T")

keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Create, list and revoke API keys.\n\n"
    "A key acts for one team, within its scopes: read (rubrics and the teacher bank), score, "
    "induce (create rubrics, fill the bank), admin (teams, keys, budgets). Once a key exists, "
    "every call needs one.\n\n"
    "These commands open the database of MARKSCHEME_DATABASE_URL or MARKSCHEME_HOME. "
    "MARKSCHEME_KEY_PEPPER must be set, to the same value for the service and for these "
    "commands: keys are hashed with it, and no key works with another one.",
)
KeyPrefix = Annotated[
    str, typer.Argument(help="The key, or as much of its beginning as no other key shares.")
]


@keys.callback()
def _group(_env_file: EnvFile = None) -> None:
    pass


@keys.command("list")
def list_keys(
    team: Annotated[str | None, typer.Option(help="Only keys of this team.")] = None,
    _env_file: EnvFile = None,
) -> None:
    """List keys, newest first."""
    found = with_authenticator(lambda authenticator: authenticator.keys(team))
    if not found:
        typer.echo("there are no keys" if team is None else f"team {team} has no keys")
        return
    print_table(
        ("prefix", "team", "scopes", "label", "state", "last used"),
        [
            (
                key.prefix,
                key.team,
                ",".join(key.scopes),
                key.label or "",
                _state(key),
                f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never",
            )
            for key in found
        ],
        whole=1,
    )


@keys.command("create")
def create_key(
    team: Annotated[str, typer.Option(help="The team that the key acts for.")],
    scope: Annotated[
        list[str],
        typer.Option(help="read, score, induce or admin; repeat it, or separate with commas."),
    ],
    expires: Annotated[
        str | None,
        typer.Option(help="Age (90d, 12h) or date (2027-01-31, UTC) at which it expires."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Whose key it is or what it is for, shown in lists.")
    ] = None,
    _env_file: EnvFile = None,
) -> None:
    """Create a key and print it, once.

    The key is alone on the last line of stdout. It cannot be shown again.
    """
    if label is not None and not 0 < len(label) <= 200:
        fail("--label: give 1 to 200 characters")
    scopes = [part.strip() for stated in scope for part in stated.split(",")]
    if unknown := [part for part in scopes if part not in SCOPES]:
        fail(f"there is no scope {unknown[0]!r}: there are {', '.join(SCOPES)}")
    until = _expiry(expires) if expires is not None else None
    secret, key = with_authenticator(
        lambda authenticator: authenticator.create_key(
            team, cast(list[Scope], scopes), label=label, expires_at=until, actor=Actor()
        )
    )
    _show_new(secret, key)


@keys.command("rotate")
def rotate_key(
    key: KeyPrefix,
    overlap: Annotated[
        str, typer.Option(help="How long the old key stays valid beside the new one: 24h, 7d.")
    ] = "24h",
    _env_file: EnvFile = None,
) -> None:
    """Replace a key by a new one with the same scopes.

    The old key stays valid for a while, so that nothing stops.
    """
    age = age_option("--overlap", overlap)
    secret, created = with_authenticator(
        lambda authenticator: authenticator.rotate(key, overlap=age, actor=Actor())
    )
    typer.echo(f"the old key stays valid for at most {overlap}", err=True)
    _show_new(secret, created)


@keys.command("revoke")
def revoke_key(key: KeyPrefix, _env_file: EnvFile = None) -> None:
    """Revoke a key; all workers refuse it within a second."""
    revoked = with_authenticator(lambda authenticator: authenticator.revoke(key, actor=Actor()))
    typer.echo(f"{revoked.prefix} of team {revoked.team} is revoked")


def with_authenticator(work: Callable[[Authenticator], Awaitable[T]]) -> T:
    """Return what `work` does with the teams and keys of the database."""

    def run(store: Store, settings: Settings) -> Awaitable[T]:
        pepper = settings.key_pepper.get_secret_value() if settings.key_pepper is not None else None
        return work(Authenticator(store.teams, operator_key=None, pepper=pepper))

    return run_with_store(run)


def _show_new(secret: str, key: Key) -> None:
    """Print the key alone on stdout, and what to know of it on stderr."""
    ends = f", until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    typer.echo(
        f"{key.prefix}… for team {key.team}: {', '.join(key.scopes)}{ends}. Save it now; it is "
        "not shown again:",
        err=True,
    )
    typer.echo(secret)


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if not key.is_live(now()):
        return f"expired {key.expires_at:%Y-%m-%d}"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "live"


def _expiry(text: str) -> datetime:
    """Read an age from now (`90d`) or a date or time of ISO 8601, in UTC unless it says so."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return now() + age_option("--expires", text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
