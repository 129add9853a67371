"""Test ``markscheme serve`` as processes: shared socket, metrics, shutdown and secrets."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from fakes import shell
from fakes.bodies import hold_one, model_judge
from fakes.fast_judge import FastJudge
from fakes.judge import ScriptedJudge
from fakes.processes import COMMAND, PATIENCE_S, ServiceProcess, command, eventually

Launch = Callable[..., ServiceProcess]

PLAIN_LINES = ("listening on http://127.0.0.1:", "judge: ")


def workers_of(process: ServiceProcess) -> list[psutil.Process]:
    children = psutil.Process(process.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def get(url: str) -> httpx.Response:
    """Send a GET request on its own connection."""
    return httpx.get(url, headers={"Connection": "close"}, timeout=PATIENCE_S, verify=False)


def figure(url: str, series: str) -> float:
    """Return the value of one series at ``/metrics``."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_two_workers_count_together_are_replaced_and_do_not_outlive_the_first_process(
    launch: Launch,
) -> None:
    process = launch(workers=2, drain_delay_s=0)
    assert process.output.read_text().count("listening on") == 1
    first, second = workers_of(process)
    healthy = 'markscheme_request_seconds_count{method="GET",route="/healthz",status="200"}'
    for frozen in (second, first):
        frozen.suspend()  # the other one serves
        assert [get(f"{process.url}/healthz").status_code for _ in range(5)] == [200] * 5
        frozen.resume()
    assert figure(process.url, healthy) == 10

    first.kill()
    for attempt in eventually():
        with attempt:
            now = workers_of(process)
            assert len(now) == 2
            assert first.pid not in [worker.pid for worker in now]
    for attempt in eventually():
        with attempt:
            assert "worker_ended" in process.output.read_text()
    assert figure(process.url, healthy) == 10

    left = workers_of(process)
    process.process.kill()
    _gone, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    assert not alive


@pytest.mark.parametrize("workers", [1, 2])
def test_a_short_answer_is_not_held_back(workers: int, launch: Launch) -> None:
    """Some answers must be quick, however busy the machine.

    Nagle's algorithm would delay nearly every body by the 40 ms after which Linux acknowledges the
    head.
    """
    took = []
    with httpx.Client(base_url=launch(workers=workers).url, timeout=60) as client:
        for _ in range(60):
            began = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            took.append(time.perf_counter() - began)
    assert sorted(took[20:])[5] < 0.03


