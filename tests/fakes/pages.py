"""A service whose runs are made up, and a reader of its pages."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from fakes import runs as made
from markscheme import schema
from markscheme_server import app
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import NotFound

VOID = frozenset({"br", "circle", "hr", "img", "input", "line", "link", "meta", "path", "rect"})
"""Elements that have no end."""
OTHERS = ("b", "c", "d", "e", "f")
"""Runs of the same figures beside a made-up one, to be compared with it."""


class Page(HTMLParser):
    """An HTML page that was read: fails where an element is not closed, or in the wrong order.

    `texts` holds the text of the page, `values` each figure in full, `tags` each element with its
    attributes.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.values: list[float] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of this kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"twice in {tag}: {names}"
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open, f"</{tag}> closes nothing"
            assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data)


def run_figures(run: schema.RunDetail, groups: schema.RunGroupList) -> list[float]:
    """Return figures that the page of a run must show, of those that are known."""
    shares = [
        run.reward_now / run.teacher if run.reward_now is not None and run.teacher else None,
        run.unscored / run.rollouts if run.rollouts else None,
        1 - run.flat_groups / run.comparable_groups if run.comparable_groups else None,
    ]
    whole = [run.reward_first, run.reward_now, run.teacher, run.second_judge_now, run.cost_usd]
    return _known(*whole, *shares, *(group.mean for group in groups.data))


def criterion_figures(criteria: schema.CriterionList) -> list[float]:
    """Return the shares of met verdicts that the page of a run must show."""
    rows = [*criteria.data, *(each for each in criteria.categories if each.criteria > 1)]
    shares = [share for each in rows for share in (each.first, each.now, each.teacher)]
    return [share.met / share.judged for share in shares if share.judged]


def group_figures(group: schema.GroupDetail) -> list[float]:
    """Return the rewards that the page of a group must show, of those that are known."""
    return _known(*(each.reward for each in [*group.rollouts, *group.teachers]))


def replay_figures(replay: schema.ReplayDetail) -> list[float]:
    """Return figures that the page of a replay must show, of those that are known."""
    compared = replay.comparison
    means = [compared.difference, compared.rank_agreement, compared.sign_changes]
    found = _known(compared.before, compared.after, replay.cost_usd)
    for mean in means:
        found += _known(mean.value, mean.low, mean.high)
    for row in compared.criteria:
        found += _known(row.lost, row.gained, row.pairs, row.p)
        if row.judged_before and row.judged_after:
            found += [row.met_before / row.judged_before, row.met_after / row.judged_after]
    return found


def comparison_figures(found: schema.RunComparison) -> list[float]:
    """Return figures that the page that compares runs must show, of those that are known."""
    first = found.runs[0].reward_now
    shown = []
    for number, run in enumerate(found.runs):
        shown += _known(run.reward_first, run.reward_now, run.teacher, run.cost_usd)
        if number and run.reward_now is not None and first is not None:
            shown.append(run.reward_now - first)
    for each in found.differences:
        shown += _known(each.first, each.reward)
        for mean in (each.difference, each.same_rubric_difference):
            # Where all are equal, a sentence stands in the place of an interval.
            bounds = () if mean.low == mean.high else (mean.low, mean.high)
            shown += _known(mean.value, *bounds)
    for row in [*found.criteria, *found.categories]:
        shares = [each.met / each.judged if each and each.judged else None for each in row.now]
        shown += _known(*shares, *_from_first(shares))
    for prompt in found.prompts:
        means = [group.mean if group is not None else None for group in prompt.groups]
        shown += _known(*means, *_from_first(means))
    return shown


def _from_first(values: list[float | None]) -> list[float]:
    first, *others = values
    return [other - first for other in others if other is not None and first is not None]


def _known(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]


def missing(expected: Iterable[float], shown: Iterable[float]) -> list[float]:
    """Return the expected figures that are not shown to 1e-9."""
    values = list(shown)
    return [each for each in expected if not any(abs(each - value) < 1e-9 for value in values)]


