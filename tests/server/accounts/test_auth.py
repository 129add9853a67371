"""Keys that meet others on the way: the same prefix, a revocation, many guesses."""

from datetime import timedelta

import pytest

from markscheme_server.accounts import auth
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.domain import keys
from markscheme_server.errors import Conflict, Unauthorised
from markscheme_server.store.audit import Actor
from markscheme_server.store.store import Store
from server.organisation import PEPPER

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def authenticator(store: Store) -> Authenticator:
    return Authenticator(store.teams, operator_key=None, pepper=PEPPER)


async def test_two_keys_never_begin_alike(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = keys.new_key(), keys.new_key()
    made = iter([first, first, other])
    monkeypatch.setattr(keys, "new_key", lambda: next(made))
    for expected in (first, other):
        secret, key = await authenticator.create_key("red", ["read"], actor=Actor())
        assert (secret, key.prefix) == (expected, keys.prefix(expected))


async def test_a_key_that_is_revoked_while_it_is_rotated_leaves_no_new_one(
    authenticator: Authenticator, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, key = await authenticator.create_key("red", ["read"], actor=Actor())
    add_key = store.teams.add_key

    async def add_and_revoke(*arguments: object) -> None:
        await add_key(*arguments)
        await authenticator.revoke(secret, actor=Actor())

    monkeypatch.setattr(store.teams, "add_key", add_and_revoke)
    with pytest.raises(Conflict, match="was revoked meanwhile; create a new one"):
        await authenticator.rotate(key.prefix, overlap=timedelta(hours=1), actor=Actor())
    found = await authenticator.keys("red")
    assert len(found) == 2
    assert all(each.revoked_at is not None for each in found)


async def test_guesses_do_not_fill_the_memory_and_a_key_works_after_them(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_CACHED", 3)
    secret, _ = await authenticator.create_key("red", ["read"], actor=Actor())
    for _ in range(8):
        with pytest.raises(Unauthorised):
            await authenticator.authenticate(keys.new_key())
        assert len(authenticator._cache) <= 3
    caller = await authenticator.authenticate(secret)
    assert caller.team == "red"
    await authenticator.drain()
