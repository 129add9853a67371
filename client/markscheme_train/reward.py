"""`RubricReward`: a TRL reward function that gets its rewards from a Markscheme service.

It groups rows, asks and reports; it does not judge. A rollout that the service could not score gets
`None`, never a number. The module does not import torch, so that other trainers can use it too.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tenacity

from markscheme.errors import AnswerUnreadable, ConnectionFailed, ServiceUnavailable
from markscheme.messages import MessageError, plain_message, role_of, text_of
from markscheme.protocol import to_wire
from markscheme.schema import Group, GroupScore, Message, Rollout, Run, ScoreBatch, Usage
from markscheme.vocabulary import (
    TRANSIENT_REASONS,
    ReusePolicy,
    Thinking,
    VerifyMode,
    describe_reasons,
)
from markscheme_train.distributed import ProcessGroup, SingleProcess
from markscheme_train.errors import DataError, Unscored

MAX_RETRY_WAIT_S = 30.0
"""Maximum seconds between two attempts to reach the service."""

PromptRow = str | list[dict[str, Any]]
"""A prompt as TRL passes it: text or chat messages."""


class Scorer(Protocol):
    """The part of `markscheme.Client` that a reward needs."""

    def score(
        self,
        groups: Sequence[Group],
        *,
        reuse: ReusePolicy = ...,
        verify: VerifyMode = ...,
        score_teachers: bool = ...,
        ask_teacher: int = ...,
        run: Run | None = ...,
    ) -> ScoreBatch:
        """Score a whole batch."""


@dataclass(frozen=True, slots=True)
class CriterionRate:
    """How many scored rollouts of a group met one criterion."""

    group: str
    rubric: str
    criterion: str
    text: str
    category: str
    points: int
    met: int
    judged: int


@dataclass(frozen=True, slots=True)
class RowScore:
    """The service's score of one rollout. `feedback` lists the criteria that it missed."""

    reward: float | None
    truncated: bool
    feedback: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RewardReport:
    """The answer of one call to the service, without prompts and rollouts.

    Attributes:
        step: Training step, from 0.
        rewards: One per row of all processes; `None` where unknown.
        row_scores: The same rows with truncation and feedback.
        teacher_scores: Rewards of each group's teacher responses, if they were asked for.
        reasons: Unscored rollouts by reason.
        origins: Groups by the origin of their rubric.
        criteria: How often each criterion was met.
        usage: What the call cost.
        seconds: How long it took.
    """

    step: int
    rewards: list[float | None]
    row_scores: list[RowScore]
    teacher_scores: list[list[float | None]]
    reasons: dict[str, int]
    origins: dict[str, int]
    criteria: list[CriterionRate]
    usage: Usage
    seconds: float

    @property
    def unscored(self) -> int:
        """Rows without a reward."""
        return sum(reward is None for reward in self.rewards)


@dataclass(frozen=True, slots=True)
class Row:
    """A rollout as it travels between processes."""

    prompt: PromptRow
    text: str
    truncated: bool
    teacher_responses: list[str] | None
    rubric_id: str | None


