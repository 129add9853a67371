"""Rubrics as far as a team may see them: find, list, share and retire; `rubric_versions` saves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.vocabulary import Category, ReuseScope, RubricOrigin, View, Visibility
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.trajectory import DEFAULT_VIEW
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.engine.database import ALL_TEAMS, Database, team_scope
from markscheme_server.store.engine.ids import as_utc, now
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
SELECT_RUBRIC = sa.select(
    *(c for c in rubrics.c if c is not rubrics.c.words and c is not rubrics.c.metadata),
    prompts.c.messages,
).join(prompts, prompts.c.key == rubrics.c.prompt_key)
_NEWEST_FIRST = (rubrics.c.created_at.desc(), rubrics.c.id.desc())
DISTANCE: dict[ReuseScope, int] = {"own": 0, "shared": 1, "organisation": 2}
"""Distance of a visible rubric from a team; nearer rubrics are preferred."""
MIN_GROUPS = 5
"""Another team's results on one day are not disclosed below this number of groups."""
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


class NotOwner(Exception):
    """The team may see the rubric, but does not own it."""


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


def _newest(team: str, conditions: Sequence[sa.ColumnElement[bool]], most: int) -> sa.Select[str]:
    """Select the ids of the newest rubrics that a team may see and that meet the conditions."""
    # One part for each way in which a rubric is visible: an index has most of them in this order.
    # With `visible` every rubric would be read and sorted.
    found = sa.select(rubrics.c.id, rubrics.c.created_at).where(*conditions)
    parts = (
        found.where(rubrics.c.team == team),
        found.where(rubrics.c.visibility == "organisation"),
        found.join(shares, shares.c.rubric_id == rubrics.c.id).where(shares.c.team == team),
    )
    union = sa.union(
        *(sa.select(part.order_by(*_NEWEST_FIRST).limit(most).subquery()) for part in parts)
    ).subquery()
    return sa.select(union.c.id).order_by(union.c.created_at.desc(), union.c.id.desc()).limit(most)


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


async def fetch_rubrics(
    connection: AsyncConnection,
    query: sa.Select[Any],
    parameters: Mapping[str, Any] | None = None,
) -> list[Rubric]:
    """Return the rubrics of a query of `SELECT_RUBRIC`."""
    rows = (await connection.execute(query, parameters)).mappings()
    return [_rubric(dict(row)) for row in rows]


async def fetch_shares(
    database: Database,
    connection: AsyncConnection,
    rubric_ids: Sequence[str],
    *where: sa.ColumnElement[bool],
) -> dict[str, tuple[str, ...]]:
    """Return the teams with which rubrics are shared, by rubric id."""
    query = (
        sa.select(shares.c.rubric_id, shares.c.team)
        .where(database.in_keys(shares.c.rubric_id, "keys"), *where)
        .order_by(shares.c.rubric_id, shares.c.team)
    )
    found: dict[str, tuple[str, ...]] = {}
    for rubric_id, with_team in await connection.execute(
        query, {"keys": database.keys(rubric_ids)}
    ):
        found[rubric_id] = (*found.get(rubric_id, ()), with_team)
    return found


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
        SELECT_RUBRIC.add_columns(*(ranked.c[name] for name in _QUERY))
        .join(ranked, ranked.c.id == r.id)
        .where(ranked.c.rank == 1)
    )


class RubricStore:
    """Rubrics by id, by prompt and by induction, as far as a team may see them."""

    def __init__(self, database: Database) -> None:
        self._db = database
        r = rubrics.c
        # Queries of several teams are one statement. Text, because what a caller asks for may be
        # longer than any key.
        bound = database.rows([sa.Column("viewer", sa.Text), sa.Column("key", sa.Text)], "queries")
        # The transaction's scope covers all teams of a batch: `visible` keeps them apart.
        select = SELECT_RUBRIC.add_columns(bound.viewer, bound.key).where(visible(bound.viewer))
        self._by_id = select.where(r.id == bound.key)
        self._by_induction = select.join(inductions, inductions.c.rubric_id == r.id).where(
            inductions.c.key == bound.key, r.team == bound.viewer, r.retired_at.is_(None)
        )
        self._nearest = _nearest(database)
        self._finding: Batcher[tuple[str, str], Rubric | None] = Batcher(database, self._find)
        self._finding_nearest: Batcher[_Query, Rubric | None] = Batcher(
            database, self._find_nearest
        )
        self._finding_induced: Batcher[tuple[str, str], Rubric | None] = Batcher(
            database, self._find_induced
        )

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
        rows = await self._db.read(
            team_scope(*(str(query[0]) for query in queries)), select, {"queries": bound}
        )
        columns = select.selected_columns.keys()
        found = {}
        for values in rows:
            row = dict(zip(columns, values, strict=True))
            found[tuple(row[name] for name in names)] = _rubric(row)
        return [found.get(query) for query in queries]

    async def shared_with(self, team: str, rubric_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the teams with which the team's own rubrics are shared, by rubric id."""
        async with self._db.reading(team_scope(team)) as connection:
            return await fetch_shares(self._db, connection, rubric_ids, shares.c.owner == team)

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
            seen = await fetch_rubrics(
                connection, SELECT_RUBRIC.where(rubrics.c.id == rubric_id, visible(team))
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
                await fetch_rubrics(
                    connection,
                    SELECT_RUBRIC.where(rubrics.c.id == rubric_id, rubrics.c.team == team),
                )
            )[0]

    async def page(self, team: str, search: Search) -> tuple[list[Rubric], bool]:
        """Return the rubrics found that the team may see, newest first, and whether more exist."""
        r = rubrics.c
        conditions = list(self._conditions(search))
        if search.min_quality is not None:
            conditions.append(quality(self._db, team) >= search.min_quality)
        # The quality counts other teams' groups, which the team's scope would hide. The rubrics
        # themselves are read in the team's own scope.
        scope = team_scope(team) if search.min_quality is None else ALL_TEAMS
        async with self._db.reading(scope) as connection:
            if search.after is not None:
                # `visible`: the answer must not depend on rubrics that the team may not see.
                last = (
                    await connection.execute(
                        sa.select(r.created_at, r.id).where(r.id == search.after, visible(team))
                    )
                ).first()
                if last is None:
                    return [], False
                conditions.append(
                    sa.tuple_(r.created_at, r.id)
                    < sa.tuple_(*map(sa.literal, last, (r.created_at.type, r.id.type)))
                )
            # One more than asked for tells whether there is a next page.
            query = _newest(team, conditions, search.limit + 1)
            ids = (await connection.execute(query)).scalars().all()
        found = await self.read(team, ids)
        return found[: search.limit], len(found) > search.limit

    async def read(self, team: str, rubric_ids: Sequence[str]) -> list[Rubric]:
        """Return those of these rubrics that the team may see, newest first."""
        query = SELECT_RUBRIC.where(self._db.in_keys(rubrics.c.id, "keys"), visible(team)).order_by(
            *_NEWEST_FIRST
        )
        async with self._db.reading(team_scope(team)) as connection:
            return await fetch_rubrics(connection, query, {"keys": self._db.keys(rubric_ids)})

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
            # Only induced rubrics have either of the two.
            yield r.origin == "induced"
        if search.retired is not None:
            yield r.retired_at.is_not(None) if search.retired else r.retired_at.is_(None)
