"""One question to the service for all processes: rows are gathered, the first process asks, everyone gets the answer.

A group may span processes, and its rollouts must be judged, compared and shown to each other as one. An error of the
one that asks is an error of all, at the same place, so that none waits in a collective for a peer that has left.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class ProcessGroup(Protocol):
    """What passes between the processes of a run. ``rank`` is this one's number."""

    rank: int

    def gather(self, rows: Sequence[T]) -> list[T]:
        """The rows of all processes, in the order of their ranks."""

    def broadcast_from_rank_0(self, question: Callable[[], T]) -> T:
        """The first process's answer; what it raises is raised everywhere."""


class SingleProcess:
    """A run of one process."""

    rank = 0

    def gather(self, rows: Sequence[T]) -> list[T]:
        return list(rows)

    def broadcast_from_rank_0(self, question: Callable[[], T]) -> T:
        return question()


class Distributed:
    """A run of several, through torch.distributed, whichever backend it was started with."""

    def __init__(self) -> None:
        import torch.distributed as distributed

        self._distributed: Any = distributed
        self.rank = distributed.get_rank()

    def gather(self, rows: Sequence[T]) -> list[T]:
        parts: list[Any] = [None] * self._distributed.get_world_size()
        self._distributed.all_gather_object(parts, list(rows))
        return [row for part in parts for row in part]

    def broadcast_from_rank_0(self, question: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = question()
            except Exception as error:
                outcome[1] = _picklable(error)
        self._distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        answer: T = outcome[0]
        return answer


def _picklable(error: Exception) -> Exception:
    """The error itself if it can travel, else one that says the same: the others must not wait for it in vain."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def current_process_group() -> ProcessGroup:
    """That of the running process group, if there is one."""
    import torch.distributed as distributed

    several = (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
    return Distributed() if several else SingleProcess()
