"""Groups whose rollouts arrive one request each, at any process, and how they were scored.

A group is begun by its first rollout, and it stays: a rollout that is sent again finds it, also
after a restart. Arrivals of a group queue for its row, so that it never holds more rollouts than
its size.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from markscheme_server.domain.trajectory import Response, response_key
from markscheme_server.store.claims import Claim, ClaimLost, ClaimStore
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import gathered_groups, gathered_rollouts, texts
from markscheme_server.store.texts import response_row, stored_response

CHARACTERS_PER_WEIGHT = 8192
"""Characters of a response that weigh as much as an arrival without any."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A rollout that arrives, and its group.

    `terms`: the hash of what all requests of the group have in common. `wait_s`: seconds until the
    group is scored although it is not whole, if this rollout is its first. `asked_s`: for a rollout
    that its trainer does not name, seconds that the request waits; `GatheringStore.leave` ends it.
    """

    team: str
    group_id: str
    terms: str
    size: int
    wait_s: float
    rollout_id: str
    response: Response
    truncated: bool
    asked_s: float | None = None


@dataclass(frozen=True, slots=True)
class GroupState:
    """How far a group is. `attempts`: how often it was scored. `left_s`: of the wait."""

    size: int
    received: int
    attempts: int
    left_s: float

    @property
    def is_due(self) -> bool:
        """Whether the group is whole or the wait is over."""
        return self.received >= self.size or self.left_s <= 0


Refusal = Literal["other_terms", "other_content", "full"]
"""Why an arrival contradicts what is stored: the group was begun on other terms, the id belongs to
another rollout, or the group has all its rollouts.
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A rollout of a group."""

    id: str
    response: Response
    truncated: bool


@dataclass(frozen=True, slots=True)
class GatheredScore:
    """How a group was scored the last time; answers are JSON.

    `scored`: with how many rollouts. `group`: the answer without rollouts; `None` before the first
    attempt. `rollouts`: the answers of rollouts by id, those of late ones too.
    """

    attempts: int
    scored: int
    group: str | None
    rollouts: Mapping[str, str]
    late: frozenset[str] = frozenset()


class GatheringStore:
    """Gathered groups by id."""

    def __init__(self, database: Database, claims: ClaimStore) -> None:
        self._db, self._claims = database, claims
        g, r = gathered_groups.c, gathered_rollouts.c
        new = database.rows(list(g), "groups")
        begun = {column.name: new[column.name] for column in g}
        # What is bound is how long to wait, as all processes go by the database's clock.
        begun["closes_at"] = database.clock + new.closes_at
        self._begin = (
            database.insert(gathered_groups)
            .from_select(list(begun), sa.select(*begun.values()).where(sa.true()))
            .on_conflict_do_nothing()
        )
        state = (g.size, g.received, g.attempts, (g.closes_at - database.clock).label("left_s"))
        by_id = database.in_keys(g.id, "groups")
        # In one order, so that two batches of arrivals queue instead of deadlocking.
        self._lock = sa.select(g.id, g.terms, *state).where(by_id).order_by(g.id).with_for_update()
        self._select_state = sa.select(g.id, *state).where(by_id)
        self._select_arrived = sa.select(r.group_id, r.rollout_id, r.text_key, r.truncated).where(
            database.in_keys(r.group_id, "groups"), database.in_keys(r.rollout_id, "rollouts")
        )
        counts = database.rows([g.id, g.received], "counts")
        self._count = (
            sa.update(gathered_groups).where(g.id == counts.id).values(received=counts.received)
        )
        scores = database.rows([r.rollout_id, r.score], "scores")
        self._save_scores = (
            sa.update(gathered_rollouts)
            .where(r.group_id == sa.bindparam("group"), r.rollout_id == scores.rollout_id)
            .values(score=scores.score)
        )
        asked = database.rows([r.group_id, r.rollout_id, r.asked_until], "asked")
        # What is bound is how long the request waits; null where it was answered.
        self._ask = (
            sa.update(gathered_rollouts)
            .where(r.group_id == asked.group_id, r.rollout_id == asked.rollout_id)
            .values(asked_until=database.clock + asked.asked_until)
        )
        unanswered = (
            database.in_keys(r.group_id, "groups"),
            r.text_key == sa.bindparam("text"),
            r.asked_until <= database.clock,
        )
        self._select_unanswered = sa.select(r.group_id).where(*unanswered).limit(1)
        oldest = (
            sa.select(r.group_id, r.rollout_id)
            .where(*unanswered)
            .order_by(r.group_id, r.rollout_id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .cte("oldest")
        )
        self._resume = (
            sa.update(gathered_rollouts)
            .where(r.group_id == oldest.c.group_id, r.rollout_id == oldest.c.rollout_id)
            .values(asked_until=database.clock + sa.bindparam("asked_s", type_=sa.Double))
            .returning(r.group_id, r.rollout_id)
        )
        self._leaving: Batcher[_Left, None] = Batcher(database, self._leave)
        self._storing: dict[tuple[str, str], asyncio.Future[GroupState | Refusal]] = {}
        self._arriving: Batcher[Arrival, GroupState | Refusal] = Batcher(
            database,
            self._arrive,
            weigh=lambda a: 1 + _characters(a.response) // CHARACTERS_PER_WEIGHT,
        )

    async def arrive(self, arrival: Arrival) -> GroupState | Refusal:
        """Store a rollout, once, and return the state of its group.

        It is stored also when the caller is cancelled; `leave` then waits for that.
        """
        storing = self._arriving.put(arrival)
        if arrival.asked_s is not None:
            place = (arrival.group_id, arrival.rollout_id)
            self._storing[place] = storing
            storing.add_done_callback(lambda _: self._storing.pop(place, None))
        return await asyncio.shield(storing)

    async def states(self, team_of: Mapping[str, str]) -> dict[str, GroupState]:
        """Return the states of groups, given as team by id; those that were deleted are missing."""
        async with self._db.reading(team_scope(*team_of.values())) as connection:
            rows = await connection.execute(self._select_state, {"groups": self._db.keys(team_of)})
            return {group_id: GroupState(*state) for group_id, *state in rows}

    async def members(self, team: str, group_id: str) -> list[Member]:
        """Return the rollouts that are scored together, in the order of their ids."""
        r = gathered_rollouts.c
        statement = (
            sa.select(r.rollout_id, texts.c.text, texts.c.messages, r.truncated)
            .join(texts, texts.c.key == r.text_key)
            .where(r.group_id == group_id, ~r.late)
            .order_by(r.rollout_id)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [
                Member(rollout_id, stored_response(text, messages), truncated)
                for rollout_id, text, messages, truncated in await connection.execute(statement)
            ]

    async def score(self, team: str, group_id: str) -> GatheredScore | None:
        """Return how a group was scored; `None` when it was deleted."""
        g, r = gathered_groups.c, gathered_rollouts.c
        async with self._db.reading(team_scope(team)) as connection:
            group = (
                await connection.execute(
                    sa.select(g.attempts, g.scored, g.score).where(g.id == group_id)
                )
            ).first()
            rollouts = (
                await connection.execute(
                    sa.select(r.rollout_id, r.score, r.late).where(
                        r.group_id == group_id, r.score.is_not(None)
                    )
                )
            ).all()
        if group is None:
            return None
        return GatheredScore(
            *group,
            rollouts={row.rollout_id: row.score for row in rollouts},
            late=frozenset(row.rollout_id for row in rollouts if row.late),
        )

    async def finish(self, team: str, group_id: str, claim: Claim, score: GatheredScore) -> None:
        """Store how a group was scored, and end the claim. Raises `ClaimLost`."""
        rows = [{"rollout_id": id_, "score": text} for id_, text in score.rollouts.items()]
        async with self._db.writing(team_scope(team)) as connection:
            if not await self._claims.release(connection, dict([claim])):
                raise ClaimLost
            await connection.execute(
                sa.update(gathered_groups)
                .where(gathered_groups.c.id == group_id)
                .values(attempts=score.attempts, scored=score.scored, score=score.group)
            )
            await connection.execute(
                self._save_scores, {"group": group_id, "scores": self._db.pack(rows)}
            )

    async def finish_late(self, team: str, group_id: str, rollout_id: str, score: str) -> None:
        """Store the answer of a rollout that was scored alone."""
        r = gathered_rollouts.c
        async with self._db.writing(team_scope(team)) as connection:
            await connection.execute(
                sa.update(gathered_rollouts)
                .where(r.group_id == group_id, r.rollout_id == rollout_id)
                .values(score=score, late=True)
            )

    async def resume(
        self, team: str, group_ids: Iterable[str], response: Response, asked_s: float
    ) -> tuple[str, str] | None:
        """Return group and id of a rollout that says the same and whose request got no answer.

        It is this caller's for `asked_s` seconds: of several callers each gets another one.
        """
        bound = {"groups": self._db.keys(group_ids), "text": response_key(response)}
        async with self._db.reading(team_scope(team)) as connection:
            if (await connection.execute(self._select_unanswered, bound)).first() is None:
                return None
        async with self._db.writing(team_scope(team)) as connection:
            resumed = await connection.execute(self._resume, bound | {"asked_s": asked_s})
            row = resumed.first()
        return None if row is None else (row.group_id, row.rollout_id)

    async def leave(self, team: str, group_id: str, rollout_id: str, *, answered: bool) -> None:
        """End the request for a rollout; `resume` finds it if it was not answered."""
        if (storing := self._storing.get((group_id, rollout_id))) is not None:
            # Else the end would be stored before there is a rollout, and the rollout would seem
            # to be waited for.
            await asyncio.wait([storing])
        await self._leaving.submit(_Left(team, group_id, rollout_id, answered))

    async def _leave(self, left: Sequence["_Left"]) -> list[None]:
        rows = [
            {
                "group_id": each.group_id,
                "rollout_id": each.rollout_id,
                "asked_until": None if each.answered else 0.0,
            }
            for each in sorted(left)
        ]
        ids = {"groups": self._db.keys(each.group_id for each in left)}
        async with self._db.writing(team_scope(*(each.team for each in left))) as connection:
            # As `finish` and arrivals do, so that they queue instead of deadlocking.
            await connection.execute(self._lock, ids)
            await connection.execute(self._ask, {"asked": self._db.pack(rows)})
        return [None] * len(left)

    async def _arrive(self, arrivals: Sequence[Arrival]) -> list[GroupState | Refusal]:
        created = now()
        begun = {
            a.group_id: {
                "id": a.group_id,
                "team": a.team,
                "terms": a.terms,
                "size": a.size,
                "received": 0,
                "closes_at": a.wait_s,
                "attempts": 0,
                "scored": 0,
                "score": None,
                "created_at": created,
            }
            for a in reversed(arrivals)
        }
        ids = {
            "groups": self._db.keys(begun),
            "rollouts": self._db.keys(a.rollout_id for a in arrivals),
        }
        async with self._db.writing(team_scope(*(a.team for a in arrivals))) as connection:
            rows = [begun[group_id] for group_id in sorted(begun)]
            await connection.execute(self._begin, {"groups": self._db.pack(rows)})
            groups = {row.id: row for row in await connection.execute(self._lock, ids)}
            received = {group_id: row.received for group_id, row in groups.items()}
            arrived = {
                (group_id, rollout_id): (text, truncated)
                for group_id, rollout_id, text, truncated in await connection.execute(
                    self._select_arrived, ids
                )
            }
            refused: list[Refusal | None] = []
            new: list[dict[str, object]] = []
            asked: list[dict[str, object]] = []
            said: dict[str, Response] = {}
            for a in arrivals:
                group, place = groups[a.group_id], (a.group_id, a.rollout_id)
                content = (response_key(a.response), a.truncated)
                refusal: Refusal | None = None
                if group.terms != a.terms:
                    refusal = "other_terms"
                elif place in arrived:
                    refusal = None if arrived[place] == content else "other_content"
                elif received[a.group_id] >= group.size:
                    refusal = "full"
                else:
                    arrived[place] = content
                    received[a.group_id] += 1
                    said[content[0]] = a.response
                    new.append(
                        {
                            "group_id": a.group_id,
                            "rollout_id": a.rollout_id,
                            "text_key": content[0],
                            "truncated": a.truncated,
                            "late": False,
                            "score": None,
                            "asked_until": None,
                        }
                    )
                    if a.asked_s is not None:
                        asked.append(
                            {
                                "group_id": a.group_id,
                                "rollout_id": a.rollout_id,
                                "asked_until": a.asked_s,
                            }
                        )
                refused.append(refusal)
            if new:
                # Sorted, so that two writers of the same texts queue instead of deadlocking.
                of_texts = [response_row(key, said[key], created) for key in sorted(said)]
                await self._db.insert_new(connection, texts, of_texts)
                await self._db.insert_new(connection, gathered_rollouts, new)
                if asked:
                    await connection.execute(self._ask, {"asked": self._db.pack(asked)})
                counts = [{"id": id_, "received": count} for id_, count in received.items()]
                await connection.execute(self._count, {"counts": self._db.pack(counts)})
        # After all of the batch, so that every caller sees the group whole if one of them made it.
        return [
            refusal
            or GroupState(
                groups[a.group_id].size,
                received[a.group_id],
                groups[a.group_id].attempts,
                groups[a.group_id].left_s,
            )
            for a, refusal in zip(arrivals, refused, strict=True)
        ]


@dataclass(frozen=True, order=True, slots=True)
class _Left:
    """A request for a rollout that has ended."""

    team: str
    group_id: str
    rollout_id: str
    answered: bool


def _characters(response: Response) -> int:
    return len(response) if isinstance(response, str) else len(response.json)
