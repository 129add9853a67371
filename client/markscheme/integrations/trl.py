"""`RubricReward`: a reward function for TRL that gets its rewards from a Markscheme service.

It groups rows, asks and reports; it does not judge. A rollout that the service could not score gets
`None`, never a number. The module needs the SDK alone and imports neither torch nor TRL: it
installs beside any version of them, and works in every trainer that calls reward functions as TRL
does.
"""

import asyncio
import inspect
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeGuard

from markscheme.integrations.pending import PendingScores, is_outage
from markscheme.integrations.processes import current_process_group
from markscheme.integrations.report import (
    CriterionRate,
    RewardReport,
    RowScore,
    Unscored,
    criterion_rates,
    merged_batches,
    origins,
)
from markscheme.integrations.rows import Row, group_of, group_rows, read_row
from markscheme.schema import Group, Run, ScoreBatch
from markscheme.vocabulary import Clamp, ReusePolicy, Thinking, UnscoredReason, VerifyMode, View

__all__ = [
    "AsyncRubricReward",
    "CriterionRate",
    "RewardReport",
    "Row",
    "RowScore",
    "RubricReward",
    "Together",
    "Unscored",
    "is_outage",
]

MISSED = "missed"
"""The column of the missed criteria in TRL's table of completions."""

RewardFunction = Callable[..., Any]
"""A reward function as TRL calls it: returns a float or `None` for each row, or a coroutine."""

log = logging.getLogger(__name__)


def _warn_of_wait(why: str, seconds: float) -> None:
    log.warning("%s; it is asked again in %.0f s", why, seconds)


class Scorer(Protocol):
    """The part of `markscheme.Client` that a reward needs."""

    def score(
        self,
        groups: Sequence[Group],
        *,
        reuse: ReusePolicy = ...,
        verify: VerifyMode = ...,
        thinking: Thinking = ...,
        view: View | None = ...,
        clamp: Clamp = ...,
        score_teachers: bool = ...,
        ask_teacher: int = ...,
        run: Run | None = ...,
    ) -> ScoreBatch:
        """Score a whole batch."""


_Call = tuple[int, int]
"""A step, and how many batches of it came before."""


@dataclass(frozen=True, slots=True)
class _PartialBatch:
    """A batch of which single groups have been posted, by id, before it was complete."""

    call: _Call
    scores: PendingScores
    groups: dict[str, Group]


@dataclass(frozen=True, slots=True, eq=False)
class _PostedBatch:
    """A batch whose groups have been posted.

    `rows` are those of all processes, `counts` how many each has, `members` the rows of each group.
    """

    call: _Call
    completions: Any
    rows: list[Row]
    counts: Sequence[int]
    members: Sequence[Sequence[int]]
    scores: PendingScores


