"""Processes of which the first waits for the service longer than a collective may take."""

import datetime
import os
import threading
import time
from pathlib import Path

from torch import distributed

from markscheme.errors import ConnectionFailed
from markscheme.integrations.pending import PendingScores
from markscheme.integrations.processes import current_process_group
from markscheme.schema import ScoreBatch
from train.tiny import ScriptedClient

COLLECTIVE_S = 4.0
AWAY_S = 6.0


def main(facts: Path) -> None:
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=COLLECTIVE_S))
    rank = distributed.get_rank()
    client = ScriptedClient(lambda place, rollout: 1.0)
    back, told = threading.Event(), []

    def slow() -> ScoreBatch:
        if not back.wait(AWAY_S):
            back.set()
            raise ConnectionFailed("away")
        return client.score([])

    scores = PendingScores(max_outage_s=60.0)
    scores.post(slow if rank == 0 else lambda: client.score([]))
    started = time.monotonic()
    answers = scores.join(current_process_group(), lambda why, seconds: told.append(why))
    assert time.monotonic() - started > COLLECTIVE_S
    assert len(answers) == 2
    assert told == ["away"], "every process is told what one waits for"

    def gone() -> ScoreBatch:
        raise ConnectionFailed("gone")

    # The second gives up; the first, which would wait on, leaves with it.
    scores = PendingScores(max_outage_s=3600.0 * (1 - rank))
    scores.post(gone)
    try:
        scores.join(current_process_group(), None)
    except ConnectionFailed as error:
        (facts / str(os.getpid())).write_text(str(error))
    distributed.destroy_process_group()
