"""Work off replays: in every process, for each team one at a time, oldest first.

A process works for a team under a claim. When it falls silent, another one takes the claim over
after its lease and goes on with the groups that are not done. Verdicts are stored before a group's
result is, so that a group that is begun again asks only for what was in flight.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from markscheme.vocabulary import REASON_HELP, UnscoredReason
from markscheme_server.accounts.budgets import BUDGET_SPENT
from markscheme_server.domain.hashing import digest
from markscheme_server.scoring.replay_groups import CannotGoOn, GroupReplayer
from markscheme_server.store.claims import ClaimStore
from markscheme_server.store.engine.database import is_outage
from markscheme_server.store.replays import LIVE, OpenGroup, ReplayStore, StoredReplay

POLL_S = 2.0
"""Seconds between two looks for replays to work on."""
PAUSE_S = 30.0
"""Seconds after which a paused replay is tried again."""
AT_A_TIME = 4
"""Groups of one replay that are judged at a time."""
MAX_TIMEOUTS = 3
"""How often a group is judged whose time ran out; what it left open is then not known."""
MAX_TRIES = 5
"""How often a group is begun that fails by an error of ours or ends its process."""
INTERNAL = "an error of the service; its log names it beside the replay's id"
OUTAGES = (SQLAlchemyError, OSError, TimeoutError)
"""What the database raises when it cannot be reached."""
WAITS_FOR: dict[UnscoredReason, str] = {
    UnscoredReason.BUDGET: BUDGET_SPENT,
    **{
        reason: REASON_HELP[reason]
        for reason in (
            UnscoredReason.QUOTA,
            UnscoredReason.MISCONFIGURED,
            UnscoredReason.RATE_LIMITED,
            UnscoredReason.UNAVAILABLE,
        )
    },
}
"""Reasons that pause a replay, in the order in which they are told: they are no rollout's own."""

log = structlog.get_logger()


class _Paused(Exception):
    """Nothing can be judged now. The message says why, for people."""


@dataclass(slots=True)
class _Pass:
    """Work on one replay by one process. `ended`: why it ends before the last group."""

    replay: StoredReplay
    ended: Exception | None = None


