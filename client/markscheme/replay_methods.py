"""Methods of both clients for replays: scoring the stored rollouts of a run again."""

from typing import Unpack

from markscheme import requests
from markscheme.connection import AsyncConnection, SyncConnection
from markscheme.protocol import ReplayChanges
from markscheme.schema import Replay, ReplayDetail, ReplayEstimate, ReplayList


class ReplayMethods(SyncConnection):
    """Methods of `Client` for replays."""

    def estimate_replay(self, run_id: str, **changes: Unpack[ReplayChanges]) -> ReplayEstimate:
        """Return an upper bound of what `create_replay` with the same arguments would cost."""
        return self._send(requests.estimate_replay(run_id, changes))

    def create_replay(self, run_id: str, **changes: Unpack[ReplayChanges]) -> Replay:
        """Start scoring the stored rollouts of a run again. The run itself does not change.

        Give at least one of `rubric_id`, `judge`, `view` and `verify`; the others stay as each
        group was scored.

        Args:
            run_id: Id of the run.
            changes: `rubric_id` scores the groups of its prompt and of its other versions. `judge`
                names a judge of the service. `view` and `verify`: see `score`. `thinking` and
                `clamp`: as the run was scored, see `score`.
        """
        return self._send(requests.create_replay(run_id, changes))

    def replays(
        self, run_id: str | None = None, *, limit: int = 20, after: str | None = None
    ) -> ReplayList:
        """Return a page of your team's replays, the newest first.

        Args:
            run_id: Only those of this run.
            limit: Page size, 1 to 100.
            after: Id of the last replay of the previous page.
        """
        return self._send(requests.replays(run_id, limit, after))

    def replay(self, replay_id: str) -> ReplayDetail:
        """Return a replay's progress, and how its rewards differ from the run's so far."""
        return self._send(requests.replay(replay_id))

    def cancel_replay(self, replay_id: str) -> Replay:
        """Cancel a replay; finished groups stay."""
        return self._send(requests.cancel_replay(replay_id))


class AsyncReplayMethods(AsyncConnection):
    """Methods of `AsyncClient` for replays; see `ReplayMethods`."""

    async def estimate_replay(
        self, run_id: str, **changes: Unpack[ReplayChanges]
    ) -> ReplayEstimate:
        """Return an upper bound of a replay's cost; see `Client.estimate_replay`."""
        return await self._send(requests.estimate_replay(run_id, changes))

    async def create_replay(self, run_id: str, **changes: Unpack[ReplayChanges]) -> Replay:
        """Start scoring a run's stored rollouts again; see `Client.create_replay`."""
        return await self._send(requests.create_replay(run_id, changes))

    async def replays(
        self, run_id: str | None = None, *, limit: int = 20, after: str | None = None
    ) -> ReplayList:
        """Return a page of replays, the newest first; see `Client.replays`."""
        return await self._send(requests.replays(run_id, limit, after))

    async def replay(self, replay_id: str) -> ReplayDetail:
        """Return a replay's progress and comparison; see `Client.replay`."""
        return await self._send(requests.replay(replay_id))

    async def cancel_replay(self, replay_id: str) -> Replay:
        """Cancel a replay; finished groups stay; see `Client.cancel_replay`."""
        return await self._send(requests.cancel_replay(replay_id))
