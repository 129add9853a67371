"""Methods of both clients for training runs: read them, and report your own metrics."""

from collections.abc import Mapping, Sequence
from typing import Literal

from markscheme import requests
from markscheme.connection import AsyncConnection, SyncConnection
from markscheme.schema import (
    CriterionList,
    FindingList,
    GroupDetail,
    JudgePrompt,
    RunComparison,
    RunDetail,
    RunGroupList,
    RunList,
    StepList,
)
from markscheme.vocabulary import GroupSort


class RunMethods(SyncConnection):
    """Methods of `Client` for training runs."""

    def runs(self, *, limit: int = 20, after: str | None = None) -> RunList:
        """Return a page of your team's runs, most recently active first.

        Args:
            limit: Page size, 1 to 100.
            after: Id of the last run of the previous page.
        """
        return self._send(requests.runs(limit, after))

    def run(self, run_id: str) -> RunDetail:
        """Return a run: its facts, its latest figures and its cost."""
        return self._send(requests.run(run_id))

    def compare_runs(
        self,
        run_ids: Sequence[str],
        *,
        bins: int = 200,
        criteria: int = 40,
        limit: int = 50,
        after: str | None = None,
    ) -> RunComparison:
        """Return runs beside each other: rewards, criteria, and the prompts that they share.

        Args:
            run_ids: Ids of two to six runs; the others are compared with the first.
            bins: Maximum number of bins of steps.
            criteria: Maximum number of criteria, 1 to 400: those with the greatest loss.
            limit: Maximum number of prompts, 1 to 100, those with the greatest loss first.
            after: Key of the last prompt of the previous page.
        """
        return self._send(requests.compare_runs(run_ids, bins, criteria, limit, after))

    def run_steps(
        self,
        run_id: str,
        *,
        bins: int = 200,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> StepList:
        """Return a run's rewards in at most `bins` bins of steps, numbered as they were sent."""
        return self._send(
            requests.run_part(
                run_id, "steps", StepList, bins=bins, first_step=first_step, last_step=last_step
            )
        )

    def run_criteria(
        self,
        run_id: str,
        *,
        bins: int = 100,
        limit: int = 40,
        after: str | None = None,
        criterion: str | None = None,
    ) -> CriterionList:
        """Return how often a run's criteria are met, those with findings first.

        Args:
            run_id: Id of the run.
            bins: Maximum number of bins of steps.
            limit: Page size, 1 to 100.
            after: Key of the last criterion of the previous page.
            criterion: Return only the criterion with this key.
        """
        return self._send(
            requests.run_part(
                run_id,
                "criteria",
                CriterionList,
                bins=bins,
                limit=limit,
                after=after,
                criterion=criterion,
            )
        )

    def run_findings(self, run_id: str) -> FindingList:
        """Return the findings about a run, alarms first."""
        return self._send(requests.run_part(run_id, "findings", FindingList))

    def run_groups(
        self,
        run_id: str,
        *,
        sort: GroupSort = "newest",
        first_step: int | None = None,
        last_step: int | None = None,
        criterion: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> RunGroupList:
        """Return a page of a run's groups.

        Args:
            run_id: Id of the run.
            sort: Order of the groups.
            first_step: Leave out groups of earlier steps, numbered as they were sent.
            last_step: Leave out groups of later steps.
            criterion: Only groups whose rubric has the criterion with this key.
            limit: Page size, 1 to 100.
            after: Id of the last group of the previous page.
        """
        return self._send(
            requests.run_part(
                run_id,
                "groups",
                RunGroupList,
                sort=sort,
                first_step=first_step,
                last_step=last_step,
                criterion=criterion,
                limit=limit,
                after=after,
            )
        )

    def group(self, group_id: str) -> GroupDetail:
        """Return a scored group, by the id that `run_groups` lists."""
        return self._send(requests.group(group_id))

    def judge_prompt(self, group_id: str, rollout: str) -> JudgePrompt:
        """Return the prompt that the judge got for a rollout of a group."""
        return self._send(requests.judge_prompt(group_id, rollout))

    def put_run(
        self,
        run_id: str,
        *,
        state: Literal["running", "finished", "stopped", "failed"] | None = None,
        reason: str | None = None,
        steps: int | None = None,
        facts: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> RunDetail:
        """Create or update a run; fields that are `None` stay unchanged.

        Args:
            run_id: Id of the run.
            state: Its state.
            reason: Why it stopped or failed.
            steps: Planned number of steps.
            facts: Facts to show, such as student, preset and learning rate.
        """
        return self._send(
            requests.put_run(run_id, state=state, reason=reason, steps=steps, facts=facts)
        )

    def add_run_records(
        self, run_id: str, records: Mapping[int, Mapping[str, float | None]]
    ) -> None:
        """Store your own metrics of steps beside a run's rewards.

        Args:
            run_id: Id of the run.
            records: Metrics by step, at most 1,000 steps. A step that is sent again is replaced.
        """
        self._send(requests.add_run_records(run_id, records))

    def run_report(self, run_id: str) -> str:
        """Return the page of a run and its newest groups as one HTML file that needs no service."""
        return self._send(requests.run_report(run_id))


class AsyncRunMethods(AsyncConnection):
    """Methods of `AsyncClient` for training runs."""

    async def runs(self, *, limit: int = 20, after: str | None = None) -> RunList:
        """Return a page of your team's runs, most recently active first; see `Client.runs`."""
        return await self._send(requests.runs(limit, after))

    async def run(self, run_id: str) -> RunDetail:
        """Return a run: its facts, figures and cost; see `Client.run`."""
        return await self._send(requests.run(run_id))

    async def compare_runs(
        self,
        run_ids: Sequence[str],
        *,
        bins: int = 200,
        criteria: int = 40,
        limit: int = 50,
        after: str | None = None,
    ) -> RunComparison:
        """Return runs beside each other; see `Client.compare_runs`."""
        return await self._send(requests.compare_runs(run_ids, bins, criteria, limit, after))

    async def run_steps(
        self,
        run_id: str,
        *,
        bins: int = 200,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> StepList:
        """Return a run's rewards in bins of steps; see `Client.run_steps`."""
        return await self._send(
            requests.run_part(
                run_id, "steps", StepList, bins=bins, first_step=first_step, last_step=last_step
            )
        )

    async def run_criteria(
        self,
        run_id: str,
        *,
        bins: int = 100,
        limit: int = 40,
        after: str | None = None,
        criterion: str | None = None,
    ) -> CriterionList:
        """Return how often criteria are met; see `Client.run_criteria`."""
        return await self._send(
            requests.run_part(
                run_id,
                "criteria",
                CriterionList,
                bins=bins,
                limit=limit,
                after=after,
                criterion=criterion,
            )
        )

    async def run_findings(self, run_id: str) -> FindingList:
        """Return the findings about a run; see `Client.run_findings`."""
        return await self._send(requests.run_part(run_id, "findings", FindingList))

    async def run_groups(
        self,
        run_id: str,
        *,
        sort: GroupSort = "newest",
        first_step: int | None = None,
        last_step: int | None = None,
        criterion: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> RunGroupList:
        """Return a page of a run's groups; see `Client.run_groups`."""
        return await self._send(
            requests.run_part(
                run_id,
                "groups",
                RunGroupList,
                sort=sort,
                first_step=first_step,
                last_step=last_step,
                criterion=criterion,
                limit=limit,
                after=after,
            )
        )

    async def group(self, group_id: str) -> GroupDetail:
        """Return a scored group, by the id that `run_groups` lists; see `Client.group`."""
        return await self._send(requests.group(group_id))

    async def judge_prompt(self, group_id: str, rollout: str) -> JudgePrompt:
        """Return the prompt that the judge got for a rollout; see `Client.judge_prompt`."""
        return await self._send(requests.judge_prompt(group_id, rollout))

    async def put_run(
        self,
        run_id: str,
        *,
        state: Literal["running", "finished", "stopped", "failed"] | None = None,
        reason: str | None = None,
        steps: int | None = None,
        facts: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> RunDetail:
        """Create or update a run; fields that are `None` stay unchanged; see `Client.put_run`."""
        return await self._send(
            requests.put_run(run_id, state=state, reason=reason, steps=steps, facts=facts)
        )

    async def add_run_records(
        self, run_id: str, records: Mapping[int, Mapping[str, float | None]]
    ) -> None:
        """Store your own metrics of steps beside a run's rewards; see `Client.add_run_records`."""
        await self._send(requests.add_run_records(run_id, records))

    async def run_report(self, run_id: str) -> str:
        """Return a run's page as one HTML file; see `Client.run_report`."""
        return await self._send(requests.run_report(run_id))