class ReplayWorker:
    """Works off the replays of all teams until `aclose`."""

    def __init__(self, store: ReplayStore, claims: ClaimStore, groups: GroupReplayer) -> None:
        self._store, self._claims, self._groups = store, claims, groups
        self._wake = asyncio.Event()
        self._stopping = False
        self._teams: dict[str, asyncio.Task[None]] = {}
        self._looking = asyncio.ensure_future(self._look())

    def wake(self) -> None:
        """Look for work now instead of after `POLL_S`."""
        self._wake.set()

    async def aclose(self, within_s: float) -> None:
        """Begin no further group, wait for those under way for `within_s` at most, and stop."""
        self._stopping = True
        self._looking.cancel()
        tasks = [self._looking, *self._teams.values()]
        await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        reachable = True
        while True:
            self._wake.clear()
            try:
                for team in await self._store.teams():
                    if team not in self._teams:
                        task = asyncio.ensure_future(self._work_for(team))
                        self._teams[team] = task
                        task.add_done_callback(partial(self._forget, team))
                reachable = True
            except OUTAGES as error:
                # Once an outage: readiness and the requests tell the rest.
                if reachable:
                    log.warning("replays_unreachable", error=type(error).__name__)
                reachable = False
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _forget(self, team: str, _done: "asyncio.Task[None]") -> None:
        self._teams.pop(team, None)

    async def _work_for(self, team: str) -> None:
        key = digest(["replays", team])
        try:
            # Looked at first: a claim that another process holds must not cost a write each time.
            if await self._claims.is_held(key):
                return
            if (claim := await self._claims.acquire(key)) is None:
                return
            try:
                while not self._stopping and (replay := await self._store.next(team)) is not None:
                    await self._work(replay)
            finally:
                await self._claims.drop(claim)
        except OUTAGES as error:
            # What is not done stays in the queue; the next look finds it.
            log.warning("replay_interrupted", error=type(error).__name__)

    async def _work(self, replay: StoredReplay) -> None:
        """Work on a replay until it is over, paused or cancelled, or the process stops."""
        if replay.state == "queued":
            await self._store.change(replay, "running")
        work = _Pass(replay)
        while not self._stopping and work.ended is None:
            groups = await self._store.open_groups(replay.team, replay.id)
            if not groups or not await self._goes_on(replay):
                break
            new = (group for group in groups if not group.tries)
            await asyncio.gather(*(self._take(work, new) for _ in range(AT_A_TIME)))
            # One at a time: if one ends the process, no other counts a try for it.
            await self._take(work, (group for group in groups if group.tries))
        match work.ended:
            case None:
                if not self._stopping:
                    await self._store.change(replay, "finished")
            case _Paused() as paused:
                log.info("replay_paused", replay=replay.id, reason=str(paused))
                await self._store.change(replay, "paused", str(paused), pause_s=PAUSE_S)
            case CannotGoOn() as failed:
                await self._store.change(replay, "failed", str(failed))
            case error if is_outage(error):
                raise error
            case error:
                log.error("replay_failed", replay=replay.id, exc_info=error)
                await self._store.change(replay, "failed", INTERNAL)

    async def _goes_on(self, replay: StoredReplay) -> bool:
        """Return whether the replay is neither over nor gone."""
        now = await self._store.find(replay.team, replay.id)
        return now is not None and now.state in LIVE

    async def _take(self, work: _Pass, groups: Iterator[OpenGroup]) -> None:
        """Score one group after the other, and store each before the next is begun."""
        replay = work.replay
        for group in groups:
            try:
                now = await self._store.find(replay.team, replay.id)
                # The groups that are being judged end before a pause: what they cost is paid.
                if self._stopping or work.ended or now is None or now.state not in LIVE:
                    return
                await self._try(replay, group)
                if now.state == "paused":
                    # Only now: while the reason lasts, it stays to be read.
                    await self._store.change(replay, "running")
            except Exception as error:
                work.ended = work.ended or error
                return

    async def _try(self, replay: StoredReplay, group: OpenGroup) -> None:
        """Score a group, unless it was begun `MAX_TRIES` times. Raises what `_score` raises.

        An error of ours is logged; the group stays open, and its neighbours go on.
        """
        if group.tries >= MAX_TRIES:
            log.error("replay_group_given_up", replay=replay.id, group=group.assignment_id)
            await self._store.save(replay, group.number, None)
            return
        await self._store.count_try(replay, group.number, 1)
        try:
            await self._score(replay, group)
        except BaseException as error:
            if _is_ours(error):
                log.error(
                    "replay_group_failed",
                    replay=replay.id,
                    group=group.assignment_id,
                    tries=group.tries + 1,
                    exc_info=error,
                )
                return
            with suppress(*OUTAGES):
                await self._store.count_try(replay, group.number, -1)
            raise

    async def _score(self, replay: StoredReplay, group: OpenGroup) -> None:
        """Score a group and store the result. Raises `_Paused` and `CannotGoOn`."""
        for attempt in range(1, MAX_TIMEOUTS + 1):
            planned = await self._groups.plan(replay, group.assignment_id)
            if planned is None:
                await self._store.save(replay, group.number, None)
                return
            score = await self._groups.score(replay, planned)
            for reason, said in WAITS_FOR.items():
                if reason in score.reasons:
                    raise _Paused(said)
            if UnscoredReason.TIMEOUT not in score.reasons or attempt == MAX_TIMEOUTS:
                break
        await self._store.save(
            replay,
            group.number,
            score.result,
            cached_verdicts=score.cached_verdicts,
            saved_usd=score.saved_usd,
        )


def _is_ours(error: BaseException) -> bool:
    """Return whether an error is neither expected, nor an outage, nor a cancellation."""
    expected = isinstance(error, (_Paused, CannotGoOn)) or not isinstance(error, Exception)
    return not expected and not is_outage(error)
