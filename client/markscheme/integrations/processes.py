"""Exchange rows and answers between the processes of a run.

An error of one is raised on every process at the same place, so that none waits in a collective for
a peer that has left. torch is looked up, never imported: a process without it belongs to no group.
"""

import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class ProcessGroup(Protocol):
    """The processes of a run. `rank` is this one's."""

    rank: int

    def gather(self, rows: Sequence[T]) -> list[T]:
        """Return the rows of all processes, in the order of their ranks."""

    def share(self, question: Callable[[], T]) -> list[T]:
        """Call `question` on every rank; return all answers, or raise the first error, on every."""


class SingleProcess:
    """A run of one process."""

    rank = 0

    def gather(self, rows: Sequence[T]) -> list[T]:
        """Return the rows."""
        return list(rows)

    def share(self, question: Callable[[], T]) -> list[T]:
        """Return the answer."""
        return [question()]


class Distributed:
    """A run of several processes, over `torch.distributed` with any backend."""

    def __init__(self, distributed: Any, group: Any = None) -> None:
        self._distributed, self._group = distributed, group
        self.rank = distributed.get_rank()

    def gather(self, rows: Sequence[T]) -> list[T]:
        """Return the rows of all processes, in the order of their ranks."""
        parts: list[Any] = [None] * self._distributed.get_world_size()
        self._distributed.all_gather_object(parts, list(rows), group=self._group)
        return [row for part in parts for row in part]

    def share(self, question: Callable[[], T]) -> list[T]:
        """Call `question` on every rank; return all answers, or raise the first error, on every."""
        # Answer and error travel together, so that every rank raises at the same place.
        answers: list[T] = []
        error: Exception | None = None
        try:
            answers.append(question())
        except Exception as raised:
            error = _picklable(raised)
        outcomes = self.gather([(answers, error)])
        for _, first in outcomes:
            if first is not None:
                raise first
        return [answer for given, _ in outcomes for answer in given]


def _picklable(error: Exception) -> Exception:
    """Return the error if it can be pickled, else one with the same message."""
    try:
        # Also loaded: an exception whose constructor takes other arguments fails only there.
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def current_process_group() -> ProcessGroup:
    """Return the group of `torch.distributed`, or a single process where it is not initialised.

    Outside the main thread it exchanges over the CPU: NCCL sends from the thread's current GPU,
    which in a new thread is the first one on every rank.
    """
    distributed: Any = sys.modules.get("torch.distributed")
    several = (
        distributed is not None
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
    if not several:
        return SingleProcess()
    if threading.current_thread() is threading.main_thread():
        return Distributed(distributed)
    return Distributed(distributed, _cpu_group(distributed))


_cpu_groups: dict[Any, Any] = {}
"""By the default group that each was made beside."""


def _cpu_group(distributed: Any) -> Any:
    default = distributed.group.WORLD
    if default not in _cpu_groups:
        # Every rank comes here in the same call, so that all make it together.
        _cpu_groups[default] = distributed.new_group(backend="gloo")
    return _cpu_groups[default]
