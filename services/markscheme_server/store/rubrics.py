"""Rubrics, the prompts they are for, and the memo of inductions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.vocabulary import Category, ReuseScope, RubricOrigin, Visibility
from markscheme_server.domain.hashing import ChatMessage, content_hash, prompt_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.store.audit import Actor, record
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

_SELECT = sa.select(*(c for c in rubrics.c if c is not rubrics.c.words), prompts.c.messages).join(
    prompts, prompts.c.key == rubrics.c.prompt_key
)
_NEWEST_FIRST = (rubrics.c.created_at.desc(), rubrics.c.id.desc())
NEARNESS: dict[ReuseScope, int] = {"own": 0, "shared": 1, "organisation": 2}
"""How near a visible rubric is to a team: what is nearer is taken first."""
LEAST_GROUPS = 5
"""Of what another team scored by a rubric on one day nothing is told below this number of groups."""
SEARCHED_LENGTH = 50_000
"""Characters of a rubric that are searched in: what PostgreSQL can hold of any text."""
_SPREAD_SHARE = sa.func.avg(
    sa.case((assignments.c.reward_spread > 0, 1.0), else_=0.0), type_=sa.Double
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rubrics are good enough to be reused: by the teacher's model, and by how the name of what induced them
    begins. ``None``: any. Only what was induced has a teacher and a rubricator."""

    teacher_model: str | None = None
    rubricator: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """Which rubrics to list, ``limit`` of them from behind the rubric ``after``. ``None``: any.

    ``text``: words of its prompt and criteria; ``tags``: it has all of them; ``category``: of one of its criteria;
    ``rubricator``: how the name of what induced it begins; ``min_quality``: the least :func:`quality`.
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


class NotTheirs(Exception):
    """The team sees the rubric, but it is another team's."""


def _shared(team: Any) -> sa.ColumnElement[bool]:
    return sa.exists().where(shares.c.rubric_id == rubrics.c.id, shares.c.team == team)


def visible(team: Any) -> sa.ColumnElement[bool]:
    """Whether a team sees a rubric: its own, one shared with it, or one of the organisation."""
    return sa.or_(rubrics.c.team == team, rubrics.c.visibility == "organisation", _shared(team))


def start_of_day() -> datetime:
    """When the day began, in UTC."""
    return now().replace(hour=0, minute=0, second=0, microsecond=0)


