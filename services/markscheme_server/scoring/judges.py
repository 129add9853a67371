"""The judges of a deployment, by name and by role."""

from collections.abc import Mapping

from markscheme.names import did_you_mean
from markscheme_server.errors import Unprocessable
from markscheme_server.judge.base import Judge, Teacher


class Judges:
    """Looks up judges. `roles`: the name of the judge for each role, unless a request names one."""

    def __init__(self, by_name: Mapping[str, Judge], roles: Mapping[str, str]) -> None:
        self._by_name, self._roles = by_name, roles

    def get(self, name: str | None, role: str) -> Judge:
        """Return the judge of this name, or the one for the role. Raises `Unprocessable`."""
        judge = self._by_name.get(name or self._roles[role])
        if judge is None:
            raise Unprocessable(
                f"there is no judge {name!r}; there are: {', '.join(sorted(self._by_name))}"
                f"{did_you_mean(str(name), self._by_name)}",
                code="unknown_judge",
                param="judge",
            )
        return judge

    def find(self, name: str) -> Judge | None:
        """Return the judge of this name, if there is one."""
        return self._by_name.get(name)

    def by_identity(self, identity: str | None) -> Judge | None:
        """Return the judge that verifies under this identity, if the service still has it."""
        found = (each for each in self._by_name.values() if each.verifier_identity == identity)
        return next(found, None)

    def teacher(self) -> Teacher:
        """Return the model that is distilled. Raises `Unprocessable` if there is none."""
        teacher = self._by_name.get(self._roles.get("teacher", ""))
        if not isinstance(teacher, Teacher):
            raise Unprocessable(
                "this service has no teacher to ask: set MARKSCHEME_TEACHER_MODEL, or name one "
                "under [roles] in markscheme.toml",
                code="no_teacher",
            )
        return teacher

    async def aclose(self) -> None:
        """Close the connections of all judges."""
        for judge in self._by_name.values():
            await judge.aclose()
