"""Gather rollouts of trainers that name neither group nor rollout: the group is the prompt's.

A prompt comes again in each epoch, so its groups are numbered: a rollout joins the last one until
that is whole or its wait is over, and then begins the next.
"""

import asyncio
import secrets
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markscheme import schema
from markscheme.vocabulary import REASON_HELP, UnscoredReason
from markscheme_server import wire
from markscheme_server.domain.call_context import Deadline
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import digest
from markscheme_server.errors import Conflict
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.scoring.rollouts import RolloutService, group_id, terms
from markscheme_server.store.gathering import GatheringStore

MAX_REMEMBERED = 100_000
"""Prompts whose last group a process remembers."""
_AHEAD = 8
"""Groups of a prompt that are looked for in one query."""


@dataclass(frozen=True, slots=True)
class KnownReward:
    """A reward for a trainer that takes no null.

    `unscored`: the rollout's own is not known, and `reward` is the mean of its group's known ones.
    """

    reward: float
    unscored: bool


class UnnamedGroups:
    """Numbers the groups of each prompt and scores them by `RolloutService`.

    A client that asks again because it got no answer is recognised by prompt and text, at any
    process: its first request is stored as ended without an answer. A request whose process died
    counts as open until its time is over, since the process cannot say that it ended.
    """

    def __init__(self, store: GatheringStore, rollouts: RolloutService) -> None:
        self._store, self._rollouts = store, rollouts
        self._last: dict[str, int] = {}

    async def score(
        self, caller: Caller, payload: schema.RolloutRequest, deadline: Deadline
    ) -> KnownReward:
        """Return the rollout's reward, or the mean of its group's.

        Args:
            caller: Whose group it is.
            payload: The request; the key of its group, its rollout's id and the step of its run
                are replaced.
            deadline: When the caller stops waiting.

        Raises:
            JudgeFailure: No reward of the group is known.
        """
        team, run_id = caller.team, payload.run.id if payload.run else None
        base = digest([team, run_id, terms(payload.model_copy(update={"run": None}))])
        asked_s = max(0.0, deadline.at - asyncio.get_running_loop().time())
        number, ids = await self._open(team, run_id, base)
        resumed = await self._resume(team, ids, payload.rollout, asked_s)
        rollout_id = secrets.token_hex(12)
        if resumed is not None:
            number, rollout_id = ids[resumed[0]], resumed[1]
        answered = False
        try:
            while True:
                named = _named(payload, base, number, rollout_id)
                try:
                    scored = await self._rollouts.score(caller, named, deadline, asked_s=asked_s)
                    break
                except Conflict as conflict:
                    # Others were faster.
                    if conflict.code != "group_full":
                        raise
                    number += 1
            known = await self._known(caller, named, scored)
            answered = True
            return known
        finally:
            await self._store.leave(
                team, group_id(team, run_id, _key(base, number)), rollout_id, answered=answered
            )

    async def _resume(
        self, team: str, ids: Iterable[str], rollout: schema.Rollout, asked_s: float
    ) -> tuple[str, str] | None:
        """Return group and id of the unanswered rollout whose place this request takes."""
        resuming = asyncio.ensure_future(
            self._store.resume(team, ids, wire.response(wire.said(rollout)), asked_s)
        )
        try:
            return await asyncio.shield(resuming)
        except asyncio.CancelledError:
            if (place := await resuming) is not None:
                await self._store.leave(team, *place, answered=False)
            raise

    async def _open(
        self, team: str, run_id: str | None, base: str
    ) -> tuple[int, Mapping[str, int]]:
        """Return the number of the prompt's group that takes rollouts, and those around it by id.

        The one before it is always among these.
        """
        first = max(0, self._last.get(base, 0) - 1)
        while True:
            numbers = {
                group_id(team, run_id, _key(base, number)): number
                for number in range(first, first + _AHEAD)
            }
            states = await self._store.states(dict.fromkeys(numbers, team))
            for identifier, number in numbers.items():
                state = states.get(identifier)
                if state is None or not state.is_due:
                    if len(self._last) >= MAX_REMEMBERED:
                        self._last.clear()
                    self._last[base] = number
                    return number, numbers
            first += _AHEAD - 1

    async def _known(
        self, caller: Caller, payload: schema.RolloutRequest, scored: schema.ScoredRollout
    ) -> KnownReward:
        if scored.reward is not None:
            return KnownReward(scored.reward, unscored=False)
        rewards = await self._rollouts.known_rewards(caller, payload)
        if rewards:
            return KnownReward(statistics.fmean(rewards), unscored=True)
        reason = UnscoredReason(scored.rollout.reason or UnscoredReason.UNAVAILABLE)
        raise JudgeFailure(
            reason, f"no reward of this group is known ({reason}). {REASON_HELP[reason]}"
        )


def _key(base: str, number: int) -> str:
    return f"{base}-{number}"


def _named(
    payload: schema.RolloutRequest, base: str, number: int, rollout_id: str
) -> schema.RolloutRequest:
    return payload.model_copy(
        update={
            "group": payload.group.model_copy(update={"key": _key(base, number)}),
            "rollout": payload.rollout.model_copy(update={"id": rollout_id}),
            "run": payload.run and payload.run.model_copy(update={"step": number}),
        }
    )
