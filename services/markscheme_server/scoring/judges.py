"""The judges of a deployment, by name and by role."""

from collections.abc import Mapping

from markscheme_server.errors import Unprocessable
from markscheme_server.judge.base import Judge, Teacher


class Judges:
    """``roles`` says which judge is rubricator and which is verifier unless a request names another."""

    def __init__(self, by_name: Mapping[str, Judge], roles: Mapping[str, str]) -> None:
        self._by_name, self._roles = by_name, roles

    def get(self, name: str | None, role: str) -> Judge:
        """The judge of this name, else the role's own. Raises 422 for a name that there is not."""
        chosen = self._by_name.get(name or self._roles[role])
        if chosen is None:
            raise Unprocessable(
                f"there is no judge {name!r}; there are: {', '.join(sorted(self._by_name))}",
                code="unknown_judge",
                param="judge",
            )
        return chosen

    def teacher(self) -> Teacher:
        """The model that is distilled. Raises 422 where the deployment has none."""
        chosen = self._by_name.get(self._roles.get("teacher", ""))
        if not isinstance(chosen, Teacher):
            raise Unprocessable(
                "this service has no teacher to ask: set MARKSCHEME_TEACHER_MODEL, or name one under "
                "[roles] in markscheme.toml",
                code="no_teacher",
            )
        return chosen

    async def aclose(self) -> None:
        """Let go of connections."""
        for judge in self._by_name.values():
            await judge.aclose()
