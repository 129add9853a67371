"""The synchronous and the asynchronous client: the same methods over two transports."""

import asyncio
import inspect
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import httpx

from markscheme import arguments, protocol, requests
from markscheme.connection import DEFAULT_URL, NOT_GIVEN, Connection
from markscheme.errors import InvalidArgument
from markscheme.exchange import Exported
from markscheme.pagination import AsyncRubricPage, AsyncRubricPages, RubricPage
from markscheme.protocol import (
    MAX_RETRIES,
    Answer,
    Call,
    CriterionLike,
    GroupLike,
    PromptLike,
    ReplayChanges,
    RolloutLike,
    RubricLike,
    RunLike,
    StudentLike,
    TeacherAnswerLike,
    TeacherLike,
)
from markscheme.schema import (
    CriterionList,
    FindingList,
    GroupDetail,
    GroupScore,
    JudgeList,
    JudgePrompt,
    JudgeReports,
    Lineage,
    Replay,
    ReplayDetail,
    ReplayEstimate,
    ReplayList,
    Rubric,
    RubricHealth,
    RubricImported,
    RunDetail,
    RunGroupList,
    RunList,
    ScoreBatch,
    ScoredRollout,
    StepList,
    TeacherBankChange,
    TeacherResponseList,
    TeachResult,
    UsageReport,
)
from markscheme.transport import AsyncConnections, Connections
from markscheme.vocabulary import (
    Category,
    Clamp,
    ExchangeFormat,
    GroupSort,
    MapField,
    ReusePolicy,
    ReuseScope,
    RubricOrigin,
    Thinking,
    UsageKey,
    VerifyMode,
    View,
    Visibility,
)

__all__ = ["DEFAULT_URL", "AsyncClient", "Client"]

OnGroup = Callable[[GroupScore], object]
AsyncOnGroup = Callable[[GroupScore], Awaitable[object] | object]


