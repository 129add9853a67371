"""`markscheme teams`: teams, their limits and budgets, in the database."""

import sys
from typing import Annotated, get_args

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from markscheme.names import did_you_mean
from markscheme.schema import BudgetPut, TeamName
from markscheme.vocabulary import BudgetWindow, ReuseScope
from markscheme_server.accounts.erasure import ErasureReport, erase_team
from markscheme_server.accounts.unknown_team import unknown_team
from markscheme_server.cli.common import EnvFile, fail, print_table, run_with_store
from markscheme_server.cli.keys import with_authenticator
from markscheme_server.config import Settings
from markscheme_server.errors import NotFound
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import Budget
from markscheme_server.store.store import Store
from markscheme_server.store.teams import UnknownTeam

teams = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Create teams and set their limits and budgets.\n\n"
    "What a team creates belongs to it until it shares it. These commands open the database of "
    "MARKSCHEME_DATABASE_URL or MARKSCHEME_HOME; the service need not run.",
)
Name = Annotated[str, typer.Argument(help="The team.")]


@teams.callback()
def _group(_env_file: EnvFile = None) -> None:
    pass


@teams.command("list")
def list_teams(_env_file: EnvFile = None) -> None:
    """List teams and their settings."""
    rows = [
        (team.name, str(team.rpm) if team.rpm is not None else "-", team.reuse_scope or "-")
        for team in with_authenticator(lambda authenticator: authenticator.teams())
    ]
    print_table(("team", "rpm", "reuse scope"), rows, whole=1)


@teams.command("create")
def create_team(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, '.', '_' and '-'.")],
    _env_file: EnvFile = None,
) -> None:
    """Create a team."""
    try:
        TypeAdapter(TeamName).validate_python(name)
    except ValidationError:
        fail(
            f"{name!r} cannot be a team's name: use at most 64 lower-case letters, digits, '.', "
            "'_' and '-', and begin with a letter or a digit"
        )
    with_authenticator(lambda authenticator: authenticator.create_team(name, actor=Actor()))
    typer.echo(
        f"team {name} created; create a key for it with 'markscheme keys create --team {name} "
        "--scope …'"
    )


