"""List a run's groups, and return one with everything that is stored about it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from markscheme import schema
from markscheme.vocabulary import (
    THINKING_MODES,
    VIEWS,
    AssignedOrigin,
    GroupSort,
    UnscoredReason,
)
from markscheme_server import wire
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import criterion_key, prompt_text
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.run_blocks import GroupSummary
from markscheme_server.domain.run_history import SecondVerdicts
from markscheme_server.domain.trajectory import Response, Trajectory, judged, judged_key, reply_of
from markscheme_server.domain.verdict import MET, NOT_APPLICABLE, NOT_MET
from markscheme_server.errors import NotFound
from markscheme_server.judge.base import Judge, VerifyTask
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.scoring.paging import page_after
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.scoring.runs import find_run
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.run_groups import (
    JudgeVerdict,
    RunGroupStore,
    StoredGroup,
    StoredRollout,
)
from markscheme_server.store.runs import RunStore

PROMPT_LENGTH = 300

_SORT_KEYS: Mapping[GroupSort, Callable[[GroupSummary], float | None]] = {
    "spread": lambda g: g.spread,
    "flat": lambda g: 0.0 if g.spread == 0 else None,
    "above_teacher": lambda g: (
        g.mean - g.teacher
        if g.mean is not None and g.teacher is not None and g.mean > g.teacher
        else None
    ),
    "unknown": lambda g: g.unscored or None,
    "length": lambda g: g.words,
}
"""Sort keys of groups, greatest first and then newest first; `None` leaves a group out."""


def _ranked(
    groups: Iterable[GroupSummary], rank: Callable[[GroupSummary], float | None]
) -> list[GroupSummary]:
    """Return the groups that have a rank, the greatest first, else in the order given."""
    ranked = [(key, group) for group in groups if (key := rank(group)) is not None]
    ranked.sort(key=itemgetter(0), reverse=True)
    return [group for _, group in ranked]


class RunGroupService:
    """The operations behind `/v1/runs/{id}/groups` and `/v1/groups/{id}`, for the caller's team."""

    def __init__(
        self,
        runs: RunStore,
        groups: RunGroupStore,
        rubrics: RubricStore,
        histories: RunHistories,
        judges: Sequence[Judge],
    ) -> None:
        self._runs, self._groups, self._rubrics = runs, groups, rubrics
        self._histories, self._judges = histories, judges

    async def groups(
        self,
        caller: Caller,
        run_id: str,
        wanted: schema.GroupFilter,
        *,
        limit: int = 50,
        after: str | None = None,
    ) -> schema.RunGroupList:
        """Return a page of a run's groups. `after`: the previous page's last group.

        Raises `NotFound`.
        """
        loaded = await self._histories.load(await find_run(self._runs, caller, run_id))
        rubrics = {
            rubric
            for rubric, keys in loaded.keys.items()
            if wanted.criterion is None or wanted.criterion in keys
        }
        found: Iterable[GroupSummary] = (
            group
            for group in loaded.history.groups(newest_first=True)
            if (wanted.first_step is None or group.step >= wanted.first_step)
            and (wanted.last_step is None or group.step <= wanted.last_step)
            and (wanted.criterion is None or group.rubric_id in rubrics)
        )
        if wanted.sort == "disagreement":
            gaps = await self._runs.gaps(caller.team, run_id)
            found = _ranked(found, lambda group: gaps.get(group.id))
        elif wanted.sort != "newest":
            found = _ranked(found, _SORT_KEYS[wanted.sort])
        page, more = page_after(found, lambda group: group.id, after=after, limit=limit)
        return schema.RunGroupList(
            first_step=loaded.history.first_step,
            data=await self.summaries(caller.team, [group.id for group in page]),
            has_more=more,
        )

    async def summaries(self, team: str, ids: Sequence[str]) -> list[schema.RunGroup]:
        """Return groups as they are listed, in the order given."""
        groups, rollouts = await asyncio.gather(
            self._groups.find(team, ids), self._groups.rollouts(team, ids)
        )
        # A group without rollouts was pruned meanwhile. In a thread: they may be 100,000 rollouts.
        return await asyncio.to_thread(
            lambda: [_listed(group, of) for group in groups if (of := rollouts.get(group.id))]
        )

    async def group(self, caller: Caller, group_id: str) -> schema.GroupDetail:
        """Return a group in full. Raises `NotFound`."""
        group = await self._find(caller, group_id)
        team, figures = caller.team, group.figures
        rollouts = (await self._groups.rollouts(team, [group.id])).get(group.id, [])
        teacher_keys = figures.teacher_keys if figures is not None else ()
        responses = await self._groups.responses(team, group.id, group.prompt_key, teacher_keys)
        rubric = await self._rubrics.find(team, group.rubric_id)
        criteria = rubric.criteria if rubric is not None else ()
        # In threads: a large group takes half a second of the event loop.
        keys = await asyncio.to_thread(
            lambda: {key: _judged_keys(response) for key, response in responses.items()}
        )
        verdicts = await self._groups.verdicts(
            team,
            group.prompt_key,
            [criterion_key(criterion) for criterion in criteria],
            [key for of_text in keys.values() for key in of_text],
        )
        second = {each.rollout: each for each in await self._groups.second(team, group.id)}
        run = await self._runs.find(team, group.run_id) if group.run_id is not None else None
        first_step = await self._runs.first_step(team, run.id) if run is not None else None
        beside = await self._groups.neighbours(team, group)
        if beside is None:
            raise _unknown_group(group_id)
        return await asyncio.to_thread(
            _detail,
            _GroupReading(
                group, rubric, rollouts, responses, keys, verdicts, second, first_step, beside
            ),
        )

    async def judge_prompt(
        self, caller: Caller, group_id: str, rollout_id: str
    ) -> schema.JudgePrompt:
        """Return the prompt that the judge got for a rollout. Raises `NotFound`."""
        group = await self._find(caller, group_id)
        rollouts = (await self._groups.rollouts(caller.team, [group.id])).get(group.id, [])
        rollout = next((each for each in rollouts if each.id == rollout_id), None)
        if rollout is None:
            raise NotFound(
                f"the group has no rollout {rollout_id!r}",
                code="rollout_not_found",
                param="rollout",
            )

        def answer(prompt: str | None, reason: str | None) -> schema.JudgePrompt:
            return schema.JudgePrompt(
                rollout_id=rollout_id,
                judge=group.judge,
                messages=[schema.Message(role="user", content=prompt)]
                if prompt is not None
                else None,
                reason=reason,
            )

        judge = next((each for each in self._judges if each.verifier_identity == group.judge), None)
        if judge is None:
            return answer(None, "The service no longer has a judge with this model and template.")
        if not isinstance(judge, OpenAIJudge):
            return answer(None, "This judge has no model: code decides.")
        if group.verify == "group":
            return answer(None, "The judge saw all rollouts of the group in one call.")
        rubric = await self._rubrics.find(caller.team, group.rubric_id)
        response = (await self._groups.responses(caller.team, group.id, group.prompt_key, ())).get(
            rollout.text_key
        )
        if rubric is None or response is None:
            return answer(None, "The rubric or the text is no longer here.")
        asked = tuple(c for c in rubric.criteria if c.check is None)
        if not asked:
            return answer(None, "All criteria have checks: code decides.")
        view = rubric.view or judge.view or VIEWS[0]
        task = VerifyTask(
            tuple(group.prompt), asked[: judge.max_criteria], (judged(response, view),)
        )
        return answer(judge.shown(task), None)

    async def _find(self, caller: Caller, group_id: str) -> StoredGroup:
        found = await self._groups.find(caller.team, [group_id])
        if not found:
            raise _unknown_group(group_id)
        return found[0]


