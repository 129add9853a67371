"""The versions of rubrics: what is made, imported or forked is saved as its prompt's next version.

A save is one transaction: it numbers the version under a lock on the prompt, and stores prompt,
rubric, induction and audit entries together. Rubrics that are saved at the same time share one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.schema.metadata import MAX_METADATA_BYTES, json_bytes
from markscheme.vocabulary import RubricOrigin, View
from markscheme_server.domain.hashing import (
    ChatMessage,
    content_hash,
    message_text,
    prompt_key,
)
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.store.audit import Actor, AuditRow, record, record_all
from markscheme_server.store.claims import Claim, ClaimLost, ClaimStore
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.rubrics import SELECT_RUBRIC, fetch_rubrics, fetch_shares
from markscheme_server.store.tables import inductions, prompts, rubrics

SEARCHED_CHARACTERS = 50_000
"""Characters of a rubric that can be searched: what PostgreSQL can index of any text."""


@dataclass(frozen=True, slots=True)
class NewRubric:
    """A rubric to store; see `RubricVersions.save`. `key`: of its prompt; `hashed`: its content."""

    team: str
    prompt: Sequence[ChatMessage]
    criteria: Sequence[Criterion]
    origin: RubricOrigin
    tags: Sequence[str]
    provenance: Mapping[str, Any]
    metadata: Mapping[str, Any]
    actor: Actor
    cost_usd: float | None
    parent: Rubric | None
    view: View | None
    any_version: bool
    key: str
    hashed: str


class MetadataTooLarge(Exception):
    """The metadata that a rubric has and what it is given come to more than it may have."""


def _select_stored(database: Database) -> sa.Select[Any]:
    """Select of each prompt of a team the newest rubric, and those of the content asked for."""
    r, other = rubrics.c, rubrics.alias().c
    q = database.rows([sa.Column(name, sa.Text) for name in ("team", "key", "hash")], "queries")
    newest = (
        sa.select(sa.func.max(other.version))
        .where(other.team == r.team, other.prompt_key == r.prompt_key)
        .scalar_subquery()
    )
    return (
        SELECT_RUBRIC.add_columns(r.metadata)
        .where(
            r.team == q.team,
            r.prompt_key == q.key,
            sa.or_(r.version == newest, r.content_hash == q.hash),
        )
        .order_by(r.version.desc())
    )


class RubricVersions:
    """Saves rubrics, each as the next version of its team's rubric for the prompt."""

    def __init__(self, database: Database, claims: ClaimStore) -> None:
        self._db, self._claims = database, claims
        self._stored = _select_stored(database)
        self._insert = rubrics.insert().values(
            # `words` is computed from the bound text, which no column holds.
            words=database.search_vector(sa.bindparam("searched", type_=sa.Text))
        )
        self._saving: Batcher[NewRubric, Rubric | MetadataTooLarge] = Batcher(
            database, self._save_all, weigh=lambda new: len(new.criteria)
        )

    async def save(
        self,
        *,
        team: str,
        prompt: Sequence[ChatMessage],
        criteria: Sequence[Criterion],
        origin: RubricOrigin,
        tags: Sequence[str] = (),
        provenance: Mapping[str, Any],
        actor: Actor,
        metadata: Mapping[str, Any] | None = None,
        cost_usd: float | None = None,
        induction: str | None = None,
        claim: Claim | None = None,
        parent: Rubric | None = None,
        view: View | None = None,
        any_version: bool = False,
    ) -> Rubric:
        """Store a rubric as the prompt's next version, and return it with its metadata and shares.

        A newest version with the same content is returned instead, with ``any_version`` also an
        older one, unless it is retired; it gets the metadata given, of the rubric and of each
        criterion, name by name; raises `MetadataTooLarge` where that is too much. ``parent``
        is the rubric that it was made from; by default the team's newest one for the prompt.
        ``cost_usd`` is what inducing it cost, where that is known. With ``induction``, the same
        transaction records which rubric the induction made; if another writer was first, its rubric
        is returned. Raises `ClaimLost` if ``claim`` is no longer ours.
        """
        new = NewRubric(
            team=team,
            prompt=prompt,
            criteria=criteria,
            origin=origin,
            tags=tags,
            provenance=provenance,
            metadata=metadata or {},
            actor=actor,
            cost_usd=cost_usd,
            parent=parent,
            view=view,
            any_version=any_version,
            key=prompt_key(prompt),
            hashed=content_hash(criteria, view),
        )
        saved = (
            await self._saving.submit(new)
            if induction is None
            else await self._save_induced(new, induction, claim)
        )
        if isinstance(saved, MetadataTooLarge):
            raise saved
        return saved

    async def _save_induced(
        self, new: NewRubric, induction: str, claim: Claim | None
    ) -> Rubric | MetadataTooLarge:
        async with self._db.writing(team_scope(new.team, new.actor.team)) as connection:
            await self._lock_prompts(connection, [new.key])
            # In this transaction: a stalled owner whose claim was taken over must store nothing.
            if claim is not None and not await self._claims.release(connection, dict([claim])):
                raise ClaimLost
            # Another writer may have been first while we waited for the lock.
            earlier = await fetch_rubrics(
                connection,
                SELECT_RUBRIC.join(inductions, inductions.c.rubric_id == rubrics.c.id).where(
                    inductions.c.key == induction,
                    rubrics.c.team == new.team,
                    rubrics.c.retired_at.is_(None),
                ),
            )
            if earlier:
                return earlier[0]
            (saved,) = await self._save_in(connection, [new])
            if isinstance(saved, MetadataTooLarge):
                return saved
            row = self._db.insert(inductions).values(
                key=induction, rubric_id=saved.id, created_at=now()
            )
            await connection.execute(
                # The key exists if the induction's earlier rubric was retired.
                row.on_conflict_do_update(
                    index_elements=[inductions.c.key],
                    set_={"rubric_id": row.excluded.rubric_id},
                )
            )
            return saved

    async def _save_all(self, batch: Sequence[NewRubric]) -> list[Rubric | MetadataTooLarge]:
        teams = {team for new in batch for team in (new.team, new.actor.team)}
        async with self._db.writing(team_scope(*teams)) as connection:
            await self._lock_prompts(connection, [new.key for new in batch])
            return await self._save_in(connection, batch)

    async def _save_in(
        self, connection: AsyncConnection, batch: Sequence[NewRubric]
    ) -> list[Rubric | MetadataTooLarge]:
        """Save rubrics in this transaction, which holds the locks of their prompts."""
        saved: dict[int, Rubric | MetadataTooLarge] = {}
        while len(saved) < len(batch):
            # Of one prompt, one at a time: the second may be the version after the first.
            turn: dict[tuple[str, str], int] = {}
            for position, new in enumerate(batch):
                if position not in saved:
                    turn.setdefault((new.team, new.key), position)
            chosen = [batch[position] for position in turn.values()]
            saved.update(zip(turn.values(), await self._save_turn(connection, chosen), strict=True))
        return [saved[position] for position in range(len(batch))]

    async def _save_turn(
        self, connection: AsyncConnection, batch: Sequence[NewRubric]
    ) -> list[Rubric | MetadataTooLarge]:
        """Save rubrics of different prompts."""
        created = now()
        prompt_rows = {
            new.key: {"key": new.key, "messages": list(new.prompt), "created_at": created}
            for new in batch
        }
        # Sorted, so that two writers of the same rows queue instead of deadlocking.
        await self._db.insert_new(
            connection, prompts, [prompt_rows[key] for key in sorted(prompt_rows)]
        )
        queries = [{"team": new.team, "key": new.key, "hash": new.hashed} for new in batch]
        versions: dict[tuple[str, str], list[Rubric]] = {}
        for found in await fetch_rubrics(
            connection, self._stored, {"queries": self._db.pack(queries)}
        ):
            versions.setdefault((found.team, found.prompt_key), []).append(found)
        saved: list[Rubric | MetadataTooLarge] = []
        made: list[tuple[NewRubric, Rubric]] = []
        for new in batch:
            stored = versions.get((new.team, new.key), [])
            same = _stored_same(new, stored)
            if same is not None:
                saved.append(await self._add_metadata(connection, same, new))
            else:
                rubric = _next_version(new, stored[0] if stored else None)
                made.append((new, rubric))
                saved.append(rubric)
        if made:
            await connection.execute(self._insert, [_row(new, rubric) for new, rubric in made])
            await record_all(
                connection,
                [
                    AuditRow(
                        new.actor,
                        f"rubric.{new.origin}",
                        f"rubric:{rubric.id}",
                        {"version": rubric.version},
                    )
                    for new, rubric in made
                ],
            )
        # A new rubric is shared with nobody yet.
        if len(made) == len(batch):
            return saved
        shares_of = await fetch_shares(
            self._db, connection, [each.id for each in saved if isinstance(each, Rubric)]
        )
        return [
            replace(each, shared_with=shares_of.get(each.id, ()))
            if isinstance(each, Rubric)
            else each
            for each in saved
        ]

    @staticmethod
    async def _add_metadata(
        connection: AsyncConnection, rubric: Rubric, new: NewRubric
    ) -> Rubric | MetadataTooLarge:
        """Give a stored rubric the metadata of a new one of the same criteria; other names stay."""
        # The lock of the prompt is held: nobody else writes this row's metadata now.
        merged = {**rubric.metadata, **new.metadata}
        changed = tuple(
            replace(old, metadata={**old.metadata, **given.metadata})
            for old, given in zip(rubric.criteria, new.criteria, strict=True)
        )
        if merged == rubric.metadata and all(
            old.metadata == given.metadata
            for old, given in zip(rubric.criteria, changed, strict=True)
        ):
            return rubric
        if max(json_bytes(merged), sum(json_bytes(c.metadata) for c in changed)) > (
            MAX_METADATA_BYTES
        ):
            return MetadataTooLarge()
        await connection.execute(
            sa.update(rubrics)
            .where(rubrics.c.id == rubric.id, rubrics.c.team == rubric.team)
            .values(metadata=merged, criteria=[_plain(c) for c in changed])
        )
        await record(
            connection, new.actor, "rubric.changed", f"rubric:{rubric.id}", {"metadata": True}
        )
        return replace(rubric, criteria=changed, metadata=merged)

    @staticmethod
    async def _lock_prompts(connection: AsyncConnection, keys: Sequence[str]) -> None:
        """Let one writer at a time number a prompt's versions; SQLite's BEGIN IMMEDIATE does so."""
        if connection.dialect.name == "postgresql":
            await connection.execute(
                # In order, so that two writers queue instead of deadlocking. 15 hex digits are 60
                # bits: the lock's key is a signed integer of 64.
                sa.text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:keys AS bigint[])) k"),
                {"keys": sorted({int(key[:15], 16) for key in keys})},
            )


