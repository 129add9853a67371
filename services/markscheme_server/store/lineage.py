"""The history of a rubric, as far as a team may see it: relatives, responses, runs, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from markscheme.vocabulary import THINKING_MODES, VIEWS
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.trajectory import Judged, judged, judged_key
from markscheme_server.store.engine.database import ALL_TEAMS, Database, team_scope
from markscheme_server.store.rubrics import RubricStore, start_of_day, visible
from markscheme_server.store.tables import (
    assignments,
    rollouts,
    rubrics,
    teacher_responses,
    texts,
    verdicts,
)
from markscheme_server.store.texts import stored_response

MAX_RELATIVES = 100
"""The nearest ancestors, and as many of the nearest descendants."""
MAX_RUNS = 100


@dataclass(frozen=True, slots=True)
class Family:
    """A rubric, its ancestors and its descendants, newest first.

    ``visible``: their ids, and those of relatives just beyond `MAX_RELATIVES`; ``truncated``: there
    are such relatives.
    """

    rubrics: Sequence[Rubric]
    ancestors: frozenset[str]
    visible: frozenset[str]
    truncated: bool


@dataclass(frozen=True, slots=True)
class RunUse:
    """The results of a rubric in one run.

    Rewards are means over the groups of the first and the last scored step.
    """

    run_id: str
    groups: int
    groups_with_spread: int
    first_step: int
    last_step: int
    first_reward: float | None
    last_reward: float | None
    reward_change: float | None


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Decided verdicts of one criterion."""

    met: int = 0
    not_met: int = 0
    not_applicable: int = 0


@dataclass(frozen=True, slots=True)
class RubricUsage:
    """The team's groups with a rubric, their unscored rollouts, and other teams' groups.

    Other teams' groups count from the next day (UTC) on.
    """

    groups: int
    unscored: int
    other_teams_groups: int