def _unknown_group(group_id: str) -> NotFound:
    return NotFound(
        f"there is no group {group_id!r}; pruning removes old ones",
        code="group_not_found",
        param="group_id",
    )


@dataclass(frozen=True, slots=True)
class _GroupReading:
    """What is stored about a group.

    `responses` and their `judged_keys` are by text key, `second` verdicts by rollout. `first_step`
    is that of its run, `beside` the groups before and after it.
    """

    group: StoredGroup
    rubric: Rubric | None
    rollouts: Sequence[StoredRollout]
    responses: Mapping[str, Response]
    judged_keys: Mapping[str, Sequence[str]]
    verdicts: Sequence[JudgeVerdict]
    second: Mapping[str, SecondVerdicts]
    first_step: int | None
    beside: tuple[str | None, str | None]


def _detail(read: _GroupReading) -> schema.GroupDetail:
    group, rubric, responses = read.group, read.rubric, read.responses
    criteria = rubric.criteria if rubric is not None else ()
    said = _JudgeVerdicts(read.verdicts, group.judge, read.judged_keys)
    rollouts, second = read.rollouts, read.second
    before, after = read.beside
    known = [r.reward for r in rollouts if r.reward is not None]
    mean = sum(known) / len(known) if known else None
    made = []
    for rollout in rollouts:
        other = second.get(rollout.id)
        made.append(
            _response(
                rollout,
                responses.get(rollout.text_key),
                mean,
                said.of(criteria, rollout.text_key, rollout.verdicts, other and other.verdicts),
                other.reward if other is not None else None,
            )
        )
    return schema.GroupDetail(
        id=group.id,
        group_id=group.group_id,
        run_id=group.run_id,
        step=group.step,
        first_step=read.first_step,
        created_at=group.created_at,
        reuse=group.reuse,
        verify=group.verify,
        prompt=wire.to_schema_messages(group.prompt),
        rubric=_rubric_ref(rubric, group.origin) if rubric is not None else None,
        criteria=wire.from_criteria(criteria),
        judge=group.judge,
        second_judge=next((each.judge for each in second.values()), None),
        mean=mean,
        spread=group.spread,
        cached_verdicts=group.cached_verdicts,
        saved_usd=group.saved_usd,
        rollouts=made,
        teachers=[
            _response(teacher, responses.get(teacher.text_key), None, verdicts, None)
            for teacher in _teachers(group, len(criteria))
            for verdicts in [said.of(criteria, teacher.text_key, teacher.verdicts, None)]
        ],
        previous_id=before,
        next_id=after,
    )