class RubricReward:
    """Scores groups of rollouts of one prompt with that prompt's rubric.

    A group is `num_generations` neighbouring rows of one prompt, over all processes. Where rows do
    not divide so, as in an evaluation with another number of generations, all rows of a prompt are
    a group. Under `torchrun` or `accelerate` each process posts the groups that begin in its rows,
    under the first process's `run_id`. After a call, `rows` and `last` hold the batch of all
    processes and the service's report. Can be pickled between calls,
    if the client can.

    A trainer that has other work to do between rollouts and rewards calls `start` in between:
    the service judges meanwhile, and the call waits for the rest.

    Args:
        client: A `markscheme.Client`.
        num_generations: Rollouts of each prompt in training.
        run_id: The run's name at the service. A step of a run that was sent before gets the same
            rubrics again: use a new name for a new run.
        rubric_id: The rubric of every group whose rows name none. Default: the service finds or
            makes one for each prompt.
        reuse: Which rubrics may be reused; see `Client.induce`.
        verify: Judge each rollout alone (`rollout`) or a group in one call (`group`).
        thinking: What is judged of a rollout; see `Client.score`.
        view: What is judged of a trajectory; see `Client.score`.
        clamp: Whether a reward below 0 is raised to 0; see `Client.score`.
        score_teachers: Also score the teacher responses.
        ask_teacher: Responses to sample from the service's teacher for prompts without any.
        eos_token_ids: Tokens that end a response; a rollout without one counts as truncated.
            Empty: none does.
        max_outage_s: Seconds to wait for a service that cannot be reached; by default as long as
            `markscheme train` waits.
        max_unscored: Maximum share (0 to 1) of a batch without a reward; above it the batch
            raises `Unscored`.
        max_late_s: Seconds that a call waits for the judge, more than 0; groups that it has not
            scored then are unscored (`timeout`). Each group is then a request of its own.
        on_wait: Called, in a call of the reward, with the reason and the seconds of each wait.
            Default: logs them as a warning.

    Example:
        reward = RubricReward(Client("http://127.0.0.1:8321"), num_generations=8, run_id="run-1")
        trainer = GRPOTrainer(model, reward_funcs=[reward], args=args, train_dataset=prompts)
    """

    __name__ = "rubric"

    def __init__(
        self,
        client: Scorer,
        *,
        num_generations: int,
        run_id: str,
        rubric_id: str | None = None,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        thinking: Thinking = "auto",
        view: View | None = None,
        clamp: Clamp = "zero",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        eos_token_ids: Sequence[int] = (),
        max_outage_s: float = 600.0,
        max_unscored: float = 1.0,
        max_late_s: float | None = None,
        on_wait: Callable[[str, float], None] = _warn_of_wait,
    ) -> None:
        if inspect.iscoroutinefunction(client.score):
            raise TypeError(f"{type(self).__name__} takes a Client, not an AsyncClient")
        self.client = client
        self.num_generations = num_generations
        self.run_id = run_id
        self.rubric_id = rubric_id
        self.reuse: ReusePolicy = reuse
        self.verify: VerifyMode = verify
        self.thinking: Thinking = thinking
        self.view: View | None = view
        self.clamp: Clamp = clamp
        self.score_teachers = score_teachers
        self.ask_teacher = ask_teacher
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_outage_s = max_outage_s
        self.max_unscored = max_unscored
        self.max_late_s = max_late_s
        self.on_wait = on_wait
        self.rows: list[Row] = []
        self.last: RewardReport | None = None
        self._call: _Call = (-1, 0)
        self._answered: tuple[Any, list[float | None]] = (None, [])
        self._begun: _PartialBatch | None = None
        self._started: list[_PostedBatch] = []

    def start(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        teacher_responses: Sequence[Any] | None = None,
        rubric_id: Sequence[str | None] | None = None,
        **_columns: Any,
    ) -> None:
        """Post a batch's groups and return; the call with these very `completions` joins them.

        Call it on every process, with what the call will get. Several batches may be under way;
        `cancel` those that will not be joined.
        """
        call = self._next_call(trainer_state)
        begun, self._call = self._batch(call), call
        own = self._rows(prompts, completions, completion_ids, teacher_responses, rubric_id)
        processes = current_process_group()
        # The processes may have different numbers of rows, and names that each has made up.
        counts, run_ids = zip(*processes.gather([(len(own), self.run_id)]), strict=True)
        rows = processes.gather(own)
        members = group_rows(rows, self.num_generations)
        self._started.append(_PostedBatch(call, completions, rows, counts, members, begun.scores))
        self._begun = None
        _warn_of_problems(own)
        first = sum(counts[: processes.rank])
        groups = self._groups(rows, members, call, range(first, first + len(own)))
        if {group.id: group for group in groups if group.id in begun.groups} != begun.groups:
            raise ValueError("start_group was given other rollouts than start")
        left = [group for group in groups if group.id not in begun.groups]
        for request in [left] if self.max_late_s is None else [[group] for group in left]:
            if request:
                self._post(begun.scores, request, Run(id=run_ids[0], step=call[0]))

    def start_group(
        self,
        place: int,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        teacher_responses: Sequence[Any] | None = None,
        rubric_id: Sequence[str | None] | None = None,
    ) -> None:
        """Post one group of the next batch before the batch is complete; `start` posts the rest.

        Call it from the trainer's thread, with what `start` will get for these rows. The group's
        rows are this process's, and all processes have the same `run_id`.

        Args:
            place: The group's number in the batch of all processes.
            prompts: See `__call__`.
            completions: See `__call__`.
            completion_ids: See `__call__`.
            trainer_state: See `__call__`.
            teacher_responses: See `__call__`.
            rubric_id: See `__call__`.
        """
        call = self._next_call(trainer_state)
        begun = self._batch(call)
        rows = self._rows(prompts, completions, completion_ids, teacher_responses, rubric_id)
        group = self._askable(_group_id(call, place), rows)
        if group is not None:
            begun.groups[group.id] = group
            self._post(begun.scores, [group], Run(id=self.run_id, step=call[0]))

    def cancel(self) -> None:
        """Ask no more for batches that were begun or started and not joined."""
        for batch in (self._begun, *self._started):
            if batch is not None:
                batch.scores.cancel()
        self._begun, self._started = None, []

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        teacher_responses: Sequence[Any] | None = None,
        rubric_id: Sequence[str | None] | None = None,
        on_report: Callable[[Sequence[Row], RewardReport], None] | None = None,
        log_extra: Callable[[str, list[str]], None] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        """Return a reward or `None` for each row of this process, in order.

        TRL calls this. The columns `teacher_responses` and `rubric_id` of the data set, where it
        has them, are sent along.

        Args:
            prompts: The rows' prompts, texts or messages.
            completions: What the student wrote: texts, or messages with tool calls and results.
            completion_ids: Its token ids, to detect truncation.
            trainer_state: TRL's state; its `global_step` names the step. Without one each call is
                a step.
            log_metric: TRL's hook for metrics.
            teacher_responses: Responses for each row, or `None`.
            rubric_id: Each row's rubric, or `None`.
            on_report: Called with the rows of all processes and the service's report.
            log_extra: TRL's hook for columns of its table of completions: gets the missed criteria.
            **_columns: Other columns, ignored.

        Raises:
            Unscored: More than `max_unscored` of the batch has no reward.
            MarkschemeError: The service refuses the request, or stays away too long.
        """
        if not any(started.completions is completions for started in self._started):
            self.start(
                prompts=prompts,
                completions=completions,
                completion_ids=completion_ids,
                trainer_state=trainer_state,
                teacher_responses=teacher_responses,
                rubric_id=rubric_id,
            )
        [started] = [each for each in self._started if each.completions is completions]
        self._started.remove(started)
        self.rows = started.rows
        processes, waiting_since = current_process_group(), time.perf_counter()
        answers = started.scores.join(processes, self.on_wait, self.max_late_s)
        batch = merged_batches(answers)
        self.last = self._report(started, batch, time.perf_counter() - waiting_since)
        if log_metric is not None:
            self.last.log(log_metric)
        self.last.raise_if_unscored(self.max_unscored)
        if on_report is not None:
            on_report(self.rows, self.last)
        # This process's rows come after those of the ranks before it.
        first = sum(started.counts[: processes.rank])
        own = slice(first, first + len(completions))
        if log_extra is not None:
            log_extra(MISSED, ["; ".join(row.feedback) for row in self.last.row_scores[own]])
        rewards = self.last.rewards[own]
        self._answered = (completions, rewards)
        return rewards

    def where_scored(self, function: RewardFunction) -> RewardFunction:
        """Return another reward function that is `None` wherever the rubric's reward is.

        TRL adds up the rewards that are known, so an unscored rollout would be rewarded by the
        other functions alone. List this reward first: `reward_funcs=[reward,
        reward.where_scored(brevity)]`. `function` may be async; it may not be a reward model.
        """
        return (AsyncWhereScored if _is_async(function) else WhereScored)(self, function)

    def blank_unscored(self, completions: Any, values: Sequence[Any]) -> list[Any]:
        """Return `values` with `None` where the last call, for these completions, had no reward.

        Raises `ValueError` if the last call was for others.
        """
        answered, rewards = self._answered
        # TRL passes one list of completions to all reward functions of a batch.
        if answered is not completions:
            raise ValueError("reward_funcs must list the rubric's reward before where_scored(…)")
        return [
            None if reward is None else value for reward, value in zip(rewards, values, strict=True)
        ]

    def _next_call(self, trainer_state: Any) -> _Call:
        last_step, last_count = self._call
        step = last_step + 1 if trainer_state is None else int(trainer_state.global_step)
        # A step may generate more than once (fewer steps per generation than accumulation steps).
        # The count keeps their group ids apart, and restarts each step so that a resumed run
        # repeats them.
        return step, last_count + 1 if last_step == step else 0

    def _batch(self, call: _Call) -> _PartialBatch:
        """Return the batch of a call, which may have been begun; cancel another that was."""
        if self._begun is None or self._begun.call != call:
            if self._begun is not None:
                self._begun.scores.cancel()
            self._begun = _PartialBatch(call, PendingScores(self.max_outage_s), {})
        return self._begun

    def _post(self, scores: PendingScores, groups: Sequence[Group], run: Run) -> None:
        ask = partial(
            self.client.score,
            groups,
            reuse=self.reuse,
            verify=self.verify,
            thinking=self.thinking,
            view=self.view,
            clamp=self.clamp,
            score_teachers=self.score_teachers,
            ask_teacher=self.ask_teacher,
            run=run,
        )
        scores.post(ask)

    def _rows(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        teacher_responses: Sequence[Any] | None,
        rubric_id: Sequence[str | None] | None,
    ) -> list[Row]:
        absent = [None] * len(prompts)
        return [
            read_row(*columns, truncated=self._truncated(ids))
            for *columns, ids in zip(
                prompts,
                completions,
                teacher_responses or absent,
                rubric_id or absent,
                completion_ids or absent,
                strict=True,
            )
        ]

    def _groups(
        self,
        rows: Sequence[Row],
        members: Sequence[Sequence[int]],
        call: _Call,
        own: Container[int],
    ) -> list[Group]:
        """Return the groups that this process posts.

        Those are the groups that begin in its rows `own`: a group is posted whole, by one process.
        """
        groups = (
            self._askable(_group_id(call, place), [rows[row] for row in numbers])
            for place, numbers in enumerate(members)
            if numbers[0] in own
        )
        return [group for group in groups if group is not None]

    def _askable(self, identifier: str, rows: Sequence[Row]) -> Group | None:
        """Return the group of the rows that the service can be asked about, if there are any."""
        askable = [(f"r{place}", row) for place, row in enumerate(rows) if row.problem is None]
        if not askable:
            return None
        return group_of(identifier, askable, askable[0][1].rubric_id or self.rubric_id)

    def _report(self, started: _PostedBatch, batch: ScoreBatch, seconds: float) -> RewardReport:
        """Return scores by id, not by position, so that none is credited to a neighbour."""
        answered = {
            (group.id, rollout.id): rollout for group in batch.groups for rollout in group.rollouts
        }
        teachers = {group.id: group.teacher.rewards for group in batch.groups if group.teacher}
        answered_groups = {group.id for group in batch.groups}
        late = 0
        row_scores = [RowScore(None, row.truncated) for row in self.rows]
        teacher_scores: list[list[float | None]] = [[] for _ in self.rows]
        for place, numbers in enumerate(started.members):
            group = _group_id(started.call, place)
            for number, row in enumerate(numbers):
                teacher_scores[row] = list(teachers.get(group, ()))
                if self.rows[row].problem is not None:
                    continue
                if self.max_late_s is not None and group not in answered_groups:
                    late += 1
                else:
                    score = answered[group, f"r{number}"]
                    row_scores[row] = RowScore(
                        score.reward,
                        self.rows[row].truncated,
                        tuple(score.feedback),
                        score.view,
                        score.left_out_tokens or 0,
                    )
        problems = sum(row.problem is not None for row in self.rows)
        return RewardReport(
            step=started.call[0],
            rewards=[score.reward for score in row_scores],
            row_scores=row_scores,
            teacher_scores=teacher_scores,
            reasons=dict(
                batch.reasons
                + Counter({UnscoredReason.NOT_SUPPORTED.value: problems})
                + Counter({UnscoredReason.TIMEOUT.value: late})
            ),
            origins=origins(batch),
            criteria=criterion_rates(batch.groups),
            usage=batch.usage,
            seconds=seconds,
        )

    def _truncated(self, ids: Sequence[int] | None) -> bool:
        if not self.eos_token_ids or ids is None:
            return False
        return not ids or ids[-1] not in self.eos_token_ids


