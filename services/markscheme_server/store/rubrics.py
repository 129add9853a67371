"""Rubrics, their prompts, and which induction made which rubric."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.schema.metadata import MAX_METADATA_BYTES, json_bytes
from markscheme.vocabulary import Category, ReuseScope, RubricOrigin, View, Visibility
from markscheme_server.domain.hashing import (
    ChatMessage,
    content_hash,
    message_text,
    prompt_key,
)
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.trajectory import DEFAULT_VIEW
from markscheme_server.store.audit import Actor, AuditRow, record, record_all
from markscheme_server.store.claims import Claim, ClaimLost, ClaimStore
from markscheme_server.store.engine.database import ALL_TEAMS, Database, team_scope
from markscheme_server.store.engine.ids import as_utc, new_id, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import (
    assignments,
    inductions,
    prompts,
    rubric_words,
    rubrics,
    shares,
)

# Scoring needs no metadata, which may be large: `RubricStore.metadata` reads it.
_SELECT = sa.select(
    *(c for c in rubrics.c if c is not rubrics.c.words and c is not rubrics.c.metadata),
    prompts.c.messages,
).join(prompts, prompts.c.key == rubrics.c.prompt_key)
_NEWEST_FIRST = (rubrics.c.created_at.desc(), rubrics.c.id.desc())
DISTANCE: dict[ReuseScope, int] = {"own": 0, "shared": 1, "organisation": 2}
"""Distance of a visible rubric from a team; nearer rubrics are preferred."""
MIN_GROUPS = 5
"""Another team's results on one day are not disclosed below this number of groups."""
SEARCHED_CHARACTERS = 50_000
"""Characters of a rubric that can be searched: what PostgreSQL can index of any text."""
_SPREAD_SHARE = sa.func.avg(
    sa.case((assignments.c.reward_spread > 0, 1.0), else_=0.0), type_=sa.Double
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rubrics may be reused: by the teacher's model, and a prefix of the rubricator's name.

    ``None``: any. Only induced rubrics have a teacher and a rubricator.
    """

    teacher_model: str | None = None
    rubricator: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """Which rubrics to list: up to ``limit`` of them, after the rubric ``after``. ``None``: any.

    ``text``: words of the prompt and criteria; ``tags``: all of them; ``category``: of one of its
    criteria; ``rubricator``: a prefix of its name; ``min_quality``: the minimum of `quality`.
    """

    prompt_key: str | None = None
    origin: RubricOrigin | None = None
    text: str | None = None
    tags: Sequence[str] = ()
    category: Category | None = None
    team: str | None = None
    teacher_model: str | None = None
    rubricator: str | None = None
    min_quality: float | None = None
    retired: bool | None = None
    after: str | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class NewRubric:
    """A rubric to store; see `RubricStore.save`. `key`: of its prompt; `hashed`: its content."""

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


class NotOwner(Exception):
    """The team may see the rubric, but does not own it."""


class MetadataTooLarge(Exception):
    """The metadata that a rubric has and what it is given come to more than it may have."""


def _shared(team: Any) -> sa.ColumnElement[bool]:
    return sa.exists().where(shares.c.rubric_id == rubrics.c.id, shares.c.team == team)


def visible(team: Any) -> sa.ColumnElement[bool]:
    """Return the condition that a team may see a rubric: its own, a shared or an organisation's."""
    return sa.or_(rubrics.c.team == team, rubrics.c.visibility == "organisation", _shared(team))


def start_of_day() -> datetime:
    """Return the start of today, in UTC."""
    return now().replace(hour=0, minute=0, second=0, microsecond=0)


def quality(database: Database, team: str) -> sa.ColumnElement[Any]:
    """Return the share of a rubric's groups whose rewards have spread, as disclosed to a team.

    It is that of the team's own groups, where it has any. Otherwise it is the mean over the other
    teams of their mean over days, without today and days of fewer than `MIN_GROUPS` groups, so that
    nobody can infer the result of one group. Groups that can have no spread do not count. Null:
    unknown.
    """
    a = assignments.c
    scored = (a.rubric_id == rubrics.c.id, a.reward_spread.is_not(None))
    # Averaged by day, then by team: a busy day or a busy team does not outweigh the others.
    own = (
        sa.select(_SPREAD_SHARE).where(*scored, a.team == team).correlate(rubrics).scalar_subquery()
    )
    days = (
        sa.select(a.team, _SPREAD_SHARE.label("share"))
        .where(*scored, a.team != team, a.created_at < start_of_day())
        .group_by(a.team, database.day(a.created_at))
        .having(sa.func.count() >= MIN_GROUPS)
        .correlate(rubrics)
        .subquery("days")
    )
    others = (
        sa.select(sa.func.avg(days.c.share, type_=sa.Double).label("share"))
        .group_by(days.c.team)
        .correlate(rubrics)
        .subquery("others")
    )
    return sa.func.coalesce(
        own,
        sa.select(sa.func.avg(others.c.share, type_=sa.Double))
        .correlate(rubrics)
        .scalar_subquery(),
    )


def _starts_with(text: Any, prefix: Any) -> sa.ColumnElement[bool]:
    # Not LIKE: it has wildcards, and ignores case on SQLite.
    start = sa.func.substr(text, 1, sa.func.length(prefix), type_=sa.Text)
    return start == sa.cast(prefix, sa.Text)


def _rubric(row: Mapping[str, Any]) -> Rubric:
    return Rubric(
        id=row["id"],
        team=row["team"],
        prompt_key=row["prompt_key"],
        prompt=tuple(row["messages"]),
        version=row["version"],
        parent_id=row["parent_id"],
        content_hash=row["content_hash"],
        criteria=tuple(Criterion(**c) for c in row["criteria"]),
        origin=row["origin"],
        tags=tuple(row["tags"]),
        provenance=row["provenance"],
        created_at=as_utc(row["created_at"]),
        visibility=row["visibility"],
        retired_at=as_utc(row["retired_at"]) if row["retired_at"] else None,
        cost_usd=row["cost_usd"],
        view=row["view"],
        metadata=row.get("metadata") or {},
    )


_QUERY = ("viewer", "prompt", "teacher_model", "rubricator", "run", "max_distance", "for_view")
_Query = tuple[str, str, str | None, str | None, str | None, int, View | None]


def _nearest(database: Database) -> sa.Select[Any]:
    """Select the nearest rubric for each of the queries bound to the parameter ``queries``."""
    r, a = rubrics.c, assignments.c
    bound = database.rows(
        [sa.Column(name, sa.Integer if name == "max_distance" else sa.Text) for name in _QUERY],
        "queries",
    )
    run_start = (
        sa.select(sa.func.min(a.created_at))
        .where(a.team == bound.viewer, a.run_id == bound.run)
        .scalar_subquery()
    )
    queries = sa.select(*(bound[name] for name in _QUERY), run_start.label("run_start"))
    q = queries.cte("bound_queries").c

    def before_run(moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[bool]:
        return sa.or_(q.run_start.is_(None), moment <= q.run_start)

    # What other teams offer during a run does not change its rubrics: the distance is then null.
    shared = sa.exists().where(
        shares.c.rubric_id == r.id, shares.c.team == q.viewer, before_run(shares.c.created_at)
    )
    opened = sa.and_(
        r.visibility == "organisation", before_run(sa.func.coalesce(r.offered_at, r.created_at))
    )
    distance = sa.case(
        (r.team == q.viewer, DISTANCE["own"]),
        (shared, DISTANCE["shared"]),
        (opened, DISTANCE["organisation"]),
    )
    unfiltered = sa.and_(q.teacher_model.is_(None), q.rubricator.is_(None))
    provenance = {name: r.provenance[name].as_string() for name in ("teacher_model", "rubricator")}
    found = (
        sa.select(
            r.id,
            *(q[name] for name in _QUERY),
            distance.label("distance"),
            (r.origin == "induced").label("induced"),
            r.created_at,
            r.version,
        )
        .where(
            r.prompt_key == q.prompt,
            r.retired_at.is_(None),
            # The transaction's scope covers all teams of the batch; this keeps them apart.
            visible(q.viewer),
            # Only induced rubrics have a teacher and a rubricator to filter by.
            sa.or_(unfiltered, r.origin == "induced"),
            sa.or_(
                q.for_view.is_(None),
                r.origin != "induced",
                sa.func.coalesce(r.view, DEFAULT_VIEW) == q.for_view,
            ),
            sa.or_(q.teacher_model.is_(None), provenance["teacher_model"] == q.teacher_model),
            sa.or_(q.rubricator.is_(None), _starts_with(provenance["rubricator"], q.rubricator)),
        )
        .subquery()
    )
    f = found.c
    query = [f[name] for name in _QUERY]
    ranked = (
        sa.select(
            f.id,
            *query,
            sa.func.row_number()
            .over(
                partition_by=query,
                order_by=(f.distance, f.induced, f.created_at.desc(), f.version.desc(), f.id),
            )
            .label("rank"),
        )
        # A null distance is not `<=` anything: what was offered too late falls out as well.
        .where(f.distance <= f.max_distance)
        .subquery()
    )
    return (
        _SELECT.add_columns(*(ranked.c[name] for name in _QUERY))
        .join(ranked, ranked.c.id == r.id)
        .where(ranked.c.rank == 1)
    )


def _versions(database: Database) -> sa.Select[Any]:
    """Select of each prompt of a team the newest rubric, and those of the content asked for."""
    r, other = rubrics.c, rubrics.alias().c
    q = database.rows([sa.Column(name, sa.Text) for name in ("team", "key", "hash")], "queries")
    newest = (
        sa.select(sa.func.max(other.version))
        .where(other.team == r.team, other.prompt_key == r.prompt_key)
        .scalar_subquery()
    )
    return (
        _SELECT.add_columns(r.metadata)
        .where(
            r.team == q.team,
            r.prompt_key == q.key,
            sa.or_(r.version == newest, r.content_hash == q.hash),
        )
        .order_by(r.version.desc())
    )


class RubricStore:
    """Rubrics by id, by prompt and by induction, as far as a team may see them."""

    def __init__(self, database: Database, claims: ClaimStore) -> None:
        self._db, self._claims = database, claims
        r = rubrics.c
        # Queries of several teams are one statement. Text, because what a caller asks for may be
        # longer than any key.
        bound = database.rows([sa.Column("viewer", sa.Text), sa.Column("key", sa.Text)], "queries")
        # The transaction's scope covers all teams of a batch: `visible` keeps them apart.
        select = _SELECT.add_columns(bound.viewer, bound.key).where(visible(bound.viewer))
        self._by_id = select.where(r.id == bound.key)
        self._by_induction = select.join(inductions, inductions.c.rubric_id == r.id).where(
            inductions.c.key == bound.key, r.team == bound.viewer, r.retired_at.is_(None)
        )
        self._nearest = _nearest(database)
        self._versions = _versions(database)
        # `words` is computed from the bound text, which no column holds.
        self._insert = rubrics.insert().values(
            words=database.search_vector(sa.bindparam("searched", type_=sa.Text))
        )
        self._saving: Batcher[NewRubric, Rubric | MetadataTooLarge] = Batcher(
            self._save_all, weigh=lambda new: len(new.criteria)
        )
        self._finding: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find)
        self._finding_nearest: Batcher[_Query, Rubric | None] = Batcher(self._find_nearest)
        self._finding_induced: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find_induced)

    async def find(self, team: str, rubric_id: str) -> Rubric | None:
        """Return the rubric with this id, if the team may see it."""
        return await self._finding.submit((team, rubric_id))

    async def find_nearest(
        self,
        team: str,
        key: str,
        filters: Filters,
        *,
        scope: ReuseScope = "organisation",
        run_id: str | None = None,
        view: View | None = None,
    ) -> Rubric | None:
        """Return the rubric for a prompt that is nearest to the team, within ``scope``.

        The team's own rubrics come first, then those shared with it, then the organisation's. At
        each distance, uploaded and edited rubrics come before induced ones, and newer before older.
        Retired rubrics are skipped, those that the filters exclude, and those that other teams
        offered after the run's first group had been assigned its rubric. With a ``view``, so are
        rubrics that were induced from another view of trajectories.
        """
        return await self._finding_nearest.submit(
            (team, key, filters.teacher_model, filters.rubricator, run_id, DISTANCE[scope], view)
        )

    async def find_induced(self, team: str, induction: str) -> Rubric | None:
        """Return the rubric that the team's induction with this key made."""
        return await self._finding_induced.submit((team, induction))

    async def _find(self, queries: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        return await self._fetch_all(self._by_id, queries)

    async def _find_nearest(self, queries: Sequence[_Query]) -> list[Rubric | None]:
        return await self._fetch_all(self._nearest, queries, _QUERY)

    async def _find_induced(self, queries: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        return await self._fetch_all(self._by_induction, queries)

    async def _fetch_all(
        self,
        select: sa.Select[Any],
        queries: Sequence[tuple[str | int | None, ...]],
        names: Sequence[str] = ("viewer", "key"),
    ) -> list[Rubric | None]:
        bound = self._db.pack(
            [dict(zip(names, query, strict=True)) for query in dict.fromkeys(queries)]
        )
        async with self._db.reading(
            team_scope(*(str(query[0]) for query in queries))
        ) as connection:
            rows = (await connection.execute(select, {"queries": bound})).mappings()
            found = {tuple(row[name] for name in names): _rubric(dict(row)) for row in rows}
        return [found.get(query) for query in queries]

    async def shared_with(self, team: str, rubric_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the teams with which the team's own rubrics are shared, by rubric id."""
        async with self._db.reading(team_scope(team)) as connection:
            return await self._shared_with(connection, rubric_ids, shares.c.owner == team)

    async def _shared_with(
        self,
        connection: AsyncConnection,
        rubric_ids: Sequence[str],
        *where: sa.ColumnElement[bool],
    ) -> dict[str, tuple[str, ...]]:
        query = (
            sa.select(shares.c.rubric_id, shares.c.team)
            .where(self._db.in_keys(shares.c.rubric_id, "keys"), *where)
            .order_by(shares.c.rubric_id, shares.c.team)
        )
        found: dict[str, tuple[str, ...]] = {}
        for rubric_id, with_team in await connection.execute(
            query, {"keys": self._db.keys(rubric_ids)}
        ):
            found[rubric_id] = (*found.get(rubric_id, ()), with_team)
        return found

    async def metadata(self, team: str, rubric_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Return the metadata of the team's own rubrics, by rubric id."""
        query = sa.select(rubrics.c.id, rubrics.c.metadata).where(
            rubrics.c.team == team, self._db.in_keys(rubrics.c.id, "keys")
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(rubric_ids)})
            return {row.id: row.metadata for row in rows}

    async def change(
        self,
        team: str,
        rubric_id: str,
        *,
        visibility: Visibility | None = None,
        shared_with: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        retired: bool | None = None,
        actor: Actor,
    ) -> Rubric | None:
        """Change who may see a rubric, its tags, or whether it is retired; ``None``: no change.

        ``shared_with`` replaces the teams; existing shares keep their date. Any name is accepted,
        so that nobody learns which teams exist. Returns ``None`` if the team may not see the
        rubric. Raises `NotOwner`.
        """
        # Conditions under which this change offers the rubric to other teams anew.
        offered = []
        values: dict[str, Any] = {}
        if visibility is not None:
            values["visibility"] = visibility
            if visibility == "organisation":
                offered.append(rubrics.c.visibility != "organisation")
        if tags is not None:
            values["tags"] = list(tags)
        if retired is not None:
            # Retiring a retired rubric keeps the first date.
            values["retired_at"] = (
                sa.func.coalesce(rubrics.c.retired_at, now()) if retired else None
            )
            if not retired:
                offered.append(rubrics.c.retired_at.is_not(None))
        if offered:
            values["offered_at"] = sa.case((sa.or_(*offered), now()), else_=rubrics.c.offered_at)
        async with self._db.writing(team_scope(team, actor.team)) as connection:
            seen = await self._fetch(
                connection, _SELECT.where(rubrics.c.id == rubric_id, visible(team))
            )
            if not seen:
                return None
            if seen[0].team != team:
                raise NotOwner
            # Lock the row: concurrent changes of the same rubric are applied one after the other.
            await connection.execute(
                sa.select(rubrics.c.id)
                .where(rubrics.c.id == rubric_id, rubrics.c.team == team)
                .with_for_update()
            )
            if retired is False:
                # It is offered anew from now on, also to the teams that it is shared with.
                await connection.execute(
                    sa.update(shares)
                    .where(
                        shares.c.rubric_id == rubric_id,
                        shares.c.owner == team,
                        sa.exists().where(
                            rubrics.c.id == rubric_id, rubrics.c.retired_at.is_not(None)
                        ),
                    )
                    .values(created_at=now())
                )
            if values:
                await connection.execute(
                    sa.update(rubrics)
                    .where(rubrics.c.id == rubric_id, rubrics.c.team == team)
                    .values(**values)
                )
            if shared_with is not None:
                # The owner sees it anyway.
                names = sorted(set(shared_with) - {team})
                await connection.execute(
                    sa.delete(shares).where(
                        shares.c.rubric_id == rubric_id,
                        shares.c.owner == team,
                        ~self._db.in_keys(shares.c.team, "keys"),
                    ),
                    {"keys": self._db.keys(names)},
                )
                await self._db.insert_new(
                    connection,
                    shares,
                    [
                        {"rubric_id": rubric_id, "team": name, "owner": team, "created_at": now()}
                        for name in names
                    ],
                )
            changes = {
                "visibility": visibility,
                "shared_with": None if shared_with is None else sorted(set(shared_with)),
                "tags": None if tags is None else len(tags),
                "retired": retired,
            }
            await record(
                connection,
                actor,
                "rubric.changed",
                f"rubric:{rubric_id}",
                {name: value for name, value in changes.items() if value is not None},
            )
            return (
                await self._fetch(
                    connection, _SELECT.where(rubrics.c.id == rubric_id, rubrics.c.team == team)
                )
            )[0]

    async def page(self, team: str, search: Search) -> tuple[list[Rubric], bool]:
        """Return the rubrics found that the team may see, newest first, and whether more exist."""
        query = _SELECT.where(visible(team), *self._conditions(search))
        if search.after is not None:
            # Continue behind the last rubric of the previous page, in the same order.
            # `visible` here too: the answer must not depend on rubrics that the team may not see.
            edge = (
                sa.select(rubrics.c.created_at, rubrics.c.id)
                .where(rubrics.c.id == search.after, visible(team))
                .subquery()
            )
            query = query.join(
                edge,
                sa.or_(
                    rubrics.c.created_at < edge.c.created_at,
                    sa.and_(rubrics.c.created_at == edge.c.created_at, rubrics.c.id < edge.c.id),
                ),
            )
        # One more than asked for tells whether there is a next page.
        query = query.order_by(*_NEWEST_FIRST).limit(search.limit + 1)
        if search.min_quality is None:
            async with self._db.reading(team_scope(team)) as connection:
                found = await self._fetch(connection, query)
        else:
            # The quality counts other teams' groups, which the team's scope would hide.
            async with self._db.reading(ALL_TEAMS) as connection:
                ids = (
                    (
                        await connection.execute(
                            query.with_only_columns(rubrics.c.id).where(
                                quality(self._db, team) >= search.min_quality
                            )
                        )
                    )
                    .scalars()
                    .all()
                )
            # The rubrics themselves are read in the team's own scope.
            found = await self.read(team, ids)
        return found[: search.limit], len(found) > search.limit

    async def read(self, team: str, rubric_ids: Sequence[str]) -> list[Rubric]:
        """Return those of these rubrics that the team may see, newest first."""
        query = _SELECT.where(self._db.in_keys(rubrics.c.id, "keys"), visible(team)).order_by(
            *_NEWEST_FIRST
        )
        async with self._db.reading(team_scope(team)) as connection:
            return await self._fetch(connection, query, {"keys": self._db.keys(rubric_ids)})

    async def quality(self, team: str, rubric_ids: Sequence[str]) -> dict[str, float]:
        """Return the `quality` of the rubrics that the team may see, where it is known."""
        query = sa.select(rubrics.c.id, quality(self._db, team)).where(
            self._db.in_keys(rubrics.c.id, "keys"), visible(team)
        )
        async with self._db.reading(ALL_TEAMS) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(rubric_ids)})
            return {rubric_id: share for rubric_id, share in rows if share is not None}

    def _conditions(self, search: Search) -> Iterator[sa.ColumnElement[bool]]:
        r = rubrics.c
        for column, value in (
            (r.prompt_key, search.prompt_key),
            (r.origin, search.origin),
            (r.team, search.team),
            (r.provenance["teacher_model"].as_string(), search.teacher_model),
        ):
            if value is not None:
                yield column == value
        if search.text is not None:
            yield self._db.matches(search.text, r.words, r.id, rubric_words)
        for tag in search.tags:
            yield self._db.contains(r.tags, tag)
        if search.category is not None:
            yield self._db.contains(r.criteria, {"category": search.category})
        if search.rubricator is not None:
            yield _starts_with(r.provenance["rubricator"].as_string(), search.rubricator)
        if search.rubricator is not None or search.teacher_model is not None:
            yield r.origin == "induced"
        if search.retired is not None:
            yield r.retired_at.is_not(None) if search.retired else r.retired_at.is_(None)

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

    async def drain(self) -> None:
        """Wait until all pending writes are stored."""
        await self._saving.drain()

    async def _save_induced(
        self, new: NewRubric, induction: str, claim: Claim | None
    ) -> Rubric | MetadataTooLarge:
        async with self._db.writing(team_scope(new.team, new.actor.team)) as connection:
            await self._lock_prompts(connection, [new.key])
            # In this transaction: a stalled owner whose claim was taken over must store nothing.
            if claim is not None and not await self._claims.release(connection, dict([claim])):
                raise ClaimLost
            # Another writer may have been first while we waited for the lock.
            earlier = await self._fetch(
                connection,
                _SELECT.join(inductions, inductions.c.rubric_id == rubrics.c.id).where(
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
        for found in await self._fetch(
            connection, self._versions, {"queries": self._db.pack(queries)}
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
        shares_of = await self._shared_with(
            connection, [each.id for each in saved if isinstance(each, Rubric)]
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

    @staticmethod
    async def _fetch(
        connection: AsyncConnection,
        query: sa.Select[Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Rubric]:
        return [
            _rubric(dict(row)) for row in (await connection.execute(query, parameters)).mappings()
        ]


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