def quality(database: Database, team: str) -> sa.ColumnElement[Any]:
    """Of the groups scored by a rubric, the share whose rewards have spread, as the team is told. Null: not known.

    The team's own groups, where it has any. Else of each other team the mean over its days, and the mean of these: of
    days that are over, and on which the team scored :data:`LEAST_GROUPS` at least, so that nobody can read off what
    came of one group. Groups that can have no spread do not count.
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
        .having(sa.func.count() >= LEAST_GROUPS)
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


def _begins(text: Any, with_: Any) -> sa.ColumnElement[bool]:
    return sa.func.substr(text, 1, sa.func.length(with_), type_=sa.Text) == sa.cast(with_, sa.Text)


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
    )


_WISH = ("viewer", "wanted", "teacher_model", "rubricator", "run", "furthest")
_Wish = tuple[str, str, str | None, str | None, str | None, int]


def _nearest(database: Database) -> sa.Select[Any]:
    """The rubric of each of the wishes that are bound to the parameter ``asked``."""
    r, a = rubrics.c, assignments.c
    asked = database.rows(
        [sa.Column(name, sa.Integer if name == "furthest" else sa.Text) for name in _WISH], "asked"
    )
    began = (
        sa.select(sa.func.min(a.created_at))
        .where(a.team == asked.viewer, a.run_id == asked.run)
        .scalar_subquery()
    )
    wishes = sa.select(*(asked[name] for name in _WISH), began.label("began")).cte("wishes")
    w = wishes.c

    def before_run(moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[bool]:
        return sa.or_(w.began.is_(None), moment <= w.began)

    shared = sa.exists().where(
        shares.c.rubric_id == r.id, shares.c.team == w.viewer, before_run(shares.c.created_at)
    )
    opened = sa.and_(
        r.visibility == "organisation", before_run(sa.func.coalesce(r.offered_at, r.created_at))
    )
    nearness = sa.case(
        (r.team == w.viewer, NEARNESS["own"]),
        (shared, NEARNESS["shared"]),
        (opened, NEARNESS["organisation"]),
    )
    unfiltered = sa.and_(w.teacher_model.is_(None), w.rubricator.is_(None))
    told = {name: r.provenance[name].as_string() for name in ("teacher_model", "rubricator")}
    found = (
        sa.select(
            r.id,
            *(w[name] for name in _WISH),
            nearness.label("nearness"),
            (r.origin == "induced").label("induced"),
            r.created_at,
            r.version,
        )
        .where(
            r.prompt_key == w.wanted,
            r.retired_at.is_(None),
            visible(w.viewer),
            sa.or_(unfiltered, r.origin == "induced"),
            sa.or_(w.teacher_model.is_(None), told["teacher_model"] == w.teacher_model),
            sa.or_(w.rubricator.is_(None), _begins(told["rubricator"], w.rubricator)),
        )
        .subquery()
    )
    f = found.c
    wish = [f[name] for name in _WISH]
    ranked = (
        sa.select(
            f.id,
            *wish,
            sa.func.row_number()
            .over(
                partition_by=wish,
                order_by=(f.nearness, f.induced, f.created_at.desc(), f.version.desc(), f.id),
            )
            .label("place"),
        )
        .where(f.nearness <= f.furthest)
        .subquery()
    )
    return (
        _SELECT.add_columns(*(ranked.c[name] for name in _WISH))
        .join(ranked, ranked.c.id == r.id)
        .where(ranked.c.place == 1)
    )


class RubricStore:
    """Rubrics by id, by prompt and by induction. Every read names the team that looks."""

    def __init__(self, database: Database, claims: ClaimStore) -> None:
        self._db, self._claims = database, claims
        r = rubrics.c
        # Who looks for what; several teams' questions are one statement.
        # As text of any length: what a caller asks for may be longer than anything there is.
        asked = database.rows([sa.Column("viewer", sa.Text), sa.Column("wanted", sa.Text)], "asked")
        select = _SELECT.add_columns(asked.viewer, asked.wanted).where(visible(asked.viewer))
        self._by_id = select.where(r.id == asked.wanted)
        self._by_induction = select.join(inductions, inductions.c.rubric_id == r.id).where(
            inductions.c.key == asked.wanted, r.team == asked.viewer, r.retired_at.is_(None)
        )
        self._nearest = _nearest(database)
        self._finding: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find)
        self._finding_nearest: Batcher[_Wish, Rubric | None] = Batcher(self._find_nearest)
        self._finding_induced: Batcher[tuple[str, str], Rubric | None] = Batcher(self._find_induced)

    async def find(self, team: str, rubric_id: str) -> Rubric | None:
        """The rubric of this id, if the team sees it."""
        return await self._finding.submit((team, rubric_id))

    async def find_nearest(
        self,
        team: str,
        key: str,
        filters: Filters,
        *,
        scope: ReuseScope = "organisation",
        run_id: str | None = None,
    ) -> Rubric | None:
        """The rubric for a prompt that is nearest to the team: one of its own, else of those shared with it, else of
        the organisation's, as far as ``scope``; at each distance what a person brought or edited before what was
        induced, and the newest first.

        Retired ones are passed over, those that the filters leave out, and what other teams offered after the first
        group of the run was given its rubric.
        """
        return await self._finding_nearest.submit(
            (team, key, filters.teacher_model, filters.rubricator, run_id, NEARNESS[scope])
        )

    async def find_induced(self, team: str, induction: str) -> Rubric | None:
        """The rubric that this very induction of the team made before."""
        return await self._finding_induced.submit((team, induction))

    async def _find(self, wanted: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        return await self._answer(self._by_id, wanted)

    async def _find_nearest(self, wanted: Sequence[_Wish]) -> list[Rubric | None]:
        return await self._answer(self._nearest, wanted, _WISH)

    async def _find_induced(self, wanted: Sequence[tuple[str, str]]) -> list[Rubric | None]:
        return await self._answer(self._by_induction, wanted)

    async def _answer(
        self,
        query: sa.Select[Any],
        wanted: Sequence[tuple[str | int | None, ...]],
        names: Sequence[str] = ("viewer", "wanted"),
    ) -> list[Rubric | None]:
        asked = self._db.pack(
            [dict(zip(names, wish, strict=True)) for wish in dict.fromkeys(wanted)]
        )
        async with self._db.reading(team_scope(*(str(wish[0]) for wish in wanted))) as connection:
            rows = (await connection.execute(query, {"asked": asked})).mappings()
            found = {tuple(row[name] for name in names): _rubric(dict(row)) for row in rows}
        return [found.get(wish) for wish in wanted]

    async def shared_with(self, team: str, rubric_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """With which teams the team's own rubrics are shared; of others' it is not told."""
        query = (
            sa.select(shares.c.rubric_id, shares.c.team)
            .where(shares.c.owner == team, self._db.in_keys(shares.c.rubric_id, "keys"))
            .order_by(shares.c.rubric_id, shares.c.team)
        )
        found: dict[str, tuple[str, ...]] = {}
        async with self._db.reading(team_scope(team)) as connection:
            for rubric_id, with_team in await connection.execute(
                query, {"keys": self._db.keys(rubric_ids)}
            ):
                found[rubric_id] = (*found.get(rubric_id, ()), with_team)
        return found

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
        """Change who sees a rubric, its tags, or whether it is retired; ``None`` leaves a thing as it is.

        Whether there is a team of a name in ``shared_with`` is not told: any name is kept. What is shared with a team
        already goes on being shared since when it was. ``None`` when the team does not see the rubric. Raises
        :class:`NotTheirs`.
        """
        offered = []
        values: dict[str, Any] = {}
        if visibility is not None:
            values["visibility"] = visibility
            if visibility == "organisation":
                offered.append(rubrics.c.visibility != "organisation")
        if tags is not None:
            values["tags"] = list(tags)
        if retired is not None:
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
                raise NotTheirs
            await connection.execute(
                sa.select(rubrics.c.id)
                .where(rubrics.c.id == rubric_id, rubrics.c.team == team)
                .with_for_update()
            )
            if retired is False:
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
            told = {
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
                {name: value for name, value in told.items() if value is not None},
            )
            return (
                await self._fetch(
                    connection, _SELECT.where(rubrics.c.id == rubric_id, rubrics.c.team == team)
                )
            )[0]

    async def page(self, team: str, search: Search) -> tuple[list[Rubric], bool]:
        """What the team sees and looks for, newest first; and whether there are more."""
        query = _SELECT.where(visible(team), *self._conditions(search))
        if search.after is not None:
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
        query = query.order_by(*_NEWEST_FIRST).limit(search.limit + 1)
        if search.min_quality is None:
            async with self._db.reading(team_scope(team)) as connection:
                found = await self._fetch(connection, query)
        else:
            # Other teams' groups count, and no team sees another's.
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
            found = await self.read(team, ids)
        return found[: search.limit], len(found) > search.limit

    async def read(self, team: str, rubric_ids: Sequence[str]) -> list[Rubric]:
        """Those of these rubrics that the team sees, newest first."""
        query = _SELECT.where(self._db.in_keys(rubrics.c.id, "keys"), visible(team)).order_by(
            *_NEWEST_FIRST
        )
        async with self._db.reading(team_scope(team)) as connection:
            return await self._fetch(connection, query, {"keys": self._db.keys(rubric_ids)})

    async def quality(self, team: str, rubric_ids: Sequence[str]) -> dict[str, float]:
        """The :func:`quality` of those of these rubrics that the team sees, where it is known."""
        query = sa.select(rubrics.c.id, quality(self._db, team)).where(
            self._db.in_keys(rubrics.c.id, "keys"), visible(team)
        )
        async with self._db.reading(ALL_TEAMS) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(rubric_ids)})
            return {rubric_id: share for rubric_id, share in rows if share is not None}

    def _conditions(self, search: Search) -> Iterator[sa.ColumnElement[bool]]:
        r = rubrics.c
        for column, wanted in (
            (r.prompt_key, search.prompt_key),
            (r.origin, search.origin),
            (r.team, search.team),
            (r.provenance["teacher_model"].as_string(), search.teacher_model),
        ):
            if wanted is not None:
                yield column == wanted
        if search.text is not None:
            yield self._db.finds(search.text, r.words, r.id, rubric_words)
        for tag in search.tags:
            yield self._db.contains(r.tags, tag)
        if search.category is not None:
            yield self._db.contains(r.criteria, {"category": search.category})
        if search.rubricator is not None:
            yield _begins(r.provenance["rubricator"].as_string(), search.rubricator)
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
        cost_usd: float | None = None,
        induction: str | None = None,
        claim: Claim | None = None,
        parent: Rubric | None = None,
    ) -> Rubric:
        """Store a rubric as the prompt's next version and return it as stored. ``parent``: the rubric that it was
        made from; default: the team's newest for the prompt. ``cost_usd``: what inducing it cost, where that is known.

        When the newest version has the same content it is returned instead, unless it is retired: the same marks need
        no new version.
        With ``induction`` the memo is written in the same transaction; if another writer was first, its rubric
        is the answer.
        """
        key, hashed = prompt_key(prompt), content_hash(criteria)
        async with self._db.writing(team_scope(team, actor.team)) as connection:
            await self._lock_prompt(connection, key)
            if claim is not None and not await self._claims.release(connection, dict([claim])):
                raise ClaimLost
            if induction is not None:
                memo = await self._fetch(
                    connection,
                    _SELECT.join(inductions, inductions.c.rubric_id == rubrics.c.id).where(
                        inductions.c.key == induction,
                        rubrics.c.team == team,
                        rubrics.c.retired_at.is_(None),
                    ),
                )
                if memo:
                    return memo[0]
            await self._db.insert_new(
                connection, prompts, [{"key": key, "messages": list(prompt), "created_at": now()}]
            )
            newest = await self._fetch(
                connection,
                _SELECT.where(rubrics.c.team == team, rubrics.c.prompt_key == key)
                .order_by(rubrics.c.version.desc())
                .limit(1),
            )
            last = newest[0] if newest else None
            if last is None or last.content_hash != hashed or last.retired_at is not None:
                parent = parent or last
                saved = Rubric(
                    id=new_id("rub"),
                    team=team,
                    prompt_key=key,
                    prompt=tuple(prompt),
                    version=last.version + 1 if last else 1,
                    parent_id=parent.id if parent else None,
                    content_hash=hashed,
                    criteria=tuple(criteria),
                    origin=origin,
                    tags=tuple(tags),
                    provenance=provenance,
                    created_at=now(),
                    cost_usd=cost_usd,
                )
                await connection.execute(
                    rubrics.insert().values(
                        id=saved.id,
                        team=team,
                        prompt_key=key,
                        version=saved.version,
                        parent_id=saved.parent_id,
                        content_hash=hashed,
                        criteria=[_plain(c) for c in criteria],
                        origin=origin,
                        tags=list(tags),
                        provenance=dict(provenance),
                        created_at=saved.created_at,
                        cost_usd=cost_usd,
                        words=self._db.searchable(
                            "\n".join(
                                [*(c.text for c in criteria), *(m["content"] for m in prompt)]
                            )[:SEARCHED_LENGTH]
                        ),
                    )
                )
                await record(
                    connection,
                    actor,
                    f"rubric.{origin}",
                    f"rubric:{saved.id}",
                    {"version": saved.version},
                )
            else:
                saved = last
            if induction is not None:
                memo_row = self._db.insert(inductions).values(
                    key=induction, rubric_id=saved.id, created_at=now()
                )
                await connection.execute(
                    memo_row.on_conflict_do_update(
                        index_elements=[inductions.c.key],
                        set_={"rubric_id": memo_row.excluded.rubric_id},
                    )
                )
        return saved

    @staticmethod
    async def _lock_prompt(connection: AsyncConnection, key: str) -> None:
        """Versions of one prompt are numbered one writer at a time; SQLite's BEGIN IMMEDIATE already does it."""
        if connection.dialect.name == "postgresql":
            await connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(:k)"), {"k": int(key[:15], 16)}
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


def _plain(criterion: Criterion) -> dict[str, Any]:
    return asdict(criterion) | {"check": dict(criterion.check) if criterion.check else None}
