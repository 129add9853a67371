"""Test the audit trail: each change of a team or key has an entry, in the same transaction."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httpx
import pytest
import sqlalchemy as sa

from markscheme import Client
from markscheme.errors import NotFound
from markscheme_server.config import Settings
from markscheme_server.domain import keys
from markscheme_server.store.audit import Actor, Entry, record
from markscheme_server.store.engine.database import ALL_TEAMS, NO_TEAM, team_scope
from markscheme_server.store.engine.ids import now
from markscheme_server.store.store import Store
from markscheme_server.store.tables import audit_entries
from markscheme_server.store.teams import Key
from server.deployment import CRITERIA, Deployment
from server.organisation import OPERATOR, PROMPT, Keys, call

OPERATORS = ("default", None)
T0 = now()


def on_store(url: str, work: Callable[[Store], Any]) -> Any:
    async def run() -> Any:
        store = Store(Settings(_env_file=None, database_url=url).sqlalchemy_url)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def trail(url: str, **wanted: Any) -> list[Entry]:
    """Entries, oldest first."""
    asked = {"team": None, "subject": None, "action": None, "after": None, "limit": 100} | wanted
    entries, more = on_store(url, lambda store: store.audit.page(**asked))
    assert not more
    return list(reversed(entries))


def told(entries: list[Entry]) -> list[tuple[str, str | None, str, str]]:
    return [(entry.team, entry.key, entry.action, entry.subject) for entry in entries]


def test_what_the_commands_do_is_the_operators(organisation: Keys) -> None:
    key = organisation.key("red", "read", label="anna")
    new = organisation.rotate(key, overlap_s=60)
    organisation.revoke(key)
    organisation.revoke(key)  # has ended already: nothing changes, and nothing is told
    organisation.limit("red", 600)
    organisation.limit("red", 600)
    entries = trail(organisation.url)
    old, fresh = f"key:{keys.prefix(key)}", f"key:{keys.prefix(new)}"
    assert told(entries) == [
        (*OPERATORS, action, subject)
        for action, subject in (
            ("team.created", "team:red"),
            ("team.created", "team:blue"),
            ("key.created", old),
            ("key.created", fresh),
            ("key.rotated", old),
            ("key.revoked", old),
            ("team.changed", "team:red"),
        )
    ]
    created, rotated, changed = entries[2], entries[4], entries[6]
    assert created.detail == {"team": "red", "scopes": ["read"], "expires_at": None}
    assert (rotated.detail["to"], rotated.detail["team"]) == (keys.prefix(new), "red")
    assert rotated.detail["expires_at"].endswith("+00:00")
    assert changed.detail == {"rpm": 600, "rpm_before": None}
    for secret in (key, new, key[11:], "anna"):
        assert secret not in repr(entries)


def test_what_comes_over_http_is_the_keys(organisation: Keys, start: Callable[..., str]) -> None:
    admin = organisation.key("red", "admin")
    url = start(api_key=OPERATOR)
    before = len(trail(organisation.url))
    assert call(url, "POST", "/v1/teams", admin, {"name": "green"}).status_code == 201
    assert call(url, "PATCH", "/v1/teams/green", admin, {"rpm": 5}).status_code == 200
    made = call(
        url,
        "POST",
        "/v1/keys",
        admin,
        {"team": "green", "scopes": ["read"], "expires_at": "2999-01-01T00:00:00Z"},
    ).json()["prefix"]
    new = call(url, "POST", f"/v1/keys/{made}:rotate", admin, {}).json()["prefix"]
    assert call(url, "DELETE", f"/v1/keys/{made}", admin).status_code == 200
    assert call(url, "DELETE", f"/v1/keys/{new}", OPERATOR).status_code == 200
    # What is refused, and what is only looked at or used, leaves nothing.
    for method, path, body, status in (
        ("POST", "/v1/teams", {"name": "green"}, 409),
        ("PATCH", "/v1/teams/nobody", {"rpm": 5}, 404),
        ("POST", "/v1/keys", {"team": "nobody", "scopes": ["read"]}, 404),
        ("GET", "/v1/keys", None, 200),
        ("DELETE", "/v1/keys/mk_00000000", None, 404),
        ("POST", f"/v1/keys/{made}:rotate", {}, 409),
    ):
        assert call(url, method, path, admin, body).status_code == status
    by = ("red", keys.prefix(admin))
    assert told(trail(organisation.url)[before:]) == [
        (*by, "team.created", "team:green"),
        (*by, "team.changed", "team:green"),
        (*by, "key.created", f"key:{made}"),
        (*by, "key.created", f"key:{new}"),
        (*by, "key.rotated", f"key:{made}"),
        (*by, "key.revoked", f"key:{made}"),
        (*OPERATORS, "key.revoked", f"key:{new}"),
    ]
    assert [
        entry.action for entry in trail(organisation.url, team="red", subject=f"key:{made}")
    ] == ["key.created", "key.rotated", "key.revoked"]


@pytest.mark.parametrize(
    "change",
    [
        lambda store, actor: store.teams.create("green", actor),
        lambda store, actor: store.teams.limit("red", 5, actor),
        lambda store, actor: store.teams.revoke("mk_abcdefgh", actor),
        lambda store, actor: store.teams.replace(
            "mk_abcdefgh", by="mk_ABCDEFGH", at=T0, actor=actor
        ),
        lambda store, actor: store.teams.add_key(
            Key("mk_ABCDEFGH", "red", ("read",), None, T0, None, None, None), "e" * 64, actor
        ),
    ],
    ids=["team.created", "team.changed", "key.revoked", "key.rotated", "key.created"],
)
def test_without_its_entry_there_is_no_change(
    organisation: Keys, change: Callable[[Store, Actor], Any]
) -> None:
    async def add(store: Store) -> None:
        await store.teams.add_key(
            Key("mk_abcdefgh", "red", ("read",), None, T0, None, None, None), "d" * 64, Actor()
        )

    async def everything(store: Store) -> Any:
        return await store.teams.all(), await store.teams.keys()

    on_store(organisation.url, add)
    before = on_store(organisation.url, everything), trail(organisation.url)
    nobody = Actor("default", cast(Any, object()))  # cannot be written
    with pytest.raises(sa.exc.StatementError):
        on_store(organisation.url, lambda store: change(store, nobody))
    assert (on_store(organisation.url, everything), trail(organisation.url)) == before


def test_who_did_what_is_on_the_trail_for_good(deployment: Deployment) -> None:
    red = deployment.team("red")
    url = deployment.start()
    with Client(url, red) as client:
        made = client.create_rubric(PROMPT, CRITERIA)
        client.change_rubric(made.id, visibility="organisation", retired=True)
        client.fork_rubric(made.id, [{"text": "It names blue.", "points": 1}])
        with pytest.raises(NotFound):
            client.change_rubric("rub_0", retired=True)
    deployment.admin(url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 1, "window": "day"})
    entries = deployment.admin(url, "GET", "/v1/audit").json()["data"]
    prefix = red[:11]
    of_rubrics = [
        (e["action"], e["team"], e["key"]) for e in entries if e["subject"].startswith("rubric:")
    ]
    assert of_rubrics == [
        ("rubric.forked", "red", prefix),
        ("rubric.changed", "red", prefix),
        ("rubric.imported", "red", prefix),
    ]
    changed = deployment.admin(url, "GET", "/v1/audit", params={"action": "rubric.changed"}).json()[
        "data"
    ]
    assert [e["detail"] for e in changed] == [{"visibility": "organisation", "retired": True}]
    budget = deployment.admin(url, "GET", "/v1/audit", params={"action": "budget.set"}).json()[
        "data"
    ]
    assert [(e["team"], e["key"], e["detail"]["hard_usd"]) for e in budget] == [
        ("default", None, 1.0)
    ]
    first = deployment.admin(url, "GET", "/v1/audit", params={"limit": 2, "team": "red"}).json()
    rest = deployment.admin(
        url, "GET", "/v1/audit", params={"after": first["data"][-1]["id"], "team": "red"}
    ).json()
    assert first["has_more"]
    assert not rest["has_more"]
    assert [e["id"] for e in first["data"] + rest["data"]] == [
        e["id"] for e in entries if e["team"] == "red"
    ]
    assert (
        httpx.get(
            f"{url}/v1/audit", headers={"Authorization": f"Bearer {red}"}, timeout=60
        ).status_code
        == 403
    )


async def test_no_entry_of_the_trail_is_changed_or_removed(store: Store) -> None:
    async with store.database.writing(team_scope("red")) as connection:
        await record(connection, Actor("red"), "test", "team:red")
    for statement in (sa.update(audit_entries).values(action="other"), sa.delete(audit_entries)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            async with store.database.writing(ALL_TEAMS) as connection:
                await connection.execute(statement)
    async with store.database.reading(NO_TEAM) as connection:
        hidden = store.database.engine.dialect.name == "postgresql"
        assert len((await connection.execute(sa.select(audit_entries))).all()) == (
            0 if hidden else 2
        )