def test_sigterm_says_so_at_once_and_finishes_what_is_in_flight(
    launch: Launch, fast: FastJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two workers; tests/server/fault has one, and the judge that never answers."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = launch(workers=2, **model_judge(fast.url, drain_delay_s=5))
    assert len(list(tmp_path.glob("markscheme-metrics-*"))) == 1
    sending, answers = hold_one(process.url, fast)
    process.terminate()
    for attempt in eventually(4, every_s=0.005):
        with attempt:
            refused = get(f"{process.url}/readyz")
            assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert refused.headers["retry-after"] == "1"
    assert {get(f"{process.url}/readyz").status_code for _ in range(5)} == {503}
    assert get(f"{process.url}/healthz").headers["connection"] == "close"
    fast.release()
    sending.join(PATIENCE_S)
    assert [answer.rewards for answer in answers] == [[1.0]]
    assert process.wait(PATIENCE_S) == 0
    assert list(tmp_path.glob("markscheme-metrics-*")) == []


def test_a_worker_that_got_no_request_stays_as_long_as_the_others(launch: Launch) -> None:
    """It would reset the connections that it has accepted and not read."""
    process = launch(workers=2, ready=False, drain_delay_s=6)
    _asked, idle = workers_of(process)
    idle.suspend()
    process.wait_ready()
    idle.resume()
    process.terminate()
    time.sleep(1)
    assert len(workers_of(process)) == 2
    assert get(f"{process.url}/readyz").status_code == 503
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_it_at_once(workers: int, launch: Launch, fast: FastJudge) -> None:
    process = launch(workers=workers, **model_judge(fast.url))
    sending, answers = hold_one(process.url, fast)
    serving = workers_of(process)
    process.terminate()
    for attempt in eventually():
        with attempt:
            assert '"stopping"' in process.output.read_text()
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    _gone, alive = psutil.wait_procs(serving, timeout=PATIENCE_S)
    assert not alive
    sending.join(PATIENCE_S)
    assert [answer.status for answer in answers] == [0]


@pytest.mark.parametrize(("sent", "asked"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_nobody_waits_for_a_delay_that_nobody_uses(sent: int, asked: bool, launch: Launch) -> None:
    process = launch(ready=asked, drain_delay_s=60)
    process.process.send_signal(sent)
    assert process.wait(PATIENCE_S) == 0


def test_what_cannot_start_says_why_without_a_traceback(tmp_path: Path) -> None:
    unreachable = {"database_url": "postgresql://u:planted@127.0.0.1:1/x", "judge": "builtin"}
    done = command(
        "serve", "--port", "0", "--workers", "2", directory=tmp_path, settings=unreachable
    )
    assert done.returncode == 1
    assert "MARKSCHEME_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "planted" not in done.stderr + done.stdout
    done = command("serve", "--log-level", "loud", directory=tmp_path, settings={"home": tmp_path})
    assert done.returncode == 2


def test_migrate_says_where_it_came_from_and_went_to(tmp_path: Path) -> None:
    first, second = (
        shell.command("migrate", directory=tmp_path, settings={"home": tmp_path}).stdout
        for _ in range(2)
    )
    file = re.escape(str(tmp_path / "markscheme.db"))
    assert re.fullmatch(rf"the database {file} is at revision \d{{4}}; it was empty\n", first)
    assert second == first.replace("; it was empty", ", as before")


@pytest.mark.parametrize("words", [("migrate",), ("serve", "--port", "0")])
def test_a_database_of_a_newer_version_is_left_alone(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    shell.command("migrate", directory=tmp_path, settings={"home": tmp_path})
    with closing(sqlite3.connect(tmp_path / "markscheme.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    run = command if words[0] == "serve" else shell.command
    done = run(*words, directory=tmp_path, settings={"home": tmp_path})
    assert done.returncode == 1
    assert "a newer one has migrated it" in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_show_nowhere(launch: Launch, judge: ScriptedJudge) -> None:
    """Put secrets in keys, headers, URLs, bodies and judge replies; search output and metrics."""
    secret = "planted7f3a"
    judge.script = lambda request, number: f"{secret} is no JSON"
    process = launch(
        judge="openai",
        judge_base_url=f"{judge.url}?token={secret}-url",
        judge_model="scripted",
        judge_api_key=f"{secret}-judge",
        api_key=f"{secret}-key",
    )
    key = {
        "Authorization": f"Bearer {secret}-key",
        "X-Other": secret,
        "Cookie": secret,
        "User-Agent": secret,
    }
    group = {
        "id": "g",
        "prompt": f"{secret}?",
        "rollouts": [{"id": "r", "text": f"{secret}!"}],
        "teacher_responses": [f"{secret}."],
    }
    seen: list[str] = []
    with httpx.Client(base_url=process.url, timeout=30, verify=False) as client:
        answer = client.post("/v1/scores", json={"groups": [group]}, headers=key)
        assert answer.json()["groups"][0]["rollouts"][0]["reward"] is None
        seen.append(answer.text)
        for response in (
            client.get("/v1/rubrics", headers={"Authorization": f"Bearer {secret}"}),
            client.get(f"/v1/rubrics/{secret}?token={secret}", headers=key),
            client.get(f"/{secret}/{secret}?{secret}", headers=key),
            client.get("/v1/rubrics", params={"limit": secret}, headers=key),
            client.request(secret.upper(), f"/{secret}", headers=key),
            client.post("/v1/scores", content=f'{{"groups": "{secret}'.encode(), headers=key),
            client.post(
                "/v1/scores", json={"groups": [group | {"id": {secret: secret}}]}, headers=key
            ),
            client.post(
                "/v1/rubrics:induce",
                headers=key,
                json={k: v for k, v in group.items() if k in ("prompt", "teacher_responses")}
                | {"student_responses": [secret]},
            ),
        ):
            assert response.status_code >= 400
            seen.append(response.text)
        seen.append(client.get("/metrics").text)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    said = process.output.read_text()
    for text in (*seen, said):
        assert secret not in text.lower()
    logged = [json.loads(line) for line in said.splitlines() if not line.startswith(PLAIN_LINES)]
    requests = [line for line in logged if line["event"] == "request"]
    assert len(requests) == 8  # a method that HTTP does not know reaches no route
    assert all(line["request_id"] and line["seconds"] >= 0 and line["route"] for line in requests)
    assert {line["route"] for line in requests} == {
        "/v1/scores",
        "/v1/rubrics",
        "/v1/rubrics/{rubric_id}",
        "/v1/rubrics:induce",
        "other",
    }


def test_stdout_says_where_it_listens_and_nothing_more(tmp_path: Path) -> None:
    settings = {
        "MARKSCHEME_HOME": str(tmp_path),
        "MARKSCHEME_JUDGE": "builtin",
        "MARKSCHEME_LOG_LEVEL": "debug",
        "MARKSCHEME_WORKERS": "2",
        "MARKSCHEME_DRAIN_DELAY_S": "60",
    }
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(
            [COMMAND, "serve", "--port", "0"],
            cwd=tmp_path,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            assert get(f"{url}/healthz").status_code == 200
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert (
        rest
        == "judge: builtin (rules, not a language model: it decides criteria that carry a check)\n"
    )
    logged = [json.loads(line) for line in (tmp_path / "errors").read_text().splitlines()]
    assert ("/healthz", 200) in [(line.get("route"), line.get("status")) for line in logged]