class AsyncRubricReward(RubricReward):
    """The same as an async function: a trainer's other async rewards run while it waits.

    Beside other rewards it belongs into `Together`. Takes a `Client` too: it is called from a
    thread. Needs TRL 1.14, which first takes objects as async functions.
    """

    async def __call__(self, **columns: Any) -> list[float | None]:  # type: ignore[override]
        """Return a reward or `None` for each row of this process; see `RubricReward`."""
        return await asyncio.to_thread(super().__call__, **columns)

    def where_scored(self, function: RewardFunction) -> RewardFunction:
        """Raise `TypeError`: async functions have no order in which one could follow another."""
        raise TypeError("use Together([reward, …]) for an async reward beside others")


class Together:
    """Several reward functions as one: their weighted sum, `None` wherever a rubric's reward is.

    TRL adds up the rewards that are known, so a rollout that the service could not score would be
    rewarded by the other functions alone. Another function's `None` or NaN adds nothing, as in
    TRL; where all are `None`, so is the sum. Each function's mean is logged under `together/`.
    Async if one of the functions is; then the sync ones are called first.

    Args:
        functions: Reward functions as TRL takes them, no reward models.
        weights: One for each function; default 1.

    Example:
        trainer = GRPOTrainer(model, reward_funcs=[Together([reward, brevity], weights=[1, 0.2])])
    """

    __name__ = "together"

    def __new__(cls, functions: Sequence[RewardFunction] = (), **_settings: Any) -> "Together":
        """Return an `AsyncTogether` if a function is async."""
        return super().__new__(AsyncTogether if any(map(_is_async, functions)) else cls)

    def __init__(
        self, functions: Sequence[RewardFunction], *, weights: Sequence[float] | None = None
    ) -> None:
        if not any(isinstance(function, RubricReward) for function in functions):
            raise ValueError("Together needs a RubricReward among its functions")
        self.functions = list(functions)
        self.weights = [1.0] * len(self.functions) if weights is None else list(weights)
        if len(self.weights) != len(self.functions):
            raise ValueError(f"{len(self.functions)} functions need as many weights")

    def __call__(self, **columns: Any) -> Any:
        """Return the sum for each row of this process."""
        return self._sum([function(**columns) for function in self.functions], **columns)

    def _sum(
        self,
        parts: Sequence[Sequence[float | None]],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        for function, part in zip(self.functions, parts, strict=True):
            known = [float(value) for value in part if _is_known(value)]
            if log_metric is not None and known:
                log_metric(f"together/{_name(function)}", sum(known) / len(known))
        return [self._row(values) for values in zip(*parts, strict=True)]

    def _row(self, values: Sequence[Any]) -> float | None:
        known = []
        for function, weight, value in zip(self.functions, self.weights, values, strict=True):
            if _is_known(value):
                known.append(weight * float(value))
            elif isinstance(function, RubricReward):
                return None
        return sum(known)


class AsyncTogether(Together):
    """The same where a function is async."""

    async def __call__(self, **columns: Any) -> list[float | None]:
        """Return the sum for each row of this process."""
        parts = [function(**columns) for function in self.functions]
        waiting = [place for place, part in enumerate(parts) if inspect.isawaitable(part)]
        answers = await asyncio.gather(*(parts[place] for place in waiting))
        for place, answer in zip(waiting, answers, strict=True):
            parts[place] = answer
        return self._sum(parts, **columns)


class WhereScored:
    """A reward function that is `None` wherever a rubric's reward is: `RubricReward.where_scored`.

    Args:
        reward: The rubric's reward.
        function: The other reward function.
    """

    def __init__(self, reward: RubricReward, function: RewardFunction) -> None:
        self.reward, self.function = reward, function
        self.__name__ = _name(function)

    def __call__(self, *, completions: Any, **columns: Any) -> Any:
        """Return the function's rewards, `None` where the rubric's is."""
        values = self.function(completions=completions, **columns)
        return self.reward.blank_unscored(completions, values)


class AsyncWhereScored(WhereScored):
    """The same for an async function."""

    async def __call__(self, *, completions: Any, **columns: Any) -> Any:
        """Return the function's rewards, `None` where the rubric's is."""
        values = await self.function(completions=completions, **columns)
        return self.reward.blank_unscored(completions, values)


def _is_async(function: RewardFunction) -> bool:
    call = getattr(function, "__call__")  # noqa: B004, B009  # asked for its kind, not called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _name(function: RewardFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _group_id(call: _Call, place: int) -> str:
    step, count = call
    return f"s{step}-c{count}-p{place}"


def _warn_of_problems(rows: Sequence[Row]) -> None:
    problems = [row.problem for row in rows if row.problem is not None]
    if problems:
        log.warning(
            "%d of %d rollouts cannot be sent to the service and are unscored; the first: %s",
            len(problems),
            len(rows),
            problems[0],
        )


def _is_known(value: Any) -> TypeGuard[float]:
    """Return whether it is a reward: no `None`, and no NaN, which TRL takes for the same."""
    return value is not None and not math.isnan(value)
