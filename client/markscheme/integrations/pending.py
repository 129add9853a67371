"""Post requests early, and join them where rewards are needed; the trainer works meanwhile."""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass

from markscheme.errors import (
    AnswerUnreadable,
    ConnectionFailed,
    MarkschemeError,
    ServiceUnavailable,
)
from markscheme.integrations.processes import ProcessGroup
from markscheme.schema import ScoreBatch

FIRST_RETRY_WAIT_S, MAX_RETRY_WAIT_S = 1.0, 30.0
"""Seconds before the first and between later attempts to reach the service; they double."""
HEARTBEAT_S = 1.0
"""Seconds between the heartbeats of a waiting process."""

Wait = tuple[str, float]
"""Why the service was not reached, and the seconds before the next attempt."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a waiting process tells the others.

    Attributes:
        done: All of its requests have ended.
        late: Some have not ended, and their time is up.
        failed: One of its requests failed.
        waits: Its waits for an unreachable service that it has not reported yet.
    """

    done: bool
    late: bool
    failed: bool
    waits: Sequence[Wait]


class PendingScores:
    """A batch's requests to the service, each in a thread of its own.

    A request that cannot reach the service is repeated, identical to the byte, so that nothing is
    judged twice. After `join` or `cancel` none is repeated. An attempt that is under way is not
    interrupted; its answer is dropped.

    Args:
        max_outage_s: Seconds after its start for which a request is repeated.
    """

    def __init__(self, max_outage_s: float) -> None:
        self._max_outage_s = max_outage_s
        self._futures: list[futures.Future[ScoreBatch]] = []
        self._waits: queue.SimpleQueue[Wait] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._repeated: set[futures.Future[ScoreBatch]] = set()

    def post(self, ask: Callable[[], ScoreBatch]) -> None:
        """Call `ask` in a thread."""
        future: futures.Future[ScoreBatch] = futures.Future()
        self._futures.append(future)
        # A daemon: a process that ends early must not wait for a judge.
        threading.Thread(target=self._run, args=(ask, future), daemon=True).start()

    def cancel(self) -> None:
        """Repeat no request any more."""
        self._cancelled.set()

    def join(
        self,
        processes: ProcessGroup,
        on_wait: Callable[[str, float], None] | None,
        max_late_s: float | None = None,
    ) -> list[ScoreBatch]:
        """Return the answers to all processes' requests, in the order of their ranks.

        With `max_late_s`, requests that are under way after as many seconds are left out. One that
        had to be repeated is waited for, as `max_outage_s` says.

        Every process calls this, also one without requests. While one waits, all exchange
        heartbeats, so that no collective is entered for longer than `HEARTBEAT_S` and
        `torch.distributed` does not time out, however slow or absent the service is.

        Args:
            processes: The processes of the run.
            on_wait: Called with what the first process that waits for an absent service waits for.
            max_late_s: Seconds, from this call on, to wait for answers; `None`: no bound.

        Raises:
            MarkschemeError: A request of any process failed; raised on every one.
        """
        late_at = math.inf if max_late_s is None else time.monotonic() + max_late_s
        try:
            while True:
                left_s = late_at - time.monotonic()
                pause_s = left_s if 0 < left_s < HEARTBEAT_S else HEARTBEAT_S
                futures.wait(self._futures, pause_s, futures.FIRST_EXCEPTION)
                heartbeats = processes.gather([self._heartbeat(late_at)])
                for wait in next((beat.waits for beat in heartbeats if beat.waits), ()):
                    if on_wait is not None:
                        on_wait(*wait)
                if all(beat.done or beat.late for beat in heartbeats):
                    break
                if any(beat.failed for beat in heartbeats):
                    break
            answers = processes.share(self._answers)
            return [answer for of_process in answers for answer in of_process]
        finally:
            self.cancel()

    def _heartbeat(self, late_at: float) -> Heartbeat:
        done = [future for future in self._futures if future.done()]
        waits = [self._waits.get_nowait() for _ in range(self._waits.qsize())]
        return Heartbeat(
            done=len(done) == len(self._futures),
            late=time.monotonic() >= late_at and self._repeated <= {*done},
            failed=any(future.exception() is not None for future in done),
            waits=waits,
        )

    def _answers(self) -> list[ScoreBatch]:
        """Return the answers so far, or raise the first error."""
        return [future.result() for future in self._futures if future.done()]

    def _run(self, ask: Callable[[], ScoreBatch], future: futures.Future[ScoreBatch]) -> None:
        try:
            future.set_result(self._until_answered(ask, future))
        except BaseException as error:  # raised where the answer is joined
            future.set_exception(error)

    def _until_answered(
        self, ask: Callable[[], ScoreBatch], future: futures.Future[ScoreBatch]
    ) -> ScoreBatch:
        give_up_at = time.monotonic() + self._max_outage_s
        wait_s = FIRST_RETRY_WAIT_S
        while True:
            try:
                return ask()
            except MarkschemeError as error:
                if not is_outage(error) or time.monotonic() >= give_up_at:
                    raise
                self._repeated.add(future)
                self._waits.put((str(error), wait_s))
                if self._cancelled.wait(wait_s):
                    raise
            wait_s = min(2 * wait_s, MAX_RETRY_WAIT_S)


def is_outage(error: BaseException) -> bool:
    """Return whether the service cannot be reached but may come back."""
    return isinstance(error, ConnectionFailed | ServiceUnavailable) and not isinstance(
        error, AnswerUnreadable
    )
