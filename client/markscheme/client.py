"""The synchronous and the asynchronous client: the same methods over two transports."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Self

import httpx

from markscheme import arguments, protocol, requests
from markscheme.connection import DEFAULT_URL, NOT_GIVEN
from markscheme.errors import InvalidArgument
from markscheme.protocol import (
    MAX_RETRIES,
    GroupLike,
    PromptLike,
    RolloutLike,
    RubricLike,
    RunLike,
    TeacherAnswerLike,
    TeacherLike,
)
from markscheme.replay_methods import AsyncReplayMethods, ReplayMethods
from markscheme.rubric_methods import AsyncRubricMethods, RubricMethods
from markscheme.run_methods import AsyncRunMethods, RunMethods
from markscheme.schema import (
    GroupScore,
    JudgeList,
    JudgeReports,
    ScoreBatch,
    ScoredRollout,
    TeacherBankChange,
    TeacherResponseList,
    TeachResult,
    UsageReport,
)
from markscheme.transport import AsyncConnections, Connections
from markscheme.vocabulary import (
    Clamp,
    ReusePolicy,
    ReuseScope,
    Thinking,
    UsageKey,
    VerifyMode,
    View,
)

__all__ = ["DEFAULT_URL", "AsyncClient", "Client"]

OnGroup = Callable[[GroupScore], object]
AsyncOnGroup = Callable[[GroupScore], Awaitable[object] | object]


class Client(RubricMethods, RunMethods, ReplayMethods):
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
            view: Which part of a trajectory is judged: `reply`, the assistant's last text;
                `assistant`, all its texts; `full`, also tool calls and their results. Default: as
                the rubric says, else as the judge is set.
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

    def judge_reports(self) -> JudgeReports:
        """Return calls, failures and agreement of judges in the last 30 days."""
        return self._send(requests.judge_reports())

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


class AsyncClient(AsyncRubricMethods, AsyncRunMethods, AsyncReplayMethods):
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

    async def judge_reports(self) -> JudgeReports:
        """Return reports of judges; see `Client.judge_reports`."""
        return await self._send(requests.judge_reports())

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
