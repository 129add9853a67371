"""`markscheme serve` as processes, and a judge that holds calls."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.fast_judge import FastJudge
from fakes.processes import ServiceProcess, eventually


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Start services; `ready=False` returns as soon as they listen, before any request."""
    made: list[ServiceProcess] = []

    def one(*, workers: int = 1, ready: bool = True, **settings: Any) -> ServiceProcess:
        process = ServiceProcess(
            tmp_path / "service",
            {"judge": "builtin"} | settings,
            arguments=("--workers", str(workers)) if workers > 1 else (),
        )
        made.append(process)
        if ready:
            return process.wait_ready()
        for attempt in eventually():
            with attempt:
                assert "listening on" in process.output.read_text()
        return process

    yield one
    for process in made:
        process.kill()


@pytest.fixture
def fast() -> Iterator[FastJudge]:
    made = FastJudge()
    yield made
    made.close()
