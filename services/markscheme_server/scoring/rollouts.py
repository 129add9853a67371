"""Score a group whose rollouts arrive one request each: `POST /v1/rollouts`.

Arrivals are stored. Requests of a group in one process share one wait. One process scores the
group, under a claim, and the scores that it stores answer every request. While groups wait, a
process polls for all of them in one query.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server import wire
from markscheme_server.domain.call_context import Deadline
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import digest, prompt_key
from markscheme_server.errors import Conflict, NotFound, Unavailable
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.scoring.group_scores import unscored_group
from markscheme_server.scoring.scores import RUBRIC_NOT_VISIBLE, ScoreService
from markscheme_server.scoring.single_flight import Abandoned, SingleFlight
from markscheme_server.store.claims import Claim, ClaimLost
from markscheme_server.store.gathering import (
    Arrival,
    GatheredScore,
    GatheringStore,
    GroupState,
    Refusal,
)
from markscheme_server.store.store import Store

POLL_S = 0.25
"""Seconds between polls for rollouts and scores of other processes."""

log = structlog.get_logger()

_REFUSALS: dict[Refusal, str] = {
    "other_terms": "the group {key!r} was begun with another size, prompt or other fields: send "
    "the same for all its rollouts, or use another key",
    "other_content": "the group {key!r} has another rollout with the id {id!r}: give each rollout "
    "an id of its own, and use another key for another group",
    "full": "the group {key!r} has all its {size} rollouts, and {id!r} is none of them: use "
    "another key for another group",
}


@dataclass(frozen=True, slots=True)
class _RolloutRequest:
    """One request: a rollout and its group, whose `id` is the hash of team, run and key."""

    caller: Caller
    payload: schema.RolloutRequest
    id: str
    asked_s: float | None = None

    @property
    def rollout_id(self) -> str:
        return self.payload.rollout.id

    def request(self, group: schema.Group) -> schema.ScoreRequest:
        """Return the request that scores a group by the options of this one."""
        options = {name: getattr(self.payload, name) for name in schema.ScoreOptions.model_fields}
        return schema.ScoreRequest(groups=[group], **options)


class RolloutService:
    """Gathers rollouts into groups, and scores them with `ScoreService`."""

    def __init__(self, store: Store, scores: ScoreService) -> None:
        self._store, self._scores = store.gathering, scores
        self._claims = store.claims
        self._watch = GroupWatch(store.gathering)
        self._flights: SingleFlight[GatheredScore] = SingleFlight()

    async def score(
        self,
        caller: Caller,
        payload: schema.RolloutRequest,
        deadline: Deadline,
        *,
        asked_s: float | None = None,
    ) -> schema.ScoredRollout:
        """Return the score of a rollout once its group is whole, or the wait is over.

        `asked_s` is as in `Arrival`. Raises `Conflict` for a rollout that contradicts its group and
        what `ScoreService.admit` raises.
        """
        key = group_id(caller.team, payload.run.id if payload.run else None, payload.group.key)
        asked = _RolloutRequest(caller, payload, key, asked_s)
        # Refused now, not when the group is whole.
        self._scores.judge_of(payload)
        if payload.rubric_id is not None:
            await self._scores.given_rubric(caller.team, payload.rubric_id, "rubric_id")
        state = await self._arrive(asked)
        try:
            return await self._answer(asked, state, deadline)
        except TimeoutError:
            failure = JudgeFailure(UnscoredReason.TIMEOUT, "the request's time ran out")
            group = schema.Group(id=key, prompt=payload.prompt, rollouts=[payload.rollout])
            score = unscored_group(group, failure)
            return _scored(asked, score, score.rollouts[0], received=state.received)
        except Abandoned as error:
            raise Unavailable(
                "the service is stopping; send the rollout again", code="draining", retry_after_s=1
            ) from error

    async def known_rewards(self, caller: Caller, payload: schema.RolloutRequest) -> list[float]:
        """Return the rewards of a group that are known so far."""
        run_id = payload.run.id if payload.run else None
        found = await self._store.score(
            caller.team, group_id(caller.team, run_id, payload.group.key)
        )
        scores = map(
            schema.RolloutScore.model_validate_json, found.rollouts.values() if found else ()
        )
        return [score.reward for score in scores if score.reward is not None]

    async def drain(self, within_s: float) -> None:
        """Wait up to `within_s` seconds for groups that are being scored."""
        await self._flights.drain(within_s)
        await self._watch.aclose()

    async def _arrive(self, asked: _RolloutRequest) -> GroupState:
        payload = asked.payload
        arrival = Arrival(
            team=asked.caller.team,
            group_id=asked.id,
            terms=terms(payload),
            size=payload.group.size,
            wait_s=payload.group.wait_s,
            rollout_id=payload.rollout.id,
            response=wire.response(wire.said(payload.rollout)),
            truncated=payload.rollout.truncated,
            asked_s=asked.asked_s,
        )
        state = await self._store.arrive(arrival)
        if not isinstance(state, GroupState):
            message = _REFUSALS[state].format(
                key=payload.group.key, id=payload.rollout.id, size=payload.group.size
            )
            raise Conflict(message, code=f"group_{state}", param="group.key")
        if state.is_due:
            self._watch.wake(asked.id, state)
        return state

    async def _answer(
        self, asked: _RolloutRequest, state: GroupState, deadline: Deadline
    ) -> schema.ScoredRollout:
        """Return the rollout's score; wait for it, or score the rollout alone if it is late.

        A rollout whose reward is not known is scored again when it is sent again, and so is a
        group that got no rubric.
        """
        waited, seen = False, state.attempts
        found = await self._found(asked) if seen else None
        while True:
            if found is not None and found.group is not None:
                group = schema.GroupScore.model_validate_json(found.group)
                is_late = asked.rollout_id in found.late
                if (text := found.rollouts.get(asked.rollout_id)) is not None:
                    rollout = schema.RolloutScore.model_validate_json(text)
                    if waited or rollout.reward is not None:
                        return _scored(asked, group, rollout, received=found.scored, late=is_late)
                if group.rubric is not None and (text is None or is_late):
                    rollout = await self._score_late(asked, group.rubric, deadline)
                    return _scored(asked, group, rollout, received=found.scored, late=True)
                seen = found.attempts
            # Each attempt is a flight of its own.
            found, _ = await self._flights.run(
                f"{asked.id}:{seen}",
                partial(self._next_score, asked, state, seen),
                deadline=deadline.at,
            )
            waited = True

    async def _next_score(
        self, asked: _RolloutRequest, state: GroupState, seen: int, _deadline: Deadline
    ) -> GatheredScore:
        """Return the group's next score: wait until it is due, then score it or wait for others.

        `state` is the group's state when this flight began, after `seen` attempts. A caller's
        deadline ends that caller's wait only; the others still get the score.
        """
        while state.attempts <= seen:
            claim = await self._acquire(asked.id) if state.is_due else None
            if claim is not None:
                try:
                    return await self._score(asked, seen, claim)
                except ClaimLost:
                    pass
                except BaseException:
                    # Also when cancelled: others would wait until the lease ends.
                    await self._claims.drop(claim)
                    raise
            state = await self._watch.next_state(asked.caller.team, asked.id, seen)
        return await self._found(asked)

    async def _acquire(self, group_id: str) -> Claim | None:
        """Claim a group unless another process holds it."""
        # While another process scores it, a read is cheaper than `acquire`, which locks the row.
        if await self._claims.is_held(group_id):
            return None
        return await self._claims.acquire(group_id)

    async def _score(self, asked: _RolloutRequest, seen: int, claim: Claim) -> GatheredScore:
        """Score the group with the rollouts that are there, under a claim."""
        # Read under the claim: its previous holder may have stored the score.
        before = await self._found(asked)
        if before.attempts > seen:
            await self._claims.drop(claim)
            return before
        payload, team = asked.payload, asked.caller.team
        rollouts = [
            wire.to_rollout(member.id, member.response, truncated=member.truncated)
            for member in await self._store.members(team, asked.id)
        ]
        rubric = None
        if before.group is not None:
            rubric = schema.GroupScore.model_validate_json(before.group).rubric
        score = await self._ask(
            asked,
            schema.Group(
                id=payload.group.key,
                prompt=payload.prompt,
                # A group that is scored again keeps its rubric.
                rubric_id=payload.rubric_id if rubric is None else rubric.id,
                teacher_responses=payload.teacher_responses,
                rollouts=rollouts,
            ),
            # When all callers have left, this is cancelled.
            self._scores.deadline(None),
        )
        if rubric is not None:
            score = score.model_copy(update={"rubric": rubric})
        texts: dict[str, str] = {}
        for rollout in score.rollouts:
            texts[rollout.id] = rollout.model_dump_json()
            await asyncio.sleep(0)  # other requests run in between
        found = GatheredScore(
            seen + 1,
            len(rollouts),
            score.model_copy(update={"rollouts": []}).model_dump_json(),
            texts,
        )
        await self._store.finish(team, asked.id, claim, found)
        return found

    async def _score_late(
        self, asked: _RolloutRequest, rubric: schema.RubricRef, deadline: Deadline
    ) -> schema.RolloutScore:
        """Score a rollout alone by its group's rubric."""
        payload = asked.payload
        group = schema.Group(
            # Another id than the group's, whose stored outcome is not this rollout's.
            id=digest([asked.id, asked.rollout_id]),
            prompt=payload.prompt,
            rubric_id=rubric.id,
            teacher_responses=payload.teacher_responses,
            rollouts=[payload.rollout],
        )
        rollout = (await self._ask(asked, group, deadline)).rollouts[0]
        await self._store.finish_late(
            asked.caller.team, asked.id, rollout.id, rollout.model_dump_json()
        )
        return rollout

    async def _ask(
        self, asked: _RolloutRequest, group: schema.Group, deadline: Deadline
    ) -> schema.GroupScore:
        try:
            batch = await self._scores.admit(asked.caller, asked.request(group), deadline)
        except NotFound:
            if asked.payload.rubric_id is not None:
                raise
            # The group's rubric was another team's.
            return unscored_group(group, JudgeFailure(UnscoredReason.NO_RUBRIC, RUBRIC_NOT_VISIBLE))
        (score,) = [score async for score in self._scores.score(batch)]
        return score

    async def _found(self, asked: _RolloutRequest) -> GatheredScore:
        found = await self._store.score(asked.caller.team, asked.id)
        if found is None:
            raise _deleted()
        return found


