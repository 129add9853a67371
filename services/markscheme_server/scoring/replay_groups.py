"""Score a stored group again with another rubric, judge, view or mode."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markscheme.schema import ReplayRequest
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.call_context import Allowance, CallContext, Deadline
from markscheme_server.domain.replay import ReplayedRollout
from markscheme_server.domain.reward import reward
from markscheme_server.domain.rubric import Rubric
from markscheme_server.domain.trajectory import DEFAULT_VIEW, Answer
from markscheme_server.domain.verdict import Verdict, verdict_string
from markscheme_server.judge.base import Judge
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.verdict_plan import VerdictPlan
from markscheme_server.scoring.verdicts import VerdictService
from markscheme_server.store.replays import GroupResult, StoredReplay
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.run_groups import RunGroupStore, StoredRollout

REPLAY_PRIORITY = 2**62
"""After every request: a replay uses only the capacity that training leaves."""
JUDGE_CHANGED = (
    "the service has no judge any more with the model, template and sampling that the replay began "
    "with; start another replay"
)


class ReplayFailed(Exception):
    """The replay cannot continue. The message says why, for people."""


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A group and the verdicts that it needs. An answer is `None` if judges cannot read it."""

    rubric_before: str
    rubric: Rubric
    rollouts: Sequence[StoredRollout]
    answers: Sequence[Answer | None]
    plans: Sequence[VerdictPlan]


@dataclass(frozen=True, slots=True)
class ReplayedScore:
    """The result of a group. `reasons`: why verdicts are unknown, each once."""

    result: GroupResult
    reasons: frozenset[UnscoredReason]
    cached_verdicts: int
    saved_usd: float


class GroupReplayer:
    """Scores stored groups, each within `timeout_s` seconds and its checks within `checks_s`."""

    def __init__(
        self,
        groups: RunGroupStore,
        rubrics: RubricStore,
        verdicts: VerdictService,
        judges: Judges,
        *,
        timeout_s: float,
        checks_s: float,
    ) -> None:
        self._groups, self._rubrics, self._verdicts = groups, rubrics, verdicts
        self._judges, self._timeout_s, self._checks_s = judges, timeout_s, checks_s

    async def plan(self, replay: StoredReplay, assignment_id: str) -> PlannedGroup | None:
        """Return what it takes to score a group, without asking a judge.

        Returns `None` if its texts were pruned or its rubric is no longer visible. Raises
        `ReplayFailed`.
        """
        team, request = replay.team, ReplayRequest.model_validate(replay.request)
        found = await self._groups.find(team, [assignment_id])
        if not found:
            return None
        group = found[0]
        rubric = await self._rubrics.find(team, request.rubric_id or group.rubric_id)
        if rubric is None or not rubric.criteria:
            if request.rubric_id is not None:
                raise ReplayFailed("the rubric of the replay is no longer visible to the team")
            return None
        judge = self._judge(replay, request, group.judge)
        rollouts = (await self._groups.rollouts(team, [group.id])).get(group.id, [])
        verify = request.verify or group.verify
        teachers = group.figures.teacher_keys if verify == "group" and group.figures else ()
        responses = await self._groups.responses(team, group.id, group.prompt_key, teachers)
        if not rollouts or any(rollout.text_key not in responses for rollout in rollouts):
            return None
        read = [Answer(responses[rollout.text_key], request.thinking) for rollout in rollouts]
        answers = [None if answer.unsupported else answer for answer in read]
        plans = await self._verdicts.plan(
            team=team,
            prompt=group.prompt,
            rubric=rubric,
            answers=[
                *(answer for answer in answers if answer is not None),
                *(Answer(responses[key]) for key in teachers if key in responses),
            ],
            judge=judge,
            verify=verify,
            view=request.view or rubric.view or judge.view or DEFAULT_VIEW,
            run_id=None,
            role="replay",
            replay_id=replay.id,
        )
        return PlannedGroup(group.rubric_id, rubric, rollouts, answers, plans)

    async def score(self, replay: StoredReplay, planned: PlannedGroup) -> ReplayedScore:
        """Score a group; stored verdicts are reused."""
        context = CallContext(
            Deadline(asyncio.get_running_loop().time() + self._timeout_s),
            REPLAY_PRIORITY,
            team=replay.team,
            allowance=Allowance(self._checks_s),
        )
        verdicts = await self._verdicts.judge(planned.plans, context)
        criteria = planned.rubric.criteria
        clamp = ReplayRequest.model_validate(replay.request).clamp
        rollouts = []
        reasons: set[UnscoredReason] = set()
        for rollout, answer in zip(planned.rollouts, planned.answers, strict=True):
            found: Mapping[str, Verdict] = verdicts.of(answer) if answer is not None else {}
            reasons.update(each.reason for each in found.values() if each.reason is not None)
            rollouts.append(
                ReplayedRollout(
                    rollout.reward,
                    reward(criteria, found, clamp),
                    rollout.verdicts,
                    verdict_string(found[c.id] for c in criteria) if found else "",
                )
            )
        return ReplayedScore(
            GroupResult(planned.rubric_before, planned.rubric.id, rollouts),
            frozenset(reasons),
            verdicts.cached,
            verdicts.saved_usd,
        )

    def _judge(self, replay: StoredReplay, request: ReplayRequest, scored_by: str | None) -> Judge:
        """Return the judge that the replay names, else the one that scored the group.

        Raises `ReplayFailed` if the service no longer has it.
        """
        if request.judge is None:
            judge = self._judges.by_identity(scored_by)
        else:
            judge = self._judges.find(request.judge)
            if judge is not None and judge.verifier_identity != replay.judge:
                judge = None
        if judge is None:
            raise ReplayFailed(JUDGE_CHANGED)
        return judge
