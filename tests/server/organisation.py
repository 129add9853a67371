"""An organisation's teams and keys, and calls that they make over the wire."""

import asyncio
import atexit
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import sqlalchemy as sa

from markscheme_server.accounts.auth import Authenticator
from markscheme_server.config import Settings
from markscheme_server.domain import keys
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine.database import ALL_TEAMS, Database, create_engine
from markscheme_server.store.engine.ids import now
from markscheme_server.store.store import Store
from markscheme_server.store.tables import api_keys, rubrics
from markscheme_server.store.teams import TeamStore

PEPPER = "a pepper for the tests"
OPERATOR = "the operator's own key"
PROMPT = "Name a colour."
RUBRIC = {
    "prompt": PROMPT,
    "criteria": [
        {"text": "It names red.", "points": 1, "check": {"kind": "contains", "texts": ["red"]}}
    ],
}
SCORE = {
    "reuse": "frozen",
    "groups": [{"id": "g", "prompt": PROMPT, "rollouts": [{"id": "r", "text": "red"}]}],
}
_HTTP = httpx.Client(timeout=60, verify=False)
atexit.register(_HTTP.close)


class Keys:
    """Teams and keys of a database that is migrated, made as the commands make them."""

    def __init__(self, url: str, pepper: str = PEPPER) -> None:
        self.url, self.pepper = url, pepper
        self._runner = asyncio.Runner()
        # A whole store prepares its statements, which takes longer than all that is done here.
        self._database = Database(
            create_engine(Settings(_env_file=None, database_url=url).sqlalchemy_url)
        )
        self._teams = TeamStore(self._database)

    def do(self, work: Callable[[Authenticator], Any]) -> Any:
        return self._runner.run(
            work(Authenticator(self._teams, operator_key=None, pepper=self.pepper))
        )

    def close(self) -> None:
        self._runner.run(self._database.close())
        self._runner.close()

    def team(self, name: str) -> None:
        self.do(lambda identity: identity.create_team(name, actor=Actor()))

    def limit(self, team: str, rpm: int | None) -> None:
        self.do(lambda identity: identity.limit_team(team, rpm, actor=Actor()))

    def key(self, team: str, *scopes: str, **options: Any) -> str:
        secret, _ = self.do(
            lambda identity: identity.create_key(team, scopes, actor=Actor(), **options)
        )
        return str(secret)

    def revoke(self, key: str) -> None:
        self.do(lambda identity: identity.revoke(keys.prefix(key), actor=Actor()))

    def expire(self, key: str) -> None:
        """Let a key's time have passed."""

        async def change() -> None:
            async with self._database.writing(ALL_TEAMS) as connection:
                past = sa.update(api_keys).values(expires_at=now() - timedelta(seconds=1))
                await connection.execute(past.where(api_keys.c.prefix == keys.prefix(key)))

        self._runner.run(change())

    def hide_rubrics(self) -> None:
        """Make every rubric private, so that no later team sees those of an ended test."""

        async def change() -> None:
            async with self._database.writing(ALL_TEAMS) as connection:
                await connection.execute(sa.update(rubrics).values(visibility="private"))

        self._runner.run(change())

    def rotate(self, key: str, overlap_s: float) -> str:
        secret, _ = self.do(
            lambda i: i.rotate(
                keys.prefix(key), overlap=timedelta(seconds=overlap_s), actor=Actor()
            )
        )
        return str(secret)


def call(url: str, method: str, path: str, key: str | None, body: Any = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return _HTTP.request(
        method,
        url + path,
        json=body,
        headers=headers,
        params={"prompt": PROMPT} if (method, path) == ("GET", "/v1/teacher-responses") else None,
    )


def dump(url: str) -> str:
    """Every value of every table, as text."""

    async def rows() -> str:
        store = Store(Settings(_env_file=None, database_url=url).sqlalchemy_url)
        try:
            async with store.database.reading(ALL_TEAMS) as connection:
                names = await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
                found = [
                    repr(row)
                    for name in names
                    for row in await connection.execute(sa.select("*").select_from(sa.table(name)))
                ]
            return "\n".join(found)
        finally:
            await store.close()

    return asyncio.run(rows())


def rubric(word: str) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "criteria": [
            {
                "text": f"It says {word}.",
                "points": 1,
                "check": {"kind": "contains", "texts": [word]},
            }
        ],
    }


class Member:
    """A team's key at a service; `team` is its name where a test asks for that."""

    def __init__(self, url: str, key: str, team: str = "") -> None:
        self.url, self.key, self.team = url, key, team

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        return call(self.url, method, path, self.key, body)

    def make(self, word: str) -> str:
        return str(self("POST", "/v1/rubrics", rubric(word)).json()["id"])

    def sees(self, name: str) -> bool:
        one = self("GET", f"/v1/rubrics/{name}").status_code == 200
        assert one == (
            name in [r["id"] for r in self("GET", "/v1/rubrics?limit=100").json()["data"]]
        )
        return one

    def chosen(self) -> str | None:
        """Return the rubric that a frozen score uses for the prompt."""
        found = self("POST", "/v1/scores", SCORE).json()["groups"][0]["rubric"]
        return str(found["id"]) if found else None


Team = Callable[[str], Member]