@dataclass
class MadeRuns:
    """Answers as the services of runs, groups, judges and replays do, from one made-up run.

    Other runs that are compared with it are shorter, each by a fiftieth of its steps.
    """

    run_: made.MadeRun
    group_: schema.GroupDetail
    detail: dict[str, Any]
    text: str | None = None
    team: str = "default"

    def _own(self, caller: Caller) -> None:
        if caller.team != self.team:
            raise NotFound("there is no such run", code="not_found")

    async def require_reader(self, caller: Caller, _run_id: str) -> None:
        self._own(caller)

    async def runs(self, caller: Caller, **_: Any) -> schema.RunList:
        shown = [self.run_.summary(**self.detail)] if caller.team == self.team else []
        return schema.RunList(data=shown, has_more=False)

    async def run(self, caller: Caller, run_id: str, **_: Any) -> schema.RunDetail:
        self._own(caller)
        if run_id not in (self.run_.detail().id, *OTHERS):
            raise NotFound("there is no such run", code="not_found")
        return self.run_.detail(**self.detail, id=run_id)

    async def compare(
        self, caller: Caller, run_ids: Sequence[str], **_: Any
    ) -> schema.RunComparison:
        self._own(caller)
        if self.run_.detail().id not in run_ids:
            raise NotFound("there is no such run", code="not_found")
        part = self.run_.steps // 50
        return made.made_comparison(
            [
                replace(self.run_, id=id, steps=self.run_.steps - number * part)
                for number, id in enumerate(run_ids)
            ],
            prompts=min(30, self.run_.steps),
        )

    async def steps(self, caller: Caller, *_: Any, **__: Any) -> schema.StepList:
        self._own(caller)
        return self.run_.step_list()

    async def criteria(self, caller: Caller, *_: Any, **__: Any) -> schema.CriterionList:
        self._own(caller)
        return self.run_.criterion_list()

    async def findings(self, caller: Caller, *_: Any, **__: Any) -> schema.FindingList:
        self._own(caller)
        return self.run_.finding_list()

    async def groups(self, caller: Caller, *_: Any, **__: Any) -> schema.RunGroupList:
        self._own(caller)
        return self.run_.group_list()

    async def group(self, caller: Caller, group_id: str, **_: Any) -> schema.GroupDetail:
        self._own(caller)
        return self.group_.model_copy(update={"id": group_id})

    async def judge_prompt(
        self, caller: Caller, group_id: str, rollout_id: str, **_: Any
    ) -> schema.JudgePrompt:
        self._own(caller)
        return schema.JudgePrompt(
            rollout_id=rollout_id,
            judge="openai/qwen3-32b@5f2c9a1b03de",
            messages=[schema.Message(role="user", content=self.text or "You judge answers.")],
            reason=None,
        )

    async def health(self, caller: Caller, rubric_id: str, **_: Any) -> schema.RubricHealth:
        return schema.RubricHealth(rubric_id=rubric_id, groups=0, criteria=[], runs=[])

    async def judges(self, caller: Caller, **_: Any) -> schema.JudgeReports:
        return made.judge_reports(self.text)

    async def replays(self, caller: Caller, **_: Any) -> schema.ReplayList:
        self._own(caller)
        listed = [
            schema.Replay.model_validate(
                made.made_replay(id, self.text).model_dump(exclude={"comparison"})
            )
            for id in made.REPLAYS
        ]
        return schema.ReplayList(data=listed, has_more=False)

    async def replay(self, caller: Caller, replay_id: str) -> schema.ReplayDetail:
        self._own(caller)
        return made.made_replay(replay_id, self.text)


class _WithRuns:
    """The services of an application, with other runs."""

    def __init__(self, services: Any, runs: MadeRuns) -> None:
        self._services = services
        self.runs = self.groups = self.judge_reports = self.replays = runs
        self.comparisons = runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._services, name)


@contextmanager
def made_runs(
    run: made.MadeRun | None = None,
    group: schema.GroupDetail | None = None,
    *,
    team: str = "default",
    text: str | None = None,
    **detail: Any,
) -> Iterator[MadeRuns]:
    """Let every service that starts within the block have these runs only."""
    runs = MadeRuns(
        run or made.MadeRun(text=text), group or made.made_group(text=text), detail, text, team
    )
    with pytest.MonkeyPatch.context() as patch:
        services = app.Services
        patch.setattr(app, "Services", lambda *all: _WithRuns(services(*all), runs))
        yield runs
