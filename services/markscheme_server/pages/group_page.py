"""What the page of a group shows, made from the answers that the API gives. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from markscheme.schema import GroupDetail, GroupResponse, JudgePrompt, display_step
from markscheme_server.pages import charts, evidence
from markscheme_server.pages.labels import headline


@dataclass(frozen=True, slots=True)
class Column:
    """A response of a group: a column of the matrix and a card with its text."""

    name: str
    response: GroupResponse
    passage: evidence.Passage | None
    verdicts: Mapping[str, Any]
    missed: list[str]
    is_teacher: bool
    is_best: bool
    bar: Markup


def group_page(
    group: GroupDetail, shown: Sequence[str] = (), prompt: JudgePrompt | None = None
) -> dict[str, Any]:
    """Return what the page of a group shows: teachers first, then rollouts by reward.

    `shown`: names of the rollouts whose texts are shown; none: all of them. `prompt`: what the
    judge saw of one of them.
    """
    names = {
        id(response): "teacher" if len(group.teachers) == 1 else f"teacher {i}"
        for i, response in enumerate(group.teachers, 1)
    }
    ranked = sorted(group.rollouts, key=lambda r: (r.reward is None, -(r.reward or 0.0)))
    best = ranked[0] if ranked and ranked[0].reward is not None else None
    columns = [
        _column(r, names.get(id(r), r.id), is_teacher=id(r) in names, is_best=r is best)
        for r in [*group.teachers, *ranked]
    ]
    met = {}
    for criterion in group.criteria:
        decided = [
            v.met
            for r in group.rollouts
            for v in r.verdicts
            if v.criterion_id == criterion.id and v.met is not None
        ]
        met[criterion.id] = (sum(decided), len(decided))
    return {
        "group": group,
        "columns": columns,
        "cards": [c for c in columns if not shown or c.name in shown],
        "compared": bool(shown),
        "met": met,
        "unknown": sum(r.reward is None for r in group.rollouts),
        "judge_prompt": prompt,
        "step": None if group.step is None else display_step(group.step, group.first_step or 0),
        "rings": any(v.second_judge_met is not None for r in group.rollouts for v in r.verdicts),
        "headline": headline,
    }


def _column(response: GroupResponse, name: str, *, is_teacher: bool, is_best: bool) -> Column:
    return Column(
        name,
        response,
        evidence.mark(response.text, response.verdicts) if response.text else None,
        {verdict.criterion_id: verdict for verdict in response.verdicts},
        [v.criterion_id for v in response.verdicts if v.met is False],
        is_teacher,
        is_best,
        charts.reward_bar(response.reward),
    )
