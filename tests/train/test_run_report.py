"""What the trainer tells the service of a run, and what it does when nobody listens."""

import threading
from pathlib import Path
from typing import Any

import pytest

from markscheme import Client
from markscheme.errors import AuthenticationFailed, ConnectionFailed, NotFound
from markscheme.schema import Finding, FindingList, GroupFilter, RunPut, RunRecords
from markscheme.schema import StepRecord as StepMetrics
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.errors import Collapsed, Diverged, Interrupted, Stopped, TrainError
from markscheme_train.run_report import EVERY_S, RunReport
from markscheme_train.step_log import StepRecord

FOUND = Finding(
    kind="falling",
    level="alarm",
    sentence="The reward is falling.",
    since_step=3,
    criterion=None,
    values={},
    groups=GroupFilter(),
)


class Service(Client):
    """A client that notes what it is told; `failures` are raised by the calls to come."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__("http://127.0.0.1:8321")
        self.failures = list(failures)
        self.puts: list[dict[str, Any]] = []
        self.records: list[list[int]] = []
        self.called = threading.Event()

    def _fail(self) -> None:
        self.called.set()
        if self.failures:
            raise self.failures.pop(0)

    def put_run(self, run_id: str, **fields: Any) -> None:
        self._fail()
        RunPut.model_validate(fields)
        self.puts.append(fields)

    def add_run_records(self, run_id: str, records: Any) -> None:
        self._fail()
        sent = [StepMetrics(step=number, metrics=metrics) for number, metrics in records.items()]
        self.records.append([each.step for each in RunRecords(records=sent).records])

    def run_findings(self, run_id: str) -> FindingList:
        self._fail()
        return FindingList(data=[FOUND])


@pytest.fixture
def config(settings: dict[str, Any]) -> TrainConfig:
    return build_config(settings)


def step(number: int) -> StepRecord:
    return StepRecord(
        number, 9, 0.5, 4, 0, {}, {}, [], 1.0, 2.0, 0.0, 3.0, 4, 100, {"loss": 0.1, "kl": None}
    )


def test_a_run_is_reported_from_start_to_end(config: TrainConfig) -> None:
    service, urls, found = Service(), list[str](), list[list[Finding]]()
    with RunReport(service, config, on_url=urls.append, on_findings=found.append) as report:
        report.start("night-1")
        for number in (1, 2, 3):
            report.add(step(number))
    told = {name: value for put in service.puts for name, value in put.items()}
    assert told["facts"]["student"] == Path(config.model).name
    assert told["steps"] == 9
    assert told["state"] == "finished"
    assert service.puts[0]["state"] == "running" or len(service.puts) == 1
    assert sum(service.records, []) == [0, 1, 2]
    assert urls == ["http://127.0.0.1:8321/pages/runs/night-1"]
    assert report.findings == found[-1] == [FOUND]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Stopped("stopped after step 3 of 9\nmore"), "stopped"),
        (Interrupted("the service is away"), "stopped"),
        (Collapsed("responses are short"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (Diverged("no numbers"), "failed"),
        (TrainError(), "failed"),
        (MemoryError("x" * 9000), "failed"),
    ],
)
def test_the_end_says_how_and_why(config: TrainConfig, error: BaseException, state: str) -> None:
    service = Service()

    def run() -> None:
        with RunReport(service, config) as report:
            report.start("night-1")
            raise error

    with pytest.raises(type(error)):
        run()
    assert service.puts[-1]["state"] == state
    assert "\n" not in service.puts[-1]["reason"]
    assert service.puts[-1]["reason"]


def test_what_a_service_missed_goes_with_what_comes_next(config: TrainConfig) -> None:
    service = Service(ConnectionFailed("away"))
    with RunReport(service, config) as report:
        report.start("night-1")
        assert service.called.wait(30)
        report.add(step(1))
    assert service.puts[-1]["state"] == "finished"
    assert service.puts[-1]["facts"]["student"] == Path(config.model).name
    assert service.records == [[0]]


@pytest.mark.parametrize("kind", [NotFound, AuthenticationFailed])
def test_a_service_that_takes_no_reports_is_told_once(
    config: TrainConfig, kind: type[NotFound]
) -> None:
    refusal = kind("no such route", status=404, code="not_found")
    service, warnings, urls = Service(refusal), list[str](), list[str]()
    with RunReport(service, config, on_url=urls.append, on_warning=warnings.append) as report:
        report.start("night-1")
        report._thread.join(30)
        report.add(step(1))
    assert len(warnings) == 1
    assert "no such route" in warnings[0]
    assert (service.puts, service.records, urls, report.url) == ([], [], [], None)


def test_a_key_that_may_not_read_reports_to_the_end_without_findings(config: TrainConfig) -> None:
    class NoReader(Service):
        def run_findings(self, run_id: str) -> FindingList:
            raise AuthenticationFailed("needs the scope read", status=403, code="missing_scope")

    service, warnings = NoReader(), list[str]()
    with RunReport(service, config, on_warning=warnings.append) as report:
        report.start("night-1")
        report.add(step(1))
    assert service.puts[-1]["state"] == "finished"
    assert service.records == [[0]]
    assert len(warnings) == 1


def test_paths_of_this_machine_are_shown_by_their_last_part(
    config: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").touch()
    config.model, config.data = "Qwen/Qwen3-0.6B", str(tmp_path / "prompts.jsonl")
    facts = RunReport(Service(), config).facts
    assert (facts["student"], facts["data"]) == ("Qwen/Qwen3-0.6B", "prompts.jsonl")


def test_a_run_that_never_began_reports_nothing(config: TrainConfig) -> None:
    service = Service()
    with pytest.raises(TrainError), RunReport(service, config):
        raise TrainError("no such model")
    assert service.puts == []


def test_a_silent_service_does_not_hold_a_step_up(config: TrainConfig) -> None:
    answered = threading.Event()

    class Silent(Service):
        def put_run(self, run_id: str, **fields: Any) -> None:
            self.called.set()
            answered.wait(60)
            super().put_run(run_id, **fields)

    service = Silent()
    with RunReport(service, config) as report:
        report.start("night-1")
        assert service.called.wait(30)
        for number in range(1, 10):
            report.add(step(number))
        assert service.puts == []  # the steps went on while it was asked
        answered.set()
    assert sum(service.records, []) == list(range(9))


def test_findings_are_asked_for_now_and_then(config: TrainConfig) -> None:
    now, asked = [0.0], list[float]()
    service = Service()
    service.run_findings = lambda run_id: (asked.append(now[0]), FindingList(data=[]))[1]  # type: ignore
    report = RunReport(service, config, clock=lambda: now[0])
    for seconds in (0.0, EVERY_S, 6 * EVERY_S, 7 * EVERY_S):
        now[0] = seconds
        report._send(ending=False)
    assert asked == [0.0, 6 * EVERY_S]