class LineageStore:
    """Reads the history of rubrics, within what the team in question may see."""

    def __init__(self, database: Database, rubrics: RubricStore) -> None:
        self._db, self._rubrics = database, rubrics

    async def family(self, team: str, rubric_id: str) -> Family:
        """Return the relatives that are connected by rubrics that the team may see."""
        async with self._db.reading(team_scope(team)) as connection:
            above, below = [
                list((await connection.execute(query)).scalars())
                for query in (
                    _relatives(team, rubric_id, up=True),
                    _relatives(team, rubric_id, up=False),
                )
            ]
        nearest = dict.fromkeys([*above[: MAX_RELATIVES + 1], *below[: MAX_RELATIVES + 1]])
        return Family(
            await self._rubrics.read(team, list(nearest)),
            # The first one is the rubric itself.
            frozenset(above[1 : MAX_RELATIVES + 1]),
            frozenset([*above, *below]),
            max(len(above), len(below)) > MAX_RELATIVES + 1,
        )

    async def texts(
        self, team: str, prompt: str, rubric_ids: Sequence[str], keys: Sequence[str]
    ) -> dict[str, str]:
        """Return the judged texts with these keys that the team has, in its bank or as rollouts.

        The whole responses are stored. Their keys differ from those of the judged texts, from which
        thinking was removed. So this tries the prompt's teacher responses, and the rollouts from
        which the rubrics were induced.
        """
        a, r, t = assignments.c, rollouts.c, teacher_responses.c
        own = sa.select(r.text_key).join(assignments, a.id == r.assignment_id).where(a.team == team)
        query = sa.select(texts.c.text, texts.c.messages).where(
            sa.or_(
                texts.c.key.in_(
                    sa.select(t.text_key).where(t.team == team, t.prompt_key == prompt)
                ),
                texts.c.key.in_(
                    own.where(self._db.in_keys(a.rubric_id, "rubrics"), a.origin == "induced")
                ),
                texts.c.key.in_(own.where(self._db.in_keys(r.text_key, "keys"))),
            )
        )
        async with self._db.reading(team_scope(team)) as connection:
            found = await connection.execute(
                query, {"rubrics": self._db.keys(rubric_ids), "keys": self._db.keys(keys)}
            )
            parts: set[Judged] = {
                judged(stored_response(text, messages), view, thinking)
                for text, messages in found
                # A response that is a text is the same in every view.
                for view in (VIEWS if messages is not None else VIEWS[:1])
                for thinking in THINKING_MODES
            }
        by_key = {judged_key(part): part for part in parts}
        return {
            key: part if isinstance(part, str) else part.readable
            for key in keys
            if (part := by_key.get(key)) is not None
        }

    async def runs(self, team: str, rubric_id: str) -> tuple[list[RunUse], bool]:
        """Return the team's runs scored by the rubric, the latest first, and whether more exist."""
        a = assignments.c
        steps = (
            sa.select(
                a.run_id,
                a.step,
                sa.func.count().label("groups"),
                sa.func.count(sa.case((a.reward_spread > 0, 1))).label("spread"),
                sa.func.avg(a.reward_mean, type_=sa.Double).label("reward"),
                sa.func.max(a.created_at).label("latest"),
            )
            .where(a.team == team, a.rubric_id == rubric_id, a.run_id.is_not(None))
            .group_by(a.run_id, a.step)
            .cte("steps")
        )
        s = steps.c
        scored = sa.case((s.reward.is_not(None), s.step))
        runs = (
            sa.select(
                s.run_id,
                sa.func.sum(s.groups).label("groups"),
                sa.func.sum(s.spread).label("spread"),
                sa.func.min(s.step).label("first_step"),
                sa.func.max(s.step).label("last_step"),
                sa.func.min(scored).label("first_scored"),
                sa.func.max(scored).label("last_scored"),
                sa.func.max(s.latest).label("latest"),
            )
            .group_by(s.run_id)
            .order_by(sa.desc("latest"), s.run_id)
            .limit(MAX_RUNS + 1)
            .subquery()
        )
        # Join each run with its first and its last scored step, for their rewards.
        first, last = steps.alias("first"), steps.alias("last")
        query = (
            sa.select(
                runs, first.c.reward.label("first_reward"), last.c.reward.label("last_reward")
            )
            .outerjoin(
                first, sa.and_(first.c.run_id == runs.c.run_id, first.c.step == runs.c.first_scored)
            )
            .outerjoin(
                last, sa.and_(last.c.run_id == runs.c.run_id, last.c.step == runs.c.last_scored)
            )
            .order_by(runs.c.latest.desc(), runs.c.run_id)
        )
        async with self._db.reading(team_scope(team)) as connection:
            found = [
                RunUse(
                    row.run_id,
                    int(row.groups),
                    int(row.spread),
                    row.first_step,
                    row.last_step,
                    row.first_reward,
                    row.last_reward,
                    row.last_reward - row.first_reward
                    if row.first_scored != row.last_scored
                    else None,
                )
                for row in await connection.execute(query)
            ]
        return found[:MAX_RUNS], len(found) > MAX_RUNS

    async def verdicts(
        self, team: str, prompt: str, criterion_keys: Sequence[str]
    ) -> dict[str, VerdictCounts]:
        """Count the team's verdicts on a prompt, by criterion key."""
        v = verdicts.c
        query = (
            sa.select(
                v.criterion_key,
                sa.func.count(sa.case((v.met, 1))),
                # COUNT leaves out nulls: what does not apply is neither met nor unmet.
                sa.func.count(v.met),
                sa.func.count(),
            )
            .where(
                v.team == team, v.prompt_key == prompt, self._db.in_keys(v.criterion_key, "keys")
            )
            .group_by(v.criterion_key)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return {
                key: VerdictCounts(met, decided - met, total - decided)
                for key, met, decided, total in await connection.execute(
                    query, {"keys": self._db.keys(criterion_keys)}
                )
            }

    async def usage(self, team: str, rubric_id: str) -> RubricUsage:
        """Return how much a rubric was used that the team may see."""
        a = assignments.c
        query = (
            sa.select(
                sa.func.count(sa.case((a.team == team, 1))),
                sa.func.coalesce(sa.func.sum(sa.case((a.team == team, a.unscored))), 0),
                sa.func.count(sa.case((sa.and_(a.team != team, a.created_at < start_of_day()), 1))),
            )
            .join(rubrics, rubrics.c.id == a.rubric_id)
            .where(rubrics.c.id == rubric_id, visible(team))
        )
        # Other teams' groups are counted too, which the team's own scope would hide.
        async with self._db.reading(ALL_TEAMS) as connection:
            groups, unscored, others = (await connection.execute(query)).one()
        return RubricUsage(groups, int(unscored), others)


def _relatives(team: str, rubric_id: str, *, up: bool) -> sa.Select[Any]:
    """Select the ids of a rubric and its ancestors or descendants, the nearest first.

    One more than `MAX_RELATIVES` is selected, to know whether there are more.
    """
    r = rubrics.c
    start = (
        sa.select(r.id, r.parent_id)
        .where(r.id == rubric_id, visible(team))
        .cte("walk", recursive=True)
    )
    # A rubric that the team may not see ends the walk: what lies behind it stays hidden too.
    step = sa.select(r.id, r.parent_id).where(
        r.id == start.c.parent_id if up else r.parent_id == start.c.id, visible(team)
    )
    return sa.select(start.union(step).c.id).limit(MAX_RELATIVES + 2)