class _JudgeVerdicts:
    """Finds the judge's evidence and rationale for the verdicts that count."""

    def __init__(
        self,
        verdicts: Sequence[JudgeVerdict],
        judge: str | None,
        keys: Mapping[str, Sequence[str]],
    ) -> None:
        self._judge, self._keys = judge, keys
        self._by_key: dict[tuple[str, str], list[JudgeVerdict]] = {}
        for verdict in verdicts:
            key = (verdict.criterion_key, verdict.response_key)
            self._by_key.setdefault(key, []).append(verdict)

    def of(
        self, criteria: Sequence[Criterion], text_key: str, verdicts: str, second: str | None
    ) -> list[schema.GroupVerdict]:
        """Return the verdicts on a response. `verdicts` and `second` are verdict strings."""
        if len(verdicts) != len(criteria):
            return []
        made = []
        for number, (criterion, each) in enumerate(zip(criteria, verdicts, strict=True)):
            met = _met(each)
            said = self._find(criterion, text_key, met, each == NOT_APPLICABLE)
            evidence = said.evidence if said is not None else None
            made.append(
                schema.GroupVerdict(
                    criterion_id=criterion.id,
                    met=met,
                    applicable=each != NOT_APPLICABLE,
                    evidence=evidence,
                    evidence_is_quotation=evidence is not None and criterion.check is None,
                    rationale=said.rationale if said is not None else None,
                    second_judge_met=_met(second[number])
                    if second is not None and number < len(second)
                    else None,
                )
            )
        return made

    def _find(
        self, criterion: Criterion, text_key: str, met: bool | None, not_applicable: bool
    ) -> JudgeVerdict | None:
        if met is None and not not_applicable:
            return None
        key = criterion_key(criterion)
        found = [
            verdict
            for response in self._keys.get(text_key, ())
            for verdict in self._by_key.get((key, response), ())
            if verdict.met == met
        ]
        # Checks are decided by the builtin judge. Of several verdicts the newest counts.
        mine = [verdict for verdict in found if verdict.judge == self._judge]
        return next(reversed(mine or found), None)


