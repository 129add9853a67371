"""Gather rollouts of trainers that name neither group nor rollout: the group is the prompt's.

A prompt comes again in each epoch, so its groups are numbered: a rollout joins the last one until
that is whole or its wait is over, and then begins the next.
"""

import secrets
import statistics
from collections import defaultdict
from dataclasses import dataclass

from markscheme import schema
from markscheme_server.domain.call_context import Deadline
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import digest
from markscheme_server.errors import Conflict, Unavailable
from markscheme_server.scoring.rollouts import RolloutService, group_id, terms
from markscheme_server.store.gathering import GatheringStore

MAX_REMEMBERED = 100_000
"""Prompts, and rollouts without an answer, that a process remembers."""
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

    A client that asks again because it got no answer is recognised by prompt and text where it
    comes to the same process; elsewhere it counts as another rollout.
    """

    def __init__(self, store: GatheringStore, rollouts: RolloutService) -> None:
        self._store, self._rollouts = store, rollouts
        self._last: dict[str, int] = {}
        self._unanswered: dict[str, list[tuple[int, str]]] = defaultdict(list)

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
            Unavailable: No reward of the group is known.
        """
        run_id = payload.run.id if payload.run else None
        base = digest([caller.team, run_id, terms(payload.model_copy(update={"run": None}))])
        again = digest([base, payload.rollout.text])
        number, rollout_id = (
            self._unanswered[again].pop()
            if self._unanswered.get(again)
            else (await self._open(caller.team, run_id, base), secrets.token_hex(12))
        )
        try:
            while True:
                named = _named(payload, base, number, rollout_id)
                try:
                    scored = await self._rollouts.score(caller, named, deadline)
                    break
                except Conflict as conflict:
                    # Others were faster.
                    if conflict.code != "group_full":
                        raise
                    number += 1
            return await self._known(caller, named, scored)
        except BaseException:
            if len(self._unanswered) >= MAX_REMEMBERED:
                self._unanswered.clear()
            self._unanswered[again].append((number, rollout_id))
            raise
        finally:
            if not self._unanswered.get(again):
                self._unanswered.pop(again, None)

    async def _open(self, team: str, run_id: str | None, base: str) -> int:
        """Return the number of the prompt's group that takes rollouts."""
        first = self._last.get(base, 0)
        while True:
            ids = {
                number: group_id(team, run_id, _key(base, number))
                for number in range(first, first + _AHEAD)
            }
            states = await self._store.states(dict.fromkeys(ids.values(), team))
            for number, identifier in ids.items():
                state = states.get(identifier)
                if state is None or not state.is_due:
                    if len(self._last) >= MAX_REMEMBERED:
                        self._last.clear()
                    self._last[base] = number
                    return number
            first += _AHEAD

    async def _known(
        self, caller: Caller, payload: schema.RolloutRequest, scored: schema.ScoredRollout
    ) -> KnownReward:
        if scored.reward is not None:
            return KnownReward(scored.reward, unscored=False)
        rewards = await self._rollouts.known_rewards(caller, payload)
        if rewards:
            return KnownReward(statistics.fmean(rewards), unscored=True)
        reason = scored.rollout.reason
        raise Unavailable(
            f"no reward of this group is known ({reason}); send the rollout again",
            code=reason or "unscored",
            retry_after_s=1,
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
