"""The error for a team that does not exist, for callers who may know every team."""

from markscheme.names import did_you_mean
from markscheme_server.errors import NotFound
from markscheme_server.store.teams import TeamStore


async def unknown_team(teams: TeamStore, name: str, param: str | None = None) -> NotFound:
    """Return the error, with the nearest name that there is.

    It names another team, which only the scope `admin` and commands on the database may see.
    """
    nearest = did_you_mean(name, [team.name for team in await teams.all()])
    return NotFound(f"there is no team {name!r}{nearest}", code="team_not_found", param=param)
