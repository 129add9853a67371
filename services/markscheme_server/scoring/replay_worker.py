"""Run queued replays: in every process, for each team one at a time, oldest first.

A process works for a team while it holds a claim. If it dies, another process takes the claim when
its lease ends, and continues with the unfinished groups. Verdicts are stored before a group's
result, so a restarted group repeats only the calls that were in flight.
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
from markscheme_server.scoring.replay_groups import GroupReplayer, ReplayFailed
from markscheme_server.store.claims import ClaimStore
from markscheme_server.store.engine.database import is_outage
from markscheme_server.store.replays import LIVE, OpenGroup, ReplayStore, StoredReplay

POLL_S = 2.0
"""Seconds between polls for queued replays."""
PAUSE_S = 30.0
"""Seconds before a paused replay is retried."""
AT_A_TIME = 4
"""Groups of one replay judged concurrently."""
MAX_TIMEOUTS = 3
"""Attempts at a group that times out; verdicts that are still missing then are unknown."""
MAX_TRIES = 5
"""Attempts at a group that fails by an error of the service or ends its process."""
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
"""Reasons that pause a replay, by priority: they concern the service, not one rollout."""

log = structlog.get_logger()


class _Paused(Exception):
    """Nothing can be judged for now. The message says why, for people."""


@dataclass(slots=True)
class _Pass:
    """One process's work on a replay. `ended`: the error that stopped it early."""

    replay: StoredReplay
    ended: Exception | None = None


class ReplayWorker:
    """Runs the replays of all teams until `aclose`."""

    def __init__(self, store: ReplayStore, claims: ClaimStore, groups: GroupReplayer) -> None:
        self._store, self._claims, self._groups = store, claims, groups
        self._wake = asyncio.Event()
        self._stopping = False
        self._teams: dict[str, asyncio.Task[None]] = {}
        self._polling = asyncio.ensure_future(self._poll())

    def wake(self) -> None:
        """Poll now instead of after `POLL_S`."""
        self._wake.set()

    async def aclose(self, within_s: float) -> None:
        """Start no further group, wait up to `within_s` seconds for running ones, and stop."""
        self._stopping = True
        self._polling.cancel()
        tasks = [self._polling, *self._teams.values()]
        await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self) -> None:
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
                # Once per outage: readiness probes and requests report it too.
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
            # Read first, so that a claim held by another process costs no write.
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
            # Unfinished work stays queued; the next poll finds it.
            log.warning("replay_interrupted", error=type(error).__name__)

    async def _work(self, replay: StoredReplay) -> None:
        """Run a replay until it is over, paused or cancelled, or the process stops."""
        if replay.state == "queued":
            await self._store.change(replay, "running")
        work = _Pass(replay)
        while not self._stopping and work.ended is None:
            groups = await self._store.open_groups(replay.team, replay.id)
            if not groups or not await self._is_live(replay):
                break
            new = (group for group in groups if not group.tries)
            await asyncio.gather(*(self._take(work, new) for _ in range(AT_A_TIME)))
            # One at a time: a group that ends the process must not cost the others a try.
            await self._take(work, (group for group in groups if group.tries))
        match work.ended:
            case None:
                if not self._stopping:
                    await self._store.change(replay, "finished")
            case _Paused() as paused:
                log.info("replay_paused", replay=replay.id, reason=str(paused))
                await self._store.change(replay, "paused", str(paused), pause_s=PAUSE_S)
            case ReplayFailed() as failed:
                await self._store.change(replay, "failed", str(failed))
            case error if is_outage(error):
                raise error
            case error:
                log.error("replay_failed", replay=replay.id, exc_info=error)
                await self._store.change(replay, "failed", INTERNAL)

    async def _is_live(self, replay: StoredReplay) -> bool:
        """Return whether the replay still exists and is not over."""
        now = await self._store.find(replay.team, replay.id)
        return now is not None and now.state in LIVE

    async def _take(self, work: _Pass, groups: Iterator[OpenGroup]) -> None:
        """Score groups one by one, storing each before the next."""
        replay = work.replay
        for group in groups:
            try:
                now = await self._store.find(replay.team, replay.id)
                # Groups in progress finish before a pause: their calls are already paid for.
                if self._stopping or work.ended or now is None or now.state not in LIVE:
                    return
                await self._try(replay, group)
                if now.state == "paused":
                    # Only after a success, so that the reason stays visible while it lasts.
                    await self._store.change(replay, "running")
            except Exception as error:
                work.ended = work.ended or error
                return

    async def _try(self, replay: StoredReplay, group: OpenGroup) -> None:
        """Score a group, unless it was begun `MAX_TRIES` times. Raises what `_score` raises.

        An unexpected error is logged; the group stays open, and the other groups go on.
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
        """Score a group and store the result. Raises `_Paused` and `ReplayFailed`."""
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
    expected = isinstance(error, (_Paused, ReplayFailed)) or not isinstance(error, Exception)
    return not expected and not is_outage(error)