class Client(Connection[Connections]):
    """A connection to the service.

    Safe to share between threads, to copy and to pickle (the key is then in the pickle); forked
    processes open connections of their own. Close it, or use it as a context manager.

    Methods that ask a judge or a teacher take `deadline_s`, the seconds for the whole call, retries
    included: the service is told how much is left, and `DeadlineExceeded` is raised if there is no
    answer by then. Without it a silent connection is given up after a minute. `judge` names one of
    the service's judges; the default is the service's.

    Every method raises the errors of `markscheme.errors`. Failed connections, 429 and 5xx are
    retried first. Where an id of a rubric is expected, the rubric itself will do.

    Args:
        base_url: Address of the service, with or without `/v1`. Default: `MARKSCHEME_URL`, else
            `http://127.0.0.1:8321`.
        api_key: Your team's API key; a service without keys needs none. Default:
            `MARKSCHEME_API_KEY`; an empty text sends none.
        timeout: Seconds to wait for a connection, and for each piece of an answer; `None` for no
            limit, or an `httpx.Timeout`. Default: 5 s, and 60 s or, for `induce`, `teach`
            and `rollout`, 630 s.
        max_retries: Attempts after the first.
        default_headers: Headers of every request; they replace the client's own.
        http_client: An httpx client to send the requests with: proxies, certificates, transports.
            It is closed with this one, and keeps this one from being pickled.

    Example:
        with Client() as client:
            batch = client.score(
                [
                    {
                        "prompt": "Describe a tree without commas.",
                        "teacher_responses": ["A tall oak stands alone here"],
                        "rollouts": ["A green tree", "A tree, tall and green"],
                    }
                ]
            )
            print(batch.rewards)  # a list a group: 0 to 1, or None with a reason
    """

    def __init__(
        self,
        base_url: str | httpx.URL | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx.Timeout | None = NOT_GIVEN,
        max_retries: int = MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx.Client | None = None,
    ) -> None:
        if not isinstance(http_client, httpx.Client | None):
            raise InvalidArgument("http_client", "must be an httpx.Client")
        super().__init__(
            Connections(http_client), base_url, api_key, timeout, max_retries, default_headers
        )

    def with_options(
        self,
        *,
        base_url: str | httpx.URL | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = NOT_GIVEN,
        max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx.Client | None = None,
    ) -> Self:
        """Return a client with other options on the same connections; closing one closes both.

        What is left out stays; `default_headers` are added to those that are there.
        """
        connections = None if http_client is None else Connections(http_client)
        return self._copy_with(
            connections, base_url, api_key, timeout, max_retries, default_headers
        )

    def induce(
        self,
        prompt: PromptLike,
        *,
        student_responses: Sequence[StudentLike],
        teacher_responses: Sequence[TeacherAnswerLike] | None = None,
        reuse: ReusePolicy = "if_fresh",
        tags: Sequence[str] = (),
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        deadline_s: float | None = None,
    ) -> Rubric:
        """Return the rubric for a prompt: induced from the responses, or reused.

        Args:
            prompt: A string or chat messages.
            student_responses: Rollouts to contrast, 1 to 256: texts, or lists of messages.
            teacher_responses: Responses to contrast them with; default: the teacher bank's.
            reuse: `always_new` induces unless these very responses were contrasted before;
                `if_fresh` reuses a rubric while it still separates rollouts; `frozen` never
                induces.
            tags: Tags of a new rubric.
            judge: The judge that writes it.
            teacher_model: Reuse only rubrics contrasted with responses of this model.
            rubricator: Reuse only rubrics whose rubricator's name begins with this.
            thinking: What is read of a rollout; see `score`.
            reuse_scope: Reuse rubrics of your team (`own`), also those shared with it
                (`shared`), or also the organisation's. Default: the team's setting; without
                one, `own` where there are teacher responses.
            view: What of a trajectory the criteria are about; see `score`.
            deadline_s: Seconds for the whole call.
        """
        call = requests.induce(
            prompt,
            student_responses,
            teacher_responses,
            reuse,
            tags,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
            view,
            deadline_s,
        )
        return self._send(call)

    def create_rubric(
        self,
        prompt: PromptLike,
        criteria: Sequence[CriterionLike],
        *,
        tags: Sequence[str] = (),
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a rubric of your own for a prompt.

        Args:
            prompt: A string or chat messages.
            criteria: Texts with points; ids are numbered if left out.
            tags: Up to 32 tags.
            view: What of a trajectory the criteria are about; see `score`.
            metadata: Any JSON object; it is stored and returned, and no judge sees it.
        """
        return self._send(requests.create_rubric(prompt, criteria, tags, view, metadata))

    def rubric(self, rubric_id: RubricLike) -> Rubric:
        """Return a rubric by id. Raises `NotFound`."""
        return self._send(requests.rubric(rubric_id))

    def fork_rubric(
        self,
        rubric_id: RubricLike,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a new version of a rubric, or a copy of another team's.

        Args:
            rubric_id: The rubric to start from.
            criteria: The new criteria; default: unchanged.
            tags: The new tags; default: unchanged.
            view: The new view; default: unchanged.
            metadata: The new metadata; default: unchanged, and empty for another team's rubric.
        """
        return self._send(requests.fork_rubric(rubric_id, criteria, tags, view, metadata))

    def change_rubric(
        self,
        rubric_id: RubricLike,
        *,
        visibility: Visibility | None = None,
        shared_with: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        retired: bool | None = None,
    ) -> Rubric:
        """Share, tag or retire a rubric of your team; `None` leaves a field as it is.

        Args:
            rubric_id: The rubric.
            visibility: `private` or `organisation`.
            shared_with: Names of the teams that may see a private rubric.
            tags: All its tags.
            retired: Whether groups stop getting it.
        """
        return self._send(requests.change_rubric(rubric_id, visibility, shared_with, tags, retired))

    def import_rubric(
        self,
        content: Mapping[str, Any] | Sequence[Any],
        format: ExchangeFormat,
        *,
        prompt: PromptLike | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
        mapping: Mapping[MapField, str] | None = None,
    ) -> RubricImported:
        """Store a rubric that is in another format.

        Args:
            content: The parsed JSON of the format.
            format: One of `markscheme.vocabulary.EXCHANGE_FORMATS`; `markscheme.exchange` says what
                they are, and `markscheme.exchange.detect_format` which one a content has.
            prompt: The prompt, for contents that hold none.
            tags: Tags of the rubric.
            allow_loss: Drop what cannot be held and list it in `losses`; otherwise it raises
                `InvalidRequest`.
            mapping: For the format `mapped`: paths by the part of a rubric, such as
                `{"prompt": "question", "criteria": "checklist", "text": "item"}`.
        """
        return self._send(
            requests.import_rubric(content, format, prompt, tags, allow_loss, mapping)
        )

    def export_rubric(
        self, rubric_id: RubricLike, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """Return a rubric in another format.

        Args:
            rubric_id: The rubric.
            format: As in `import_rubric`.
            allow_loss: Drop what the format cannot hold and list it in `losses`; otherwise it
                raises `InvalidRequest`.
        """
        return self._send(requests.export_rubric(rubric_id, format, allow_loss))

    def rubrics(
        self,
        prompt: PromptLike | None = None,
        *,
        prompt_key: str | None = None,
        text: str | None = None,
        tags: Sequence[str] = (),
        category: Category | None = None,
        team: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        origin: RubricOrigin | None = None,
        min_quality: float | None = None,
        retired: bool | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> RubricPage:
        """Return a page of the rubrics that your team may see, newest first.

        All filters must match. Iterate over the page to get the rubrics of all pages.

        Args:
            prompt: The prompt, a string or chat messages.
            prompt_key: Its key, where the prompt is not at hand.
            text: Words of the prompt and the criteria.
            tags: Tags that the rubric must all have.
            category: Category of at least one criterion.
            team: The team that made it.
            teacher_model: The model whose responses it contrasts.
            rubricator: Beginning of its rubricator's name.
            origin: `induced`, `imported` or `forked`.
            min_quality: Minimum `RubricList.quality`, 0 to 1; rubrics that never scored a group
                have none.
            retired: Only retired ones, or only others.
            limit: Page size, 1 to 100.
            after: Id of the last rubric of the previous page.
        """
        return self._rubric_page(
            after,
            prompt=prompt,
            prompt_key=prompt_key,
            text=text,
            tags=tags,
            category=category,
            team=team,
            teacher_model=teacher_model,
            rubricator=rubricator,
            origin=origin,
            min_quality=min_quality,
            retired=retired,
            limit=limit,
        )

    def _rubric_page(self, after: str | None, **filters: Any) -> RubricPage:
        page = self._send(requests.rubrics(RubricPage, after=after, **filters))
        page._fetch_after = partial(self._rubric_page, **filters)
        return page

    def lineage(self, rubric_id: RubricLike) -> Lineage:
        """Return what a rubric was made from, and what it led to."""
        return self._send(requests.lineage(rubric_id))

    def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Store responses in the teacher bank; those it holds already are left alone."""
        return self._send(requests.save_teacher_responses(entries))

    def teacher_responses(
        self, prompt: PromptLike | None = None, *, prompt_key: str | None = None
    ) -> TeacherResponseList:
        """Return the bank's responses to a prompt, given by itself or by its key."""
        return self._send(requests.teacher_responses(prompt, prompt_key))

    def teach(
        self, prompt: PromptLike, count: int = 1, *, deadline_s: float | None = None
    ) -> TeachResult:
        """Have the service sample its teacher until the bank holds `count` responses.

        Args:
            prompt: A string or chat messages.
            count: Responses that the bank should hold, 1 to 16.
            deadline_s: Seconds for the whole call.
        """
        return self._send(requests.teach(prompt, count, deadline_s))

    def score(
        self,
        groups: Iterable[GroupLike],
        *,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        run: RunLike | None = None,
        on_group: OnGroup | None = None,
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        clamp: Clamp = "zero",
        deadline_s: float | None = None,
    ) -> ScoreBatch:
        """Score groups of rollouts. A reward that is not known is `None`, with a reason.

        Args:
            groups: Prompts with their rollouts. A rollout is a text, a list of messages, or either
                with an `id` and whether it was `truncated`. Groups and rollouts without ids are
                called `g0`, `g1`, … and `r0`, `r1`, …; answers are in the order sent.
            reuse: Which rubrics may be reused; see `induce`.
            verify: `rollout` judges each rollout alone, `group` all of a group in one call.
            score_teachers: Also score the teacher responses.
            ask_teacher: Responses to sample from the service's teacher where a new rubric has
                none, 0 to 16.
            run: Training run and step; a re-sent step gets the same rubrics. A string is the id of
                a run at step 0.
            on_group: Called with each group as soon as it is scored; `AsyncClient` awaits it if it
                is async.
            judge: The judge to ask.
            teacher_model: See `induce`.
            rubricator: See `induce`.
            thinking: What is judged of a rollout. `auto` drops a thought that the rollout opens
                itself, `strip` one that the chat template opened, `keep` nothing.
            reuse_scope: See `induce`.
            view: What of a trajectory is judged: `reply`, the assistant's last text; `assistant`,
                all its texts; `full`, also tool calls and their results. Default: as the rubric
                says, else as the judge is set.
            clamp: `zero` raises a reward below 0 to 0; `signed` keeps it, where a rubric has
                negative points. `GroupScore.reward_range` tells the range.
            deadline_s: Seconds for the whole call.
        """
        arguments.check_callback(on_group, may_be_async=False)
        call, reader = requests.score(
            groups,
            reuse,
            verify,
            score_teachers,
            ask_teacher,
            run,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
            view,
            clamp,
            deadline_s,
        )
        http = self._connections.http()
        with (
            self._translated_errors(call),
            http.stream(**self._request_options(call)) as response,
        ):
            if not response.is_success:
                response.read()
                call.read(response)
            for line in protocol.response_lines(response.iter_bytes()):
                group = reader.line(line)
                if group is not None and on_group is not None:
                    on_group(group)
        return reader.batch()

    def rollout(
        self,
        prompt: PromptLike,
        rollout: RolloutLike,
        *,
        key: str,
        size: int,
        wait_s: float = 60.0,
        rubric_id: RubricLike | None = None,
        teacher_responses: Sequence[TeacherAnswerLike] | None = None,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        run: RunLike | None = None,
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        clamp: Clamp = "zero",
        deadline_s: float | None = None,
    ) -> ScoredRollout:
        """Score one rollout together with those of its group, which other calls bring.

        For trainers that reward one rollout at a time, from any number of processes: each of the
        group's rollouts is sent by a call of its own, and each call returns when the group is
        scored. All calls of a group pass the same arguments beside `rollout`. The same rollout may
        be sent again.

        Args:
            prompt: A string or chat messages.
            rollout: `{"id": …, "text": …}`, also with `messages` or `truncated`. The id is its own
                within the group.
            key: Name of the group, its own within the run; other rollouts under a key that was
                used raise `Conflict`.
            size: Rollouts of the group, 1 to 1,024.
            wait_s: Seconds, at most 300, after which the rollouts that have come are scored as one
                group; those of the group's first rollout count. One that comes later is scored
                alone, by the group's rubric (`group.late`).
            rubric_id: The rubric to score by.
            teacher_responses: Responses to contrast the rollouts with; default: the teacher
                bank's.
            reuse: See `induce`.
            verify: See `score`.
            score_teachers: See `score`.
            ask_teacher: See `score`.
            run: See `score`.
            judge: See `score`.
            teacher_model: See `induce`.
            rubricator: See `induce`.
            thinking: See `score`.
            reuse_scope: See `induce`.
            view: See `score`.
            clamp: See `score`.
            deadline_s: Seconds for the whole call, the wait for the group included; a rollout that
                has no score by then is unscored with the reason `timeout`.
        """
        call = requests.rollout(
            prompt,
            rollout,
            key,
            size,
            wait_s,
            rubric_id,
            teacher_responses,
            reuse,
            verify,
            score_teachers,
            ask_teacher,
            run,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
            view,
            clamp,
            deadline_s,
        )
        return self._send(call)

    def judges(self) -> JudgeList:
        """Return the service's judges, with their roles and prices."""
        return self._send(requests.judges())

    def run_report(self, run_id: str) -> str:
        """Return the page of a run and its newest groups as one HTML file that needs no service."""
        return self._send(requests.run_report(run_id))

    def judge_reports(self) -> JudgeReports:
        """Return calls, failures and agreement of judges in the last 30 days."""
        return self._send(requests.judge_reports())

    def rubric_health(self, rubric_id: RubricLike) -> RubricHealth:
        """Return how the criteria of a rubric do in your team's groups."""
        return self._send(requests.rubric_health(rubric_id))

    def runs(self, *, limit: int = 20, after: str | None = None) -> RunList:
        """Return a page of your team's runs, the last heard of first.

        Args:
            limit: Page size, 1 to 100.
            after: Id of the last run of the previous page.
        """
        return self._send(requests.runs(limit, after))

    def run(self, run_id: str) -> RunDetail:
        """Return what a run is, how it does and what it cost."""
        return self._send(requests.run(run_id))

    def run_steps(
        self,
        run_id: str,
        *,
        bins: int = 200,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> StepList:
        """Return a run's rewards by at most `bins` spans of steps, numbered as they were sent."""
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
            bins: Spans of steps, at most.
            limit: Page size, 1 to 100.
            after: Key of the last criterion of the previous page.
            criterion: Key of the only one to return.
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
        """Return what is wrong with a run, in sentences, alarms first."""
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
        """Return a page of a run's groups by what they show.

        Args:
            run_id: Id of the run.
            sort: What to see first.
            first_step: The first step, as it was sent.
            last_step: The last step.
            criterion: Key of a criterion that their rubric has.
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
        """Return what the judge was shown of a rollout of a group."""
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
        """Create a run or say what it is; what is `None` stays as it is.

        Args:
            run_id: Id of the run.
            state: What it does.
            reason: Why it stopped or failed.
            steps: Steps that it is planned to take.
            facts: What to show of it, such as student, preset and learning rate.
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
            records: Metrics by step, at most 1,000 steps. A step that is sent again replaces
                itself.
        """
        self._send(requests.add_run_records(run_id, records))

    def estimate_replay(self, run_id: str, **changes: Unpack[ReplayChanges]) -> ReplayEstimate:
        """Return what `create_replay` with the same arguments takes at most; nothing begins."""
        return self._send(requests.estimate_replay(run_id, changes))

    def create_replay(self, run_id: str, **changes: Unpack[ReplayChanges]) -> Replay:
        """Begin to score the stored rollouts of a run again; the run itself stays as it is.

        Give at least one of `rubric_id`, `judge`, `view` and `verify`; what is left out stays as
        each group was scored.

        Args:
            run_id: Id of the run.
            changes: `rubric_id` scores the groups of its prompt and of its other versions. `judge`
                names a judge of the service. `view` and `verify`: see `score`. `thinking` and
                `clamp`: as the run was scored, see `score`.
        """
        return self._send(requests.create_replay(run_id, changes))

    def replays(
        self, run_id: str | None = None, *, limit: int = 20, after: str | None = None
    ) -> ReplayList:
        """Return a page of your team's replays, the newest first.

        Args:
            run_id: Only those of this run.
            limit: Page size, 1 to 100.
            after: Id of the last replay of the previous page.
        """
        return self._send(requests.replays(run_id, limit, after))

    def replay(self, replay_id: str) -> ReplayDetail:
        """Return how far a replay is, and how its rewards differ from the run's so far."""
        return self._send(requests.replay(replay_id))

    def cancel_replay(self, replay_id: str) -> Replay:
        """Cancel a replay; what is done stays."""
        return self._send(requests.cancel_replay(replay_id))

    def usage(
        self,
        group_by: Sequence[UsageKey] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        team: str | None = None,
    ) -> UsageReport:
        """Return what judging cost and what re-use saved.

        A key with the scope `admin` sees every team's usage, others their own.

        Args:
            group_by: Keys of the sums: `team`, `run`, `rubric`, `role`, `judge`, `day`,
                `month`.
            since: First day (UTC).
            until: Day after the last one (UTC).
            team: One team's usage only.
        """
        return self._send(requests.usage(group_by, since, until, team))

    def _send(self, call: Call[Answer]) -> Answer:
        http = self._connections.http()
        with self._translated_errors(call):
            response = http.request(**self._request_options(call))
        return call.read(response)

    @contextmanager
    def _translated_errors(self, call: Call[Any]) -> Iterator[None]:
        try:
            yield
        except httpx.RequestError as error:
            raise protocol.connection_error(self._shown_url, error, call.deadline) from error

    def close(self) -> None:
        """Close all connections, also those of its `with_options` copies."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(Connection[AsyncConnections]):
    """`Client` for asyncio: the same methods, awaited.

    Each event loop has connections of its own: one client serves several `asyncio.run`.
    """

    def __init__(
        self,
        base_url: str | httpx.URL | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx.Timeout | None = NOT_GIVEN,
        max_retries: int = MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        if not isinstance(http_client, httpx.AsyncClient | None):
            raise InvalidArgument("http_client", "must be an httpx.AsyncClient")
        super().__init__(
            AsyncConnections(http_client), base_url, api_key, timeout, max_retries, default_headers
        )

    def with_options(
        self,
        *,
        base_url: str | httpx.URL | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = NOT_GIVEN,
        max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> Self:
        """Return a client with other options; see `Client.with_options`."""
        connections = None if http_client is None else AsyncConnections(http_client)
        return self._copy_with(
            connections, base_url, api_key, timeout, max_retries, default_headers
        )

    async def induce(
        self,
        prompt: PromptLike,
        *,
        student_responses: Sequence[StudentLike],
        teacher_responses: Sequence[TeacherAnswerLike] | None = None,
        reuse: ReusePolicy = "if_fresh",
        tags: Sequence[str] = (),
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        deadline_s: float | None = None,
    ) -> Rubric:
        """Return the rubric for a prompt; see `Client.induce`."""
        call = requests.induce(
            prompt,
            student_responses,
            teacher_responses,
            reuse,
            tags,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
            view,
            deadline_s,
        )
        return await self._send(call)

    async def create_rubric(
        self,
        prompt: PromptLike,
        criteria: Sequence[CriterionLike],
        *,
        tags: Sequence[str] = (),
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a rubric of your own; see `Client.create_rubric`."""
        return await self._send(requests.create_rubric(prompt, criteria, tags, view, metadata))

    async def rubric(self, rubric_id: RubricLike) -> Rubric:
        """Return a rubric by id; see `Client.rubric`."""
        return await self._send(requests.rubric(rubric_id))

    async def fork_rubric(
        self,
        rubric_id: RubricLike,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a new version of a rubric; see `Client.fork_rubric`."""
        return await self._send(requests.fork_rubric(rubric_id, criteria, tags, view, metadata))

    async def change_rubric(
        self,
        rubric_id: RubricLike,
        *,
        visibility: Visibility | None = None,
        shared_with: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        retired: bool | None = None,
    ) -> Rubric:
        """Share, tag or retire a rubric; see `Client.change_rubric`."""
        return await self._send(
            requests.change_rubric(rubric_id, visibility, shared_with, tags, retired)
        )

    async def import_rubric(
        self,
        content: Mapping[str, Any] | Sequence[Any],
        format: ExchangeFormat,
        *,
        prompt: PromptLike | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
        mapping: Mapping[MapField, str] | None = None,
    ) -> RubricImported:
        """Store a rubric that is in another format; see `Client.import_rubric`."""
        return await self._send(
            requests.import_rubric(content, format, prompt, tags, allow_loss, mapping)
        )

    async def export_rubric(
        self, rubric_id: RubricLike, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """Return a rubric in another format; see `Client.export_rubric`."""
        return await self._send(requests.export_rubric(rubric_id, format, allow_loss))

    def rubrics(
        self,
        prompt: PromptLike | None = None,
        *,
        prompt_key: str | None = None,
        text: str | None = None,
        tags: Sequence[str] = (),
        category: Category | None = None,
        team: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        origin: RubricOrigin | None = None,
        min_quality: float | None = None,
        retired: bool | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> AsyncRubricPages:
        """Return rubrics: `async for rubric in client.rubrics()`, or await it for one page.

        See `Client.rubrics`.
        """
        fetch = partial(
            self._rubric_page,
            after,
            prompt=prompt,
            prompt_key=prompt_key,
            text=text,
            tags=tags,
            category=category,
            team=team,
            teacher_model=teacher_model,
            rubricator=rubricator,
            origin=origin,
            min_quality=min_quality,
            retired=retired,
            limit=limit,
        )
        return AsyncRubricPages(fetch)

    async def _rubric_page(self, after: str | None, **filters: Any) -> AsyncRubricPage:
        page = await self._send(requests.rubrics(AsyncRubricPage, after=after, **filters))
        page._fetch_after = partial(self._rubric_page, **filters)
        return page

    async def lineage(self, rubric_id: RubricLike) -> Lineage:
        """Return the lineage of a rubric; see `Client.lineage`."""
        return await self._send(requests.lineage(rubric_id))

    async def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Store teacher responses; see `Client.save_teacher_responses`."""
        return await self._send(requests.save_teacher_responses(entries))

    async def teacher_responses(
        self, prompt: PromptLike | None = None, *, prompt_key: str | None = None
    ) -> TeacherResponseList:
        """Return the bank's responses to a prompt; see `Client.teacher_responses`."""
        return await self._send(requests.teacher_responses(prompt, prompt_key))

    async def teach(
        self, prompt: PromptLike, count: int = 1, *, deadline_s: float | None = None
    ) -> TeachResult:
        """Have the service sample its teacher; see `Client.teach`."""
        return await self._send(requests.teach(prompt, count, deadline_s))

    async def score(
        self,
        groups: Iterable[GroupLike],
        *,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        run: RunLike | None = None,
        on_group: AsyncOnGroup | None = None,
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        clamp: Clamp = "zero",
        deadline_s: float | None = None,
    ) -> ScoreBatch:
        """Score groups of rollouts; see `Client.score`."""
        arguments.check_callback(on_group)
        call, reader = requests.score(
            groups,
            reuse,
            verify,
            score_teachers,
            ask_teacher,
            run,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
            view,
            clamp,
            deadline_s,
        )
        http = self._connections.http()
        async with (
            self._translated_errors(call),
            http.stream(**self._request_options(call)) as response,
        ):
            if not response.is_success:
                await response.aread()
                call.read(response)
            async for line in protocol.response_lines_async(response.aiter_bytes()):
                group = reader.line(line)
                if group is not None and on_group is not None:
                    returned = on_group(group)
                    if inspect.isawaitable(returned):
                        await returned
        return reader.batch()

    async def rollout(
        self,
        prompt: PromptLike,
        rollout: RolloutLike,
        *,
        key: str,
        size: int,
        wait_s: float = 60.0,
        rubric_id: RubricLike | None = None,
        teacher_responses: Sequence[TeacherAnswerLike] | None = None,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        run: RunLike | None = None,
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        clamp: Clamp = "zero",
        deadline_s: float | None = None,
    ) -> ScoredRollout:
        """Score one rollout together with those of its group; see `Client.rollout`."""
        call = requests.rollout(
            prompt,
            rollout,
            key,
            size,
            wait_s,
            rubric_id,
            teacher_responses,
            reuse,
            verify,
            score_teachers,
            ask_teacher,
            run,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
            view,
            clamp,
            deadline_s,
        )
        return await self._send(call)

    async def judges(self) -> JudgeList:
        """Return the service's judges; see `Client.judges`."""
        return await self._send(requests.judges())

    async def run_report(self, run_id: str) -> str:
        """Return a run's page as one HTML file; see `Client.run_report`."""
        return await self._send(requests.run_report(run_id))

    async def judge_reports(self) -> JudgeReports:
        """Return reports of judges; see `Client.judge_reports`."""
        return await self._send(requests.judge_reports())

    async def rubric_health(self, rubric_id: RubricLike) -> RubricHealth:
        """Return how criteria do; see `Client.rubric_health`."""
        return await self._send(requests.rubric_health(rubric_id))

    async def runs(self, *, limit: int = 20, after: str | None = None) -> RunList:
        """Return a page of your team's runs, the last heard of first; see `Client.runs`."""
        return await self._send(requests.runs(limit, after))

    async def run(self, run_id: str) -> RunDetail:
        """Return what a run is, how it does and what it cost; see `Client.run`."""
        return await self._send(requests.run(run_id))

    async def run_steps(
        self,
        run_id: str,
        *,
        bins: int = 200,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> StepList:
        """Return a run's rewards by spans of steps; see `Client.run_steps`."""
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
        """Return what is wrong with a run; see `Client.run_findings`."""
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
        """Return a page of a run's groups by what they show; see `Client.run_groups`."""
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
        """Return what the judge was shown of a rollout of a group; see `Client.judge_prompt`."""
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
        """Create a run or say what it is; what is `None` stays as it is; see `Client.put_run`."""
        return await self._send(
            requests.put_run(run_id, state=state, reason=reason, steps=steps, facts=facts)
        )

    async def add_run_records(
        self, run_id: str, records: Mapping[int, Mapping[str, float | None]]
    ) -> None:
        """Store your own metrics of steps beside a run's rewards; see `Client.add_run_records`."""
        await self._send(requests.add_run_records(run_id, records))

    async def estimate_replay(
        self, run_id: str, **changes: Unpack[ReplayChanges]
    ) -> ReplayEstimate:
        """Return what a replay takes at most; see `Client.estimate_replay`."""
        return await self._send(requests.estimate_replay(run_id, changes))

    async def create_replay(self, run_id: str, **changes: Unpack[ReplayChanges]) -> Replay:
        """Begin to score a run's stored rollouts again; see `Client.create_replay`."""
        return await self._send(requests.create_replay(run_id, changes))

    async def replays(
        self, run_id: str | None = None, *, limit: int = 20, after: str | None = None
    ) -> ReplayList:
        """Return a page of replays, the newest first; see `Client.replays`."""
        return await self._send(requests.replays(run_id, limit, after))

    async def replay(self, replay_id: str) -> ReplayDetail:
        """Return how far a replay is, and its comparison; see `Client.replay`."""
        return await self._send(requests.replay(replay_id))

    async def cancel_replay(self, replay_id: str) -> Replay:
        """Cancel a replay; what is done stays; see `Client.cancel_replay`."""
        return await self._send(requests.cancel_replay(replay_id))

    async def usage(
        self,
        group_by: Sequence[UsageKey] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        team: str | None = None,
    ) -> UsageReport:
        """Return what judging cost; see `Client.usage`."""
        return await self._send(requests.usage(group_by, since, until, team))

    async def _send(self, call: Call[Answer]) -> Answer:
        http = self._connections.http()
        async with self._translated_errors(call):
            response = await http.request(**self._request_options(call))
        return call.read(response)

    @asynccontextmanager
    async def _translated_errors(self, call: Call[Any]) -> AsyncIterator[None]:
        deadline = call.deadline
        try:
            async with asyncio.timeout(
                deadline.remaining_s if deadline is not None else None
            ) as limit:
                yield
        except httpx.RequestError as error:
            raise protocol.connection_error(self._shown_url, error, deadline) from error
        except TimeoutError as error:
            if deadline is None or not limit.expired():
                raise  # a timeout of the caller's own, or one that is translated already
            raise deadline.exceeded() from error

    async def close(self) -> None:
        """Close all connections, also those of its `with_options` copies."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