def _met(character: str) -> bool | None:
    return {MET: True, NOT_MET: False}.get(character)


def _judged_keys(response: Response) -> list[str]:
    """Return the keys that a response's judged text may have: its view is not stored."""
    views = VIEWS if isinstance(response, Trajectory) else VIEWS[:1]
    return list(
        dict.fromkeys(
            judged_key(judged(response, view, thinking))
            for view in views
            for thinking in THINKING_MODES
        )
    )


def _teachers(group: StoredGroup, criteria: int) -> list[StoredRollout]:
    figures = group.figures
    if figures is None:
        return []
    return [
        StoredRollout(
            f"teacher-{number + 1}",
            key,
            False,
            reward,
            None,
            figures.teacher_verdicts[number * criteria : (number + 1) * criteria],
            None,
        )
        for number, (key, reward) in enumerate(
            zip(figures.teacher_keys, figures.teacher_rewards, strict=True)
        )
    ]


def _response(
    rollout: StoredRollout,
    response: Response | None,
    mean: float | None,
    verdicts: Sequence[schema.GroupVerdict],
    second: float | None,
) -> schema.GroupResponse:
    text = thought = messages = None
    if isinstance(response, Trajectory):
        text = reply_of(response)
        messages = wire.to_schema_messages(response.messages)
    elif response is not None:
        text = reply_of(response)
        before, _, _ = response.rpartition(text) if text else (response, "", "")
        thought = before.strip() or None
    return schema.GroupResponse(
        id=rollout.id,
        text=text,
        thought=thought,
        messages=messages,
        truncated=rollout.truncated,
        reward=rollout.reward,
        advantage=rollout.reward - mean
        if rollout.reward is not None and mean is not None
        else None,
        reason=UnscoredReason(rollout.reason) if rollout.reason is not None else None,
        words=rollout.words,
        verdicts=list(verdicts),
        second_judge_reward=second,
    )


def _listed(group: StoredGroup, rollouts: Sequence[StoredRollout]) -> schema.RunGroup:
    teacher = group.figures.teacher_known if group.figures is not None else []
    words = [rollout.words for rollout in rollouts if rollout.words is not None]
    return schema.RunGroup(
        id=group.id,
        group_id=group.group_id,
        step=group.step,
        created_at=group.created_at,
        prompt=prompt_text(group.prompt)[:PROMPT_LENGTH],
        rubric_id=group.rubric_id,
        judge=group.judge,
        mean=group.mean,
        spread=group.spread,
        teacher=sum(teacher) / len(teacher) if teacher else None,
        words=sum(words) / len(words) if words else None,
        unscored=group.unscored,
        rollouts=[
            schema.RolloutPoint(
                id=rollout.id,
                reward=rollout.reward,
                reason=UnscoredReason(rollout.reason) if rollout.reason is not None else None,
                truncated=rollout.truncated,
                words=rollout.words,
            )
            for rollout in rollouts
        ],
    )


def _rubric_ref(rubric: Rubric, origin: AssignedOrigin) -> schema.RubricRef:
    return schema.RubricRef(
        id=rubric.id,
        version=rubric.version,
        content_hash=rubric.content_hash,
        origin=origin,
        team=rubric.team,
        criteria=wire.from_criteria(rubric.criteria),
    )
