"""Idempotency keys against a model of them, and under concurrent senders, on both databases."""

import asyncio
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from markscheme_server.config import Settings
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.idempotency import (
    Answered,
    IdempotencyStore,
    KeyReused,
    RequestKey,
    Running,
    Started,
)
from markscheme_server.store.maintenance.migrate import migrate
from markscheme_server.store.store import Store
from markscheme_server.store.tables import idempotency_keys

T = TypeVar("T")
LEASE_S = 60.0
FIRST, SECOND = "f" * 64, "e" * 64


@pytest.fixture
def url(database_url: str) -> str:
    return Settings(_env_file=None, database_url=database_url, judge="builtin").sqlalchemy_url


@pytest.fixture
async def store(url: str) -> Any:
    made = Store(url, claim_lease_s=LEASE_S)
    await migrate(made.database)
    yield made
    await made.database.close()


async def expire(store: Store, address: RequestKey) -> bool:
    """Let the lease run out, as time does when an owner was killed; whether there was one."""
    k = idempotency_keys.c
    async with store.database.writing(ALL_TEAMS) as connection:
        changed = await connection.execute(
            sa.update(idempotency_keys)
            .values(expires_at=1.0)
            .where(
                k.team == address.team,
                k.route == address.route,
                k.key == address.key,
                k.status.is_(None),
            )
        )
        return bool(changed.rowcount)


@dataclass
class Row:
    """What the model knows of a key. ``owner``: who may end it; ``answer``: how it ended."""

    fingerprint: str
    owner: str
    expired: bool = False
    answer: tuple[int, str] | None = None


def machine(store: Store, loop: asyncio.AbstractEventLoop) -> type[RuleBasedStateMachine]:
    class Keys(RuleBasedStateMachine):
        """Senders come, come again, send something else, die, and finish late."""

        attempts: Bundle[tuple[RequestKey, str]] = Bundle("attempts")

        @initialize()
        def start(self) -> None:
            self.room = secrets.token_hex(6)
            self.rows: dict[RequestKey, Row] = {}
            self.keys: IdempotencyStore = store.idempotency

        def run(self, work: Awaitable[T]) -> T:
            return loop.run_until_complete(work)  # type: ignore[arg-type]

        @rule(
            target=attempts,
            team=st.sampled_from(["red", "blue"]),
            route=st.sampled_from(["/a", "/b"]),
            key=st.sampled_from(["k1", "k2"]),
            fingerprint=st.sampled_from([FIRST, SECOND]),
        )
        def send(self, team: str, route: str, key: str, fingerprint: str) -> Any:
            address = RequestKey(f"{self.room}-{team}", route, key)
            row = self.rows.get(address)
            standing = self.run(self.keys.begin(address, fingerprint))
            if row is not None and row.fingerprint != fingerprint:
                assert standing == KeyReused()
            elif row is not None and row.answer is not None:
                assert standing == Answered(*row.answer)
            elif row is not None and not row.expired:
                assert isinstance(standing, Running)
                assert 0 < standing.lease_left_s <= LEASE_S
            else:
                assert isinstance(standing, Started)
                assert row is None or standing.owner != row.owner
                self.rows[address] = Row(fingerprint, standing.owner)
                return address, standing.owner
            return multiple()

        def _is_owner(self, address: RequestKey, owner: str) -> bool:
            row = self.rows.get(address)
            return row is not None and row.owner == owner and row.answer is None

        @rule(
            attempt=attempts,
            status=st.sampled_from([200, 201, 422]),
            body=st.text(
                st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8
            ),
        )
        def finish(self, attempt: tuple[RequestKey, str], status: int, body: str) -> None:
            address, owner = attempt
            ours = self._is_owner(address, owner)
            assert self.run(self.keys.finish(address, owner, status=status, body=body)) is ours
            if ours:
                self.rows[address].answer = (status, body)

        @rule(attempt=attempts)
        def renew(self, attempt: tuple[RequestKey, str]) -> None:
            ours = self._is_owner(*attempt)
            assert self.run(self.keys.renew(*attempt)) is ours
            if ours:
                self.rows[attempt[0]].expired = False

        @rule(attempt=consumes(attempts))
        def fail(self, attempt: tuple[RequestKey, str]) -> None:
            self.run(self.keys.release(*attempt))
            if self._is_owner(*attempt):
                del self.rows[attempt[0]]

        @rule(attempt=attempts)
        def crash(self, attempt: tuple[RequestKey, str]) -> None:
            row = self.rows.get(attempt[0])
            running = row is not None and row.answer is None
            assert self.run(expire(store, attempt[0])) is running
            if row is not None and running:
                row.expired = True

    return Keys


@pytest.mark.parametrize(
    ("runs", "steps"),
    [(25, 25), pytest.param(200, 50, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_a_key_behaves_as_its_model(runs: int, steps: int, url: str) -> None:
    loop = asyncio.new_event_loop()
    store = Store(url, claim_lease_s=LEASE_S)
    loop.run_until_complete(migrate(store.database))
    try:
        run_state_machine_as_test(
            machine(store, loop),
            settings=settings(max_examples=runs, stateful_step_count=steps, deadline=None),
        )
    finally:
        loop.run_until_complete(store.database.close())
        loop.close()


async def test_of_many_senders_at_once_one_does_the_work(store: Store) -> None:
    address = RequestKey("t", "/r", "key")
    standings = await asyncio.gather(*(store.idempotency.begin(address, FIRST) for _ in range(16)))
    assert sum(isinstance(s, Started) for s in standings) == 1
    assert sum(isinstance(s, Running) for s in standings) == 15


async def test_of_many_heirs_one_takes_a_dead_senders_row_over(store: Store) -> None:
    address = RequestKey("t", "/r", "key")
    first = await store.idempotency.begin(address, FIRST)
    assert isinstance(first, Started)
    await expire(store, address)
    heirs = [
        s
        for s in await asyncio.gather(*(store.idempotency.begin(address, FIRST) for _ in range(8)))
        if isinstance(s, Started)
    ]
    assert len(heirs) == 1
    assert await store.idempotency.finish(address, first.owner, status=200, body="late") is False
    assert (
        await store.idempotency.finish(address, heirs[0].owner, status=200, body="theirs") is True
    )
    assert await store.idempotency.begin(address, FIRST) == Answered(200, "theirs")


async def test_an_answer_outlives_the_process(url: str) -> None:
    address = RequestKey("t", "/r", "k" * 255)
    for _ in range(2):
        store = Store(url)
        await migrate(store.database)
        standing = await store.idempotency.begin(address, FIRST)
        if isinstance(standing, Started):
            await store.idempotency.finish(
                address, standing.owner, status=201, body='{"ü": "\\u0000"}'
            )
        await store.database.close()
    assert standing == Answered(201, '{"ü": "\\u0000"}')