def _stored_same(new: NewRubric, stored: Sequence[Rubric]) -> Rubric | None:
    """Return the stored rubric that stands for a new one, of the prompt's rubrics, newest first."""
    candidates = stored if new.any_version else stored[:1]
    return next(
        (
            each
            for each in candidates
            if each.content_hash == new.hashed and each.retired_at is None
        ),
        None,
    )


def _next_version(new: NewRubric, last: Rubric | None) -> Rubric:
    parent = new.parent or last
    return Rubric(
        id=new_id("rub"),
        team=new.team,
        prompt_key=new.key,
        prompt=tuple(new.prompt),
        version=last.version + 1 if last else 1,
        parent_id=parent.id if parent else None,
        content_hash=new.hashed,
        criteria=tuple(new.criteria),
        origin=new.origin,
        tags=tuple(new.tags),
        provenance=new.provenance,
        created_at=now(),
        cost_usd=new.cost_usd,
        view=new.view,
        metadata=new.metadata,
    )


def _row(new: NewRubric, rubric: Rubric) -> dict[str, Any]:
    """Return the row of a new rubric; `searched` is the text of its column `words`."""
    searched = "\n".join([*(c.text for c in new.criteria), *map(message_text, new.prompt)])
    return {
        "id": rubric.id,
        "team": rubric.team,
        "prompt_key": rubric.prompt_key,
        "version": rubric.version,
        "parent_id": rubric.parent_id,
        "content_hash": rubric.content_hash,
        "criteria": [_plain(c) for c in rubric.criteria],
        "origin": rubric.origin,
        "tags": list(rubric.tags),
        "provenance": dict(rubric.provenance),
        "metadata": dict(rubric.metadata),
        "created_at": rubric.created_at,
        "cost_usd": rubric.cost_usd,
        "view": rubric.view,
        "searched": searched[:SEARCHED_CHARACTERS],
    }


def _plain(criterion: Criterion) -> dict[str, Any]:
    row = asdict(criterion) | {"check": dict(criterion.check) if criterion.check else None}
    # A replica of the version before, which may still run, knows no such fields.
    for field in "may_not_apply", "metadata":
        if not row[field]:
            del row[field]
    return row
