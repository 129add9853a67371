"""The commands ``markscheme teams`` and ``markscheme keys``: they work on the database, with no service running."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar, cast, get_args

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from markscheme.schema import BudgetPut, TeamName
from markscheme.vocabulary import SCOPES, BudgetWindow, ReuseScope, Scope
from markscheme_server import logs
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.erasure import erase_team
from markscheme_server.cli.commands import EnvFile, fail, migrate_database, read_settings
from markscheme_server.cli.prune import parse_age
from markscheme_server.config import Settings
from markscheme_server.errors import ServiceError
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import UnknownTeam
from markscheme_server.store.engine.ids import now
from markscheme_server.store.store import Store
from markscheme_server.store.teams import Key

T = TypeVar("T")

teams = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Teams of the organisation. What a team makes is its own until it shares it.",
)
keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=(
        "API keys. A key speaks for a team and may do what its scopes say: read (rubrics and the teacher bank), score, "
        "induce (make rubrics, fill the bank), admin (teams, keys). Once there is one, every call needs one.\n\n"
        "MARKSCHEME_KEY_PEPPER must be set, to the same for the service and for these commands: keys are stored under it, "
        "and with another one none of them opens anything."
    ),
)


@teams.callback()
@keys.callback()
def _before_any(_env_file: EnvFile = None) -> None:
    pass


@teams.command("create")
def create_team(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, '.', '_' and '-'.")],
    _env_file: EnvFile = None,
) -> None:
    """Make a team."""
    try:
        TypeAdapter(TeamName).validate_python(name)
    except ValidationError:
        fail(
            f"{name!r} cannot be a team's name: lower-case letters, digits, '.', '_' and '-', 64 at most, beginning "
            "with a letter or a digit"
        )
    _do(lambda identity: identity.create_team(name, actor=Actor()))
    typer.echo(
        f"team {name} created; make a key for it with 'markscheme keys create --team {name} --scope …'"
    )


@teams.command("list")
def list_teams(_env_file: EnvFile = None) -> None:
    """List the teams, with what is set for them."""
    for team in _do(lambda identity: identity.teams()):
        said = [team.name]
        if team.rpm is not None:
            said.append(f"{team.rpm} requests a minute")
        if team.reuse_scope is not None:
            said.append(f"reuse scope {team.reuse_scope}")
        typer.echo("  ".join(said))


@teams.command("limit")
def limit_team(
    name: Annotated[str, typer.Argument(help="The team.")],
    rpm: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Requests a minute.")
    ] = None,
    default: Annotated[
        bool,
        typer.Option(
            "--default", help="The deployment's limit again (MARKSCHEME_TEAM_RPM), if it has one."
        ),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Limit a team's requests a minute: within a second it holds at every worker."""
    if (rpm is None) is not default:
        fail("say --rpm N or --default")
    _do(lambda identity: identity.limit_team(name, rpm, actor=Actor()))
    typer.echo(
        f"team {name} may send {rpm} requests a minute"
        if rpm is not None
        else f"team {name} has the deployment's limit, if there is one"
    )


@teams.command("set")
def set_team(
    name: Annotated[str, typer.Argument(help="The team.")],
    reuse_scope: Annotated[
        ReuseScope | None,
        typer.Option(
            help=(
                "Whose rubrics its groups get where a request does not say: its own, also those shared with it, or also the "
                "organisation's."
            )
        ),
    ] = None,
    default: Annotated[
        bool,
        typer.Option(
            "--default",
            help="The default again: its own where there is a teacher to "
            "go by and a rubric may be induced.",
        ),
    ] = False,
) -> None:
    """Set whose rubrics a team reuses: within a second it holds at every worker."""
    if (reuse_scope is None) is not default:
        fail(f"say --reuse-scope {'|'.join(get_args(ReuseScope))} or --default")
    _do(lambda identity: identity.change_team(name, {"reuse_scope": reuse_scope}, actor=Actor()))
    typer.echo(
        f"team {name} has the reuse scope {reuse_scope}"
        if reuse_scope is not None
        else f"team {name} has the default reuse scope"
    )


