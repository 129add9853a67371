"""A service whose runs are made up, and a reader of its pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass
class MadeRuns:
    """Answers as the services of runs, groups and judges do, from one run that is made up."""

    run_: made.MadeRun
    group_: schema.GroupDetail
    detail: dict[str, Any]
    text: str | None = None
    team: str = "default"

    def _own(self, caller: Caller) -> None:
        if caller.team != self.team:
            raise NotFound("there is no such run", code="not_found")

    async def runs(self, caller: Caller, **_: Any) -> schema.RunList:
        shown = [self.run_.summary(**self.detail)] if caller.team == self.team else []
        return schema.RunList(data=shown, has_more=False)

    async def run(self, caller: Caller, run_id: str, **_: Any) -> schema.RunDetail:
        self._own(caller)
        if run_id != self.run_.detail().id:
            raise NotFound("there is no such run", code="not_found")
        return self.run_.detail(**self.detail)

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


class _WithRuns:
    """The services of an application, with other runs."""

    def __init__(self, services: Any, runs: MadeRuns) -> None:
        self._services = services
        self.runs = self.groups = self.judge_reports = runs

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