@teams.command("limit")
def limit_team(
    name: Name,
    rpm: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Requests a minute.")
    ] = None,
    default: Annotated[
        bool,
        typer.Option("--default", help="Remove the limit; MARKSCHEME_TEAM_RPM applies, if set."),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Limit a team's requests a minute.

    Every worker applies it within a second.
    """
    if (rpm is None) is not default:
        fail("give --rpm N or --default")
    with_authenticator(lambda authenticator: authenticator.limit_team(name, rpm, actor=Actor()))
    typer.echo(
        f"team {name} may send {rpm} requests a minute"
        if rpm is not None
        else f"team {name} has no limit of its own"
    )


@teams.command("set")
def set_team(
    name: Name,
    reuse_scope: Annotated[
        ReuseScope | None,
        typer.Option(
            help="Whose rubrics its groups reuse where a request does not say: own, shared (also "
            "those shared with the team) or organisation (all that are shared with everyone)."
        ),
    ] = None,
    default: Annotated[
        bool,
        typer.Option(
            "--default",
            help="Remove the setting: own rubrics where a group has teacher responses and a "
            "rubric may be induced.",
        ),
    ] = False,
    _env_file: EnvFile = None,
) -> None:
    """Set whose rubrics a team reuses.

    Every worker applies it within a second.
    """
    if (reuse_scope is None) is not default:
        fail(f"give --reuse-scope {'|'.join(get_args(ReuseScope))} or --default")
    values = {"reuse_scope": reuse_scope}
    with_authenticator(lambda authenticator: authenticator.change_team(name, values, actor=Actor()))
    typer.echo(
        f"team {name} has the reuse scope {reuse_scope}"
        if reuse_scope is not None
        else f"team {name} has the default reuse scope"
    )


@teams.command("budget")
def budget_of_team(
    name: Name,
    hard_usd: Annotated[
        float | None, typer.Option(help="No judge is called once this is spent.")
    ] = None,
    soft_usd: Annotated[
        float | None, typer.Option(help="Answers carry a warning once this is spent.")
    ] = None,
    window: Annotated[
        BudgetWindow | None, typer.Option(help="Default: month; total for a run.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="The budget of this run instead of the whole team.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the budget.")] = False,
    _env_file: EnvFile = None,
) -> None:
    """Show, set or remove a team's budgets for judge calls.

    Without --hard-usd, --soft-usd and --remove it shows them. Every worker applies a change
    within a second.
    """
    if remove:
        _remove_budget(name, run)
    elif hard_usd is not None or soft_usd is not None:
        _put_budget(name, run, hard_usd, soft_usd, window)
    elif window is not None:
        fail("give --hard-usd, --soft-usd or both")
    # After a change all are shown; otherwise those that were asked for.
    is_changed = remove or hard_usd is not None or soft_usd is not None
    budgets = _find_budgets(name, None if is_changed else run)
    if not budgets:
        typer.echo(f"team {name} has no budget")
        return
    print_table(
        ("run", "window", "hard USD", "soft USD", "spent USD", "since"),
        [
            (
                budget.run_id or "(all)",
                budget.window,
                *(
                    f"{usd:g}" if usd is not None else "-"
                    for usd in (budget.hard_usd, budget.soft_usd)
                ),
                f"{budget.spent_usd:.4f}",
                f"{budget.since:%Y-%m-%d}" if budget.window != "total" else "ever",
            )
            for budget in budgets
        ],
        whole=0,
    )


def _remove_budget(team: str, run: str | None) -> None:
    async def remove(store: Store, _settings: Settings) -> None:
        if not await store.teams.is_known(team):
            raise await unknown_team(store.teams, team)
        if not await store.budgets.remove(team, run, Actor()):
            of_run = f" of a run {run!r}" if run is not None else ""
            raise NotFound(f"team {team} has no budget{of_run}", code="budget_not_found")

    run_with_store(remove)


def _put_budget(
    team: str,
    run: str | None,
    hard_usd: float | None,
    soft_usd: float | None,
    window: BudgetWindow | None,
) -> None:
    try:
        stated = BudgetPut(hard_usd=hard_usd, soft_usd=soft_usd, window=window)
    except ValidationError as error:
        fail(str(error.errors()[0]["msg"]).removeprefix("Value error, "))

    async def put(store: Store, _settings: Settings) -> Budget:
        try:
            return await store.budgets.put(
                team,
                run,
                hard_usd=stated.hard_usd,
                soft_usd=stated.soft_usd,
                window=stated.window_of(run),
                actor=Actor(),
            )
        except UnknownTeam as error:
            raise await unknown_team(store.teams, team) from error

    run_with_store(put)


def _find_budgets(team: str, run: str | None) -> list[Budget]:
    async def find(store: Store, _settings: Settings) -> list[Budget]:
        if team not in [each.name for each in await store.teams.all()]:
            raise await unknown_team(store.teams, team)
        budgets = await store.budgets.find(team)
        if run is None:
            return budgets
        names = [budget.run_id for budget in budgets if budget.run_id]
        if run not in names:
            raise NotFound(
                f"team {team} has no budget of a run {run!r}{did_you_mean(run, names)}",
                code="budget_not_found",
            )
        return [budget for budget in budgets if budget.run_id == run]

    return run_with_store(find)


@teams.command("erase")
def erase(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    _env_file: EnvFile = None,
) -> None:
    """Erase a team and all that it created, for good.

    Removes its keys, rubrics, verdicts, rollouts, teacher responses, budgets and usage. Keeps
    what other teams made from its rubrics, and the audit trail, which holds names and no texts.
    The name cannot be used again. The service may keep running. Run it again to continue an
    erasure that was stopped.
    """
    if not (yes or _is_terminal()):
        fail("there is no terminal to ask at: add --yes to erase")
    if not yes and not typer.confirm(f"erase team {name} and all that it created?"):
        fail("nothing was erased")
    with Progress(
        TextColumn("erasing {task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=None)

        async def run(store: Store, _settings: Settings) -> ErasureReport:
            return await erase_team(
                store,
                name,
                Actor(),
                on_total=lambda rows: progress.update(bar, total=rows),
                on_batch=lambda batch: progress.update(
                    bar, advance=batch.scanned, description=batch.table
                ),
            )

        done = run_with_store(run)
    typer.echo(f"team {name} is erased; this command removed:")
    for table, rows in done.removed.items():
        typer.echo(f"{rows:>12,}  {table}")
    if done.tombstones:
        typer.echo(
            f"{done.tombstones:,} rubrics remain as ids without content, because other teams' "
            "records refer to them"
        )


def _is_terminal() -> bool:
    return sys.stdin.isatty()