class RubricReward:
    """Scores groups of rollouts of one prompt with that prompt's rubric.

    Rows are grouped by position, never by the prompt's text: TRL keeps the rows of a prompt
    together over all processes, so row i belongs to group i // `num_generations`. After a call,
    `rows` and `last` hold the batch of all processes and the service's report.

    Args:
        client: A `markscheme.Client`.
        num_generations: Rollouts of each prompt.
        run_id: The run's name at the service.
        reuse: Which rubrics may be reused; see `Client.induce`.
        verify: Judge each rollout alone (`rollout`) or a group in one call (`group`).
        thinking: What is judged of a rollout; see `Client.score`.
        score_teachers: Also score the teacher responses.
        ask_teacher: Responses to sample from the service's teacher for prompts without any.
        eos_token_ids: Tokens that end a response; a rollout without one counts as truncated.
            Empty: none does.
        max_outage_s: Seconds to wait for a service that cannot be reached.
        max_unscored: Maximum share (0 to 1) of a batch without a reward; above it the batch
            raises `Unscored`.
        on_wait: Called with the reason and the seconds before each wait.

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
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        thinking: Thinking = "auto",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        eos_token_ids: Sequence[int] = (),
        max_outage_s: float = 0.0,
        max_unscored: float = 1.0,
        on_wait: Callable[[str, float], None] = lambda why, seconds: None,
    ) -> None:
        self.client = client
        self.num_generations = num_generations
        self.run_id = run_id
        self.reuse: ReusePolicy = reuse
        self.verify: VerifyMode = verify
        self.thinking: Thinking = thinking
        self.score_teachers = score_teachers
        self.ask_teacher = ask_teacher
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_outage_s = max_outage_s
        self.max_unscored = max_unscored
        self.on_wait = on_wait
        self.processes: ProcessGroup = SingleProcess()
        self.rows: list[Row] = []
        self.last: RewardReport | None = None
        self._call = (-1, 0)

    def __call__(
        self,
        *,
        prompts: Sequence[PromptRow],
        completions: Sequence[PromptRow],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any,
        log_metric: Callable[[str, float], None] | None = None,
        teacher_responses: Sequence[list[str] | None] | None = None,
        rubric_id: Sequence[str | None] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        """Return a reward or `None` for each row of this process, in order.

        TRL calls this. The columns `teacher_responses` and `rubric_id` of the data set, if any,
        are sent along.

        Args:
            prompts: The rows' prompts; those of a group side by side.
            completions: What the student wrote.
            completion_ids: Its token ids, to detect truncation.
            trainer_state: TRL's state; its `global_step` names the step.
            log_metric: TRL's hook for metrics.
            teacher_responses: Responses for each row, or `None`.
            rubric_id: The rubric that scores each row's group; `None` or empty: as `reuse` says.
            **_columns: Other columns, ignored.

        Raises:
            ValueError: The rows of all processes are not whole groups.
            DataError: A message has no text form.
            Unscored: More than `max_unscored` of the batch has no reward.
            MarkschemeError: The service refuses the request, or stays away too long.
        """
        step = int(trainer_state.global_step)
        teachers = teacher_responses or [None] * len(prompts)
        rubrics = rubric_id or [None] * len(prompts)
        own = [
            Row(
                prompt, completion_text(completion), self._truncated(ids), responses, rubric or None
            )
            for prompt, completion, ids, responses, rubric in zip(
                prompts, completions, completion_ids, teachers, rubrics, strict=True
            )
        ]
        # The processes may have different numbers of rows.
        counts = self.processes.gather([len(own)])
        self.rows = self.processes.gather(own)
        groups = self._groups(step)
        started = time.perf_counter()
        # One request for all processes: a group may span several.
        batch = self.processes.broadcast_from_rank_0(lambda: self._score(groups, step))
        seconds = time.perf_counter() - started
        row_scores = _scores_in_row_order(groups, batch)
        scores = {
            group.id: group.teacher.rewards if group.teacher else [] for group in batch.groups
        }
        self.last = RewardReport(
            step=step,
            rewards=[row_score.reward for row_score in row_scores],
            row_scores=row_scores,
            teacher_scores=[list(scores[group.id]) for group in groups],
            reasons=dict(batch.reasons),
            origins=_origins(batch),
            criteria=[rate for group in batch.groups for rate in _criterion_rates(group)],
            usage=batch.usage,
            seconds=seconds,
        )
        if log_metric is not None:
            _log(self.last, log_metric)
        self._raise_if_unscored(self.last)
        first = sum(counts[: self.processes.rank])
        return self.last.rewards[first : first + len(own)]

    def _raise_if_unscored(self, report: RewardReport) -> None:
        """Raise `Unscored` when too much of the batch has no reward.

        Waiting helps if the reasons that do not pass would alone leave enough rewards to go on.
        """
        limit = self.max_unscored * len(report.rewards)
        if report.unscored > limit:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(report.reasons.items()))
            permanent = sum(
                count for reason, count in report.reasons.items() if reason not in TRANSIENT_REASONS
            )
            may_pass = permanent <= limit
            raise Unscored(
                f"{report.unscored} of {len(report.rewards)} rollouts of step {report.step + 1} "
                f"are unscored ({why}); the step was not taken",
                may_pass=may_pass,
                advice=_advice(report.reasons, may_pass),
            )

    def _score(self, groups: Sequence[Group], step: int) -> ScoreBatch:
        """Return the service's answer, waiting while it cannot be reached.

        A repeated request is identical to the byte, so that nothing is judged twice.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_outage),
            reraise=True,
            stop=tenacity.stop_after_delay(self.max_outage_s),
            wait=tenacity.wait_exponential(1, max=MAX_RETRY_WAIT_S),
            before_sleep=self._notify_wait,
        )
        # tenacity draws its pauses from this generator; a run with retries must not differ.
        rng_state = random.getstate()
        try:
            return attempts(
                self.client.score,
                groups,
                reuse=self.reuse,
                verify=self.verify,
                thinking=self.thinking,
                score_teachers=self.score_teachers,
                ask_teacher=self.ask_teacher,
                run=Run(id=self.run_id, step=step),
            )
        finally:
            random.setstate(rng_state)

    def _notify_wait(self, state: tenacity.RetryCallState) -> None:
        if state.outcome is not None and state.next_action is not None:
            self.on_wait(str(state.outcome.exception()), state.next_action.sleep)

    def _groups(self, step: int) -> list[Group]:
        size, rows = self.num_generations, self.rows
        if len(rows) % size:
            raise ValueError(
                f"{len(rows)} rows are not whole groups of {size}: make the rows of all processes "
                f"(per_device_train_batch_size x steps_per_generation x processes) a multiple of "
                f"num_generations"
            )
        # A step may generate more than once (fewer steps per generation than accumulation steps).
        # The count keeps their group ids apart, and restarts each step so that a resumed run
        # repeats them.
        self._call = (step, self._call[1] + 1 if self._call[0] == step else 0)
        groups = []
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            if any(row.prompt != group[0].prompt for row in group):
                raise ValueError(
                    f"rows {start} to {start + size - 1} are not of one prompt; RubricReward needs "
                    f"the {size} rollouts of a prompt side by side"
                )
            groups.append(
                Group(
                    id=f"s{step}-c{self._call[1]}-p{start // size}",
                    prompt=wire_prompt(group[0].prompt),
                    teacher_responses=list(group[0].teacher_responses or ()) or None,
                    rubric_id=group[0].rubric_id,
                    rollouts=[
                        Rollout(id=f"r{i}", text=to_wire(row.text), truncated=row.truncated)
                        for i, row in enumerate(group)
                    ],
                )
            )
        return groups

    def _truncated(self, ids: Sequence[int]) -> bool:
        return bool(self.eos_token_ids) and (not ids or ids[-1] not in self.eos_token_ids)