@teams.command("budget")
def budget_of_team(
    name: Annotated[str, typer.Argument(help="The team.")],
    hard_usd: Annotated[
        float | None, typer.Option(help="No more calls are made once this is spent.")
    ] = None,
    soft_usd: Annotated[
        float | None, typer.Option(help="From here on answers carry a warning.")
    ] = None,
    window: Annotated[
        BudgetWindow | None, typer.Option(help="Default: month, and total for a run.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="The budget of this run, instead of that on everything.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the budget away.")] = False,
    _env_file: EnvFile = None,
) -> None:
    """Set or remove a team's budget for judging; with none of these, show its budgets. It holds within a second."""
    if remove:
        if not _with_store(lambda store: store.budgets.remove(name, run, Actor())):
            fail(f"there is no such budget of {name!r}")
    elif hard_usd is not None or soft_usd is not None:
        try:
            wanted = BudgetPut(hard_usd=hard_usd, soft_usd=soft_usd, window=window)
        except ValidationError as error:
            fail(str(error.errors()[0]["msg"]).removeprefix("Value error, "))
        try:
            _with_store(
                lambda store: store.budgets.put(
                    name,
                    run,
                    hard_usd=wanted.hard_usd,
                    soft_usd=wanted.soft_usd,
                    window=wanted.window_of(run),
                    actor=Actor(),
                )
            )
        except UnknownTeam:
            fail(f"there is no team {name!r}")
    elif window is not None:
        fail("say --hard-usd, --soft-usd or both")
    try:
        found = _with_store(lambda store: store.budgets.find(name))
    except ValueError as error:  # not even a team's name
        fail(str(error))
    table = Table(box=None, pad_edge=False)
    for column in ("run", "window", "hard USD", "soft USD", "spent USD", "since"):
        table.add_column(column, justify="right" if "USD" in column else "left")
    for budget in found:
        limits = (
            f"{usd:g}" if usd is not None else "-" for usd in (budget.hard_usd, budget.soft_usd)
        )
        table.add_row(
            budget.run_id or "(all)",
            budget.window,
            *limits,
            f"{budget.spent_usd:.4f}",
            f"{budget.since:%Y-%m-%d}" if budget.window != "total" else "ever",
        )
    Console(markup=False, width=None if sys.stdout.isatty() else 160).print(
        table if found else f"team {name} has no budget"
    )


@keys.command("create")
def create_key(
    team: Annotated[str, typer.Option(help="The team that it speaks for.")],
    scope: Annotated[
        list[str], typer.Option(help="read, score, induce or admin; several times, or with commas.")
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            help="After which time it ends (90d, 12h), or when "
            "(2027-01-31, in UTC); default: never."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Whose it is or what for, to know it by in lists.")
    ] = None,
    _env_file: EnvFile = None,
) -> None:
    """Make a key. It is printed once, alone on the last line, and cannot be had again."""
    if label is not None and not 0 < len(label) <= 200:
        fail("--label: 200 characters at most")
    scopes = [part.strip() for given in scope for part in given.split(",")]
    if unknown := [part for part in scopes if part not in SCOPES]:
        fail(f"there is no scope {unknown[0]!r}: there are {', '.join(SCOPES)}")
    until = _time(expires) if expires is not None else None
    secret, key = _do(
        lambda identity: identity.create_key(
            team, cast(list[Scope], scopes), label=label, expires_at=until, actor=Actor()
        )
    )
    _show_new(secret, key)


@keys.command("list")
def list_keys(
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    _env_file: EnvFile = None,
) -> None:
    """List the keys, newest first."""
    found = _do(lambda identity: identity.keys(team))
    table = Table(box=None, pad_edge=False)
    for name in ("prefix", "team", "scopes", "label", "state", "last used"):
        table.add_column(name, no_wrap=name == "prefix")
    for key in found:
        table.add_row(
            key.prefix,
            key.team,
            ",".join(key.scopes),
            key.label or "",
            _state(key),
            f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never",
        )
    Console(markup=False, width=None if sys.stdout.isatty() else 160).print(table)


@keys.command("rotate")
def rotate_key(
    key: Annotated[
        str, typer.Argument(help="The old key, or as much of its beginning as no other key has.")
    ],
    overlap: Annotated[
        str, typer.Option(help="How long the old key goes on beside the new one: 24h, 7d.")
    ] = "24h",
    _env_file: EnvFile = None,
) -> None:
    """Replace a key by a new one that may do the same. The old one goes on for a while, so that nothing stops."""
    secret, made = _do(
        lambda identity: identity.rotate(key, overlap=_age("--overlap", overlap), actor=Actor())
    )
    typer.echo(f"the old key goes on for {overlap} at most", err=True)
    _show_new(secret, made)


@keys.command("revoke")
def revoke_key(
    key: Annotated[
        str, typer.Argument(help="The key, or as much of its beginning as no other key has.")
    ],
    _env_file: EnvFile = None,
) -> None:
    """End a key: within a second it opens nothing, at any worker of any replica."""
    revoked = _do(lambda identity: identity.revoke(key, actor=Actor()))
    typer.echo(f"{revoked.prefix} of team {revoked.team} is revoked")


@teams.command("erase")
def erase(
    name: Annotated[str, typer.Argument(help="The team.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    _env_file: EnvFile = None,
) -> None:
    """Erase a team: its keys, rubrics, verdicts, rollouts, teacher responses, budgets and books. Nobody can undo it.

    The name is given to no other team. What other teams made of its rubrics is theirs and stays, and so does the audit
    trail, which holds names and no texts. The service may go on running. Running it again goes on where it stopped.
    """
    if not (yes or _at_a_terminal()):
        fail("there is no terminal to ask at: add --yes to erase")
    if not yes and not typer.confirm(f"erase team {name} and all that it made?"):
        fail("nothing was erased")
    console = Console(stderr=True)
    with Progress(
        TextColumn("erasing {task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=None)
        done = _with_store(
            lambda store: erase_team(
                store,
                name,
                Actor(),
                on_total=lambda rows: progress.update(bar, total=rows),
                on_window=lambda window: progress.update(
                    bar, advance=window.walked, description=window.table
                ),
            )
        )
    typer.echo(f"team {name} is erased; removed by this command:")
    for table, rows in done.removed.items():
        typer.echo(f"{rows:>12,}  {table}")
    if done.tombstones:
        typer.echo(
            f"{done.tombstones:,} rubrics are left as ids without content: other teams' records refer to them"
        )


def _do(work: Callable[[Authenticator], Awaitable[T]]) -> T:
    def over(store: Store, settings: Settings) -> Awaitable[T]:
        pepper = settings.key_pepper.get_secret_value() if settings.key_pepper is not None else None
        return work(Authenticator(store.teams, operator_key=None, pepper=pepper))

    return _with_settings_and_store(over)


def _with_store(work: Callable[[Store], Awaitable[T]]) -> T:
    return _with_settings_and_store(lambda store, _settings: work(store))


def _with_settings_and_store(work: Callable[[Store, Settings], Awaitable[T]]) -> T:
    settings = read_settings()
    logs.configure("warning")
    migrate_database(settings)

    async def run() -> T:
        store = Store(settings.sqlalchemy_url)
        try:
            return await work(store, settings)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except ServiceError as error:
        fail(error.message)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fail(f"the database did not answer ({type(error).__name__}); check MARKSCHEME_DATABASE_URL")


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _show_new(secret: str, key: Key) -> None:
    """The key alone on standard output; what is to know of it beside that."""
    ends = f", until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    typer.echo(
        f"{key.prefix}… for team {key.team}: {', '.join(key.scopes)}{ends}. Keep it now; it is not shown again:",
        err=True,
    )
    typer.echo(secret)


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if not key.is_live(now()):
        return f"expired {key.expires_at:%Y-%m-%d}"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "live"


def _age(option: str, text: str) -> timedelta:
    try:
        return parse_age(text)
    except ValueError as error:
        fail(f"{option} {text}: {error}")


def _time(text: str) -> datetime:
    """``90d`` from now, or a date or time of ISO 8601, in UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return now() + _age("--expires", text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
