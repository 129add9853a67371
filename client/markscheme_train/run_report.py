"""Tell the service about a run while it goes on: facts, metrics of each step, and how it ended.

A thread does it, so that a slow or absent service neither slows nor fails a run.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from markscheme.client import Client
from markscheme.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    MarkschemeError,
    ServiceUnavailable,
)
from markscheme.run_text import run_url
from markscheme.schema import Finding
from markscheme_train.config import TrainConfig
from markscheme_train.errors import Collapsed, Interrupted, Stopped
from markscheme_train.step_log import StepRecord

EVERY_S = 5.0
"""Seconds between two sendings; what comes meanwhile goes together."""
FINDINGS_EVERY_S = 30.0
CALL_S = 10.0
"""Seconds that a call may take."""
END_S = 20.0
"""Seconds that the end of a run waits for the last ones."""
MAX_RECORDS = 1000
"""Records of one request, and records that are kept while the service is away."""
MAX_REASON = 500
"""Characters of why a run ended."""
FACTS = (
    "preset",
    "method",
    "data",
    "reuse",
    "verify",
    "prompts_per_step",
    "num_generations",
    "steps_per_batch",
    "learning_rate",
    "max_completion_length",
    "lora_rank",
    "seed",
)
"""Keys of the configuration that are shown of a run, beside its student."""


class RunReport:
    """A context manager around a run: leaving it says how the run ended.

    Attributes:
        run_id: The run's id; empty before the start.
        facts: What is shown of the run, by name.
        findings: What the service last said is wrong with the run.
        url: The address of the run's page; `None` until the service has taken the first report.
    """

    def __init__(
        self,
        client: Client,
        config: TrainConfig,
        *,
        on_url: Callable[[str], None] = lambda url: None,
        on_findings: Callable[[list[Finding]], None] = lambda findings: None,
        on_warning: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._clock = client, clock
        self._on_url, self._on_findings, self._on_warning = on_url, on_findings, on_warning
        self.run_id = ""
        self.facts = {
            "student": shown_name(config.model),
            **{name: getattr(config, name) for name in FACTS},
            "data": shown_name(config.data),
        }
        self._lock = threading.Lock()
        self._unsent: dict[str, Any] = {}
        self._records: dict[int, dict[str, float | None]] = {}
        self._steps: int | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._report, name="run report", daemon=True)
        self._asked_at, self._may_read = -FINDINGS_EVERY_S, True
        self.findings: list[Finding] = []
        self.url: str | None = None

    def start(self, run_id: str) -> None:
        """Begin to report a run under its id."""
        self.run_id = run_id
        self._unsent = {"state": "running", "facts": self.facts}
        self._thread.start()

    def add(self, record: StepRecord) -> None:
        """Report a finished step."""
        seconds = {
            f"seconds/{name}": getattr(record, f"{name}_s")
            for name in ("rollout", "scoring", "teacher", "update")
        }
        # The service has steps as TRL counts them when a batch is scored: from 0.
        with self._lock:
            self._records[record.step - 1] = record.metrics | seconds
            if record.steps != self._steps:
                self._steps = record.steps
                self._unsent["steps"] = record.steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.run_id:
            return
        with self._lock:
            self._unsent |= _end_of_run(error)
        self._ending.set()
        self._thread.join(END_S)

    def _report(self) -> None:
        """Send what there is every `EVERY_S` seconds, until the run has ended."""
        while True:
            ending = self._ending.is_set()
            try:
                self._send(ending=ending)
            except (ConnectionFailed, ServiceUnavailable):
                pass  # It is sent with what comes next.
            except MarkschemeError as error:
                self._on_warning(
                    f"the service does not take reports of this run, which goes on without: {error}"
                )
                return
            if ending:
                return
            self._ending.wait(EVERY_S)

    def _send(self, *, ending: bool) -> None:
        with self._lock:
            unsent, records = self._unsent, self._records
            self._unsent, self._records = {}, {}
        try:
            if unsent:
                self._client.put_run(self.run_id, **unsent)
                unsent = {}
            if records:
                self._client.add_run_records(self.run_id, records)
                records = {}
        finally:
            with self._lock:
                self._unsent = unsent | self._unsent
                self._records = dict([*(records | self._records).items()][-MAX_RECORDS:])
        if self.url is None:
            self.url = run_url(self._client.base_url, self.run_id)
            self._on_url(self.url)
        if self._may_read and (ending or self._clock() - self._asked_at >= FINDINGS_EVERY_S):
            self._asked_at = self._clock()
            self._ask_for_findings()

    def _ask_for_findings(self) -> None:
        try:
            self.findings = self._client.run_findings(self.run_id).data
        except AuthenticationFailed as error:
            # The key may score, which is all that a training needs, but not read.
            self._may_read = False
            self._on_warning(f"findings of this run are not shown here: {error}")
        else:
            self._on_findings(self.findings)


def shown_name(source: str) -> str:
    """Return the last part of a path of this machine; a name on the hub as it is."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def _end_of_run(error: BaseException | None) -> dict[str, str]:
    """Return the state of a run that ended so."""
    if error is None:
        return {"state": "finished"}
    stopped = isinstance(error, Stopped | Interrupted | Collapsed | KeyboardInterrupt)
    why = " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
    return {"state": "stopped" if stopped else "failed", "reason": why[:MAX_REASON]}