@dataclass(frozen=True, slots=True)
class _Wait:
    team: str
    future: "asyncio.Future[GroupState]"


class GroupWatch:
    """Waits for groups that rollouts of other processes complete, or that others score.

    A process polls for all its groups in one query, every `POLL_S` seconds. Notifications would add
    failure modes (decision 6).
    """

    def __init__(self, store: GatheringStore) -> None:
        self._store = store
        self._waits: dict[tuple[str, int], _Wait] = {}
        """By group and by the number of its attempts so far: one flight waits for each."""
        self._polling: asyncio.Task[None] | None = None

    async def next_state(self, team: str, group_id: str, seen: int) -> GroupState:
        """Return the group's state when it is due or was scored more than `seen` times."""
        wait = _Wait(team, asyncio.get_running_loop().create_future())
        self._waits[group_id, seen] = wait
        if self._polling is None or self._polling.done():
            self._polling = asyncio.ensure_future(self._poll())
        try:
            return await wait.future
        finally:
            del self._waits[group_id, seen]

    def wake(self, group_id: str, state: GroupState) -> None:
        """Wake the waiters of this process at once."""
        wait = self._waits.get((group_id, state.attempts))
        if wait is not None and not wait.future.done():
            wait.future.set_result(state)

    async def aclose(self) -> None:
        """Stop polling."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)

    async def _poll(self) -> None:
        while self._waits:
            await asyncio.sleep(POLL_S)
            waits = dict(self._waits)
            teams = {group_id: wait.team for (group_id, _), wait in waits.items()}
            try:
                states = await self._store.states(teams)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                # The next poll retries; waiters have a deadline.
                log.warning("groups_not_looked_for", error=type(error).__name__)
                continue
            for (group_id, seen), wait in waits.items():
                state = states.get(group_id)
                if wait.future.done():
                    continue
                if state is None:
                    wait.future.set_exception(_deleted())
                elif state.is_due or state.attempts > seen:
                    wait.future.set_result(state)


def group_id(team: str, run_id: str | None, key: str) -> str:
    """Return the id under which a group is stored."""
    return digest({"team": team, "run": run_id, "key": key})


def terms(payload: schema.RolloutRequest) -> str:
    """Return the hash of the fields that all requests of a group must share."""
    shared = payload.model_dump(
        mode="json", exclude={"prompt", "group", "rollout"}, exclude_defaults=True
    )
    return digest(
        {"prompt": prompt_key(wire.messages(payload.prompt)), "size": payload.group.size} | shared
    )


def _scored(
    asked: _RolloutRequest,
    group: schema.GroupScore,
    rollout: schema.RolloutScore,
    *,
    received: int,
    late: bool = False,
) -> schema.ScoredRollout:
    wanted = asked.payload.group
    return schema.ScoredRollout(
        group=schema.GroupProgress(
            key=wanted.key,
            size=wanted.size,
            received=received,
            complete=received >= wanted.size,
            late=late,
        ),
        error=group.error,
        rubric=group.rubric,
        reward_range=group.reward_range,
        teacher=group.teacher,
        rollout=rollout,
    )


def _deleted() -> Unavailable:
    return Unavailable(
        "the group was deleted while it was waited for; send the rollout again",
        code="group_deleted",
        retry_after_s=1,
    )