def completion_text(completion: PromptRow) -> str:
    """Return the text of the assistant's messages in a completion, joined.

    A tool call without text is empty. Raises `DataError` for content that is not text, such as an
    image.
    """
    if isinstance(completion, str):
        return completion
    try:
        return "".join(
            text_of(message.get("content"), f"completion[{number}].content")
            for number, message in enumerate(completion)
            if role_of(message, f"completion[{number}]") == "assistant"
        )
    except MessageError as error:
        raise DataError(str(error)) from error


def wire_prompt(prompt: PromptRow) -> str | list[Message]:
    """Return a prompt in the service's form: roles and texts, without tool calls.

    Raises `DataError` for content that is not text and for an unknown role.
    """
    if isinstance(prompt, str):
        return str(to_wire(prompt))
    try:
        return [
            Message.model_validate(to_wire(plain_message(message, f"prompt[{number}]")))
            for number, message in enumerate(prompt)
        ]
    except MessageError as error:
        raise DataError(str(error)) from error


def is_outage(error: BaseException) -> bool:
    """Return whether the service cannot be reached but may come back."""
    return isinstance(error, ConnectionFailed | ServiceUnavailable) and not isinstance(
        error, AnswerUnreadable
    )


def _advice(reasons: Mapping[str, int], may_pass: bool) -> str:
    """Return the reasons and what to do about them, on one line."""
    if may_pass:
        passing = " and ".join(sorted(name for name in reasons if name in TRANSIENT_REASONS))
        helps = f"Once {passing} has passed, --resume helps: it asks for the very same rollouts."
    else:
        helps = "--resume alone does not help: mend that first, or raise max_unscored, then use it."
    return " ".join([*describe_reasons(reasons), helps])


def _scores_in_row_order(groups: Sequence[Group], batch: ScoreBatch) -> list[RowScore]:
    """Return scores by id, not by position, so that none is credited to a neighbour."""
    answered = {
        (group.id, rollout.id): rollout for group in batch.groups for rollout in group.rollouts
    }
    row_scores = []
    for group in groups:
        for rollout in group.rollouts:
            score = answered[group.id, rollout.id]
            row_scores.append(RowScore(score.reward, rollout.truncated, tuple(score.feedback)))
    return row_scores


def _origins(batch: ScoreBatch) -> dict[str, int]:
    return dict(Counter(group.rubric.origin if group.rubric else "none" for group in batch.groups))


def _criterion_rates(group: GroupScore) -> list[CriterionRate]:
    if group.rubric is None:
        return []
    rates = []
    for criterion in group.rubric.criteria:
        verdicts = [
            verdict.met
            for rollout in group.rollouts
            for verdict in rollout.verdicts
            if verdict.criterion_id == criterion.id and verdict.met is not None
        ]
        rates.append(
            CriterionRate(
                group=group.id,
                rubric=group.rubric.id,
                criterion=criterion.id or "",
                text=criterion.text,
                category=criterion.category,
                points=criterion.points,
                met=sum(verdicts),
                judged=len(verdicts),
            )
        )
    return rates


def _log(report: RewardReport, log_metric: Callable[[str, float], None]) -> None:
    log_metric("rubric/unscored_rate", report.unscored / len(report.rewards))
    log_metric("rubric/wait_s", report.seconds)
    log_metric("rubric/judge_calls", report.usage.judge_calls)
    log_metric("rubric/judge_tokens", report.usage.prompt_tokens + report.usage.completion_tokens)
    if report.usage.cost_usd is not None:
        log_metric("rubric/judge_cost_usd", report.usage.cost_usd)
    for origin in ("induced", "reused", "given", "none"):
        log_metric(
            f"rubric/origin_{origin}",
            report.origins.get(origin, 0) / max(1, sum(report.origins.values())),
        )
    judged: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for rate in report.criteria:
        judged[rate.category] += rate.judged
        met[rate.category] += rate.met
    for category in sorted(judged):
        if judged[category]:
            log_metric(f"rubric/met_{category}", met[category] / judged[category])
