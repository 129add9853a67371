"""One trial: doctor, an induction, a batch with an over-long rollout, and one more rollout.

The service is a real `markscheme serve` on a free port, with SQLite in a temporary home. Its calls
pass a recording proxy.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from judges.servers import SCORED, Trial
from judges.tap import Tap, tapping
from markscheme import Client, MarkschemeError
from markscheme.errors import StatusError
from markscheme.schema import ScoreBatch
from markscheme.vocabulary import UnscoredReason
from service.processes import clean_environment, listening

DOCTOR_S, INDUCE_S, SCORE_S, AFTER_S = 150.0, 60.0, 60.0, 40.0
"""Maximum seconds of each step."""
CALL_S = 30.0
"""Maximum seconds of one judge call."""
LONG = " ".join(f"Sentence {i} says again that the sky is blue." for i in range(4000))
PROMPT = "Which colour is the sky by day, and why? Answer in one sentence."
RUBRIC = [
    {"text": "It names the colour blue.", "points": 3},
    {"text": "It gives scattered light as the reason.", "points": 2},
]
ROLLOUTS = {
    "right": "Blue, because air scatters the short waves of sunlight.",
    "wrong": "I do not know.",
    "long": LONG,
}
_REASONS = frozenset(UnscoredReason)
_MAIN = [sys.executable, "-c", "from markscheme.cli.app import main; main()"]


@dataclass
class Outcome:
    """Result of one trial.

    Attributes:
        scores: A reward or a reason for each rollout.
        form_before: Form of structured output in the service's first call.
        form_after: The same in the call for the one more rollout.
        calls: Calls by step.
        repeated: Calls identical to one that got a reply.
        refusals: One call of each kind.
    """

    doctor: list[str] = field(default_factory=list)
    doctor_s: float = 0.0
    learnt: list[str] = field(default_factory=list)
    induce: str = ""
    scores: dict[str, str] = field(default_factory=dict)
    form_before: str = ""
    form_after: str = ""
    calls: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    seconds: float = 0.0
    refusals: list[dict[str, Any]] = field(default_factory=list)

    def faults(self, trial: Trial) -> list[str]:
        """Return what is wrong."""
        found = []
        for rollout, said in self.scores.items():
            wanted = trial.long_must if rollout == "long" else trial.must
            is_reward = said.replace(".", "").isdigit()
            if not is_reward and said not in _REASONS:
                found.append(f"{rollout} has neither a reward nor a reason")
            elif wanted is not None and (not is_reward if wanted == SCORED else said != wanted):
                found.append(f"{rollout} is {said}, not {wanted}")
        if set(self.scores) != {*ROLLOUTS, "after"}:
            found.append("a rollout is missing")
        if self.form_after not in ("", self.form_before):
            found.append(f"structured output went from {self.form_before} to {self.form_after}")
        if self.repeated:
            found.append(f"{self.repeated} calls repeat one that got a reply")
        return found


def carry_out(trial: Trial, server_url: str, workdir: Path) -> Outcome:
    """Do all steps; a step that fails is a result."""
    workdir.mkdir(parents=True)
    outcome, started = Outcome(), time.monotonic()
    with tapping(server_url) as tap:
        environment = _environment(trial, tap, workdir)
        _run(["migrate"], environment, workdir, 60)
        with _counting(outcome, tap, "doctor"):
            outcome.doctor = _run(["doctor"], environment, workdir, DOCTOR_S)
        outcome.doctor_s = time.monotonic() - started
        log = workdir / "service.log"
        with (
            listening([*_MAIN, "serve", "--port", "0"], environment, log) as service,
            Client(service.url) as client,
        ):
            with _counting(outcome, tap, "induce"):
                outcome.induce = _induce(client)
            rubric = client.create_rubric(PROMPT, RUBRIC).id
            with _counting(outcome, tap, "score"):
                outcome.scores |= _score(client, rubric, ROLLOUTS, SCORE_S)
            outcome.form_before = next(
                (call.form for call in tap.calls[outcome.calls["doctor"] :]), ""
            )
            with _counting(outcome, tap, "after"):
                outcome.scores |= _score(client, rubric, {"after": "It is grey."}, AFTER_S)
            last = tap.calls[len(tap.calls) - outcome.calls["after"] :]
            outcome.form_after = last[0].form if last else ""
        outcome.learnt = [*_learnt(log)]
    outcome.refusals = [asdict(call) for call in _distinct(tap)]
    outcome.repeated = _repeated(tap)
    outcome.seconds = time.monotonic() - started
    return outcome


def _environment(trial: Trial, tap: Tap, workdir: Path) -> dict[str, str]:
    longest = (
        {} if trial.max_tokens is None else {"MARKSCHEME_JUDGE_MAX_TOKENS": str(trial.max_tokens)}
    )
    return clean_environment(
        {
            "MARKSCHEME_JUDGE": "openai",
            "MARKSCHEME_JUDGE_BASE_URL": f"{tap.url}/v1",
            "MARKSCHEME_JUDGE_MODEL": trial.model,
            "MARKSCHEME_JUDGE_API_KEY": trial.key,
            "MARKSCHEME_JUDGE_TIMEOUT_S": str(CALL_S),
            "MARKSCHEME_DATABASE_URL": f"sqlite:///{workdir / 'markscheme.db'}",
            "MARKSCHEME_DRAIN_DELAY_S": "0",
            "MARKSCHEME_HOME": str(workdir),
            "COLUMNS": "200",
            **longest,
        }
    )


def _run(
    command: list[str], environment: dict[str, str], workdir: Path, most_s: float
) -> list[str]:
    """Return the lines of a command that ends in time."""
    try:
        done = subprocess.run(
            [*_MAIN, *command],
            env=environment,
            cwd=workdir,
            capture_output=True,
            text=True,
            timeout=most_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return [*said.splitlines(), f"FAILED  not done after {most_s:.0f} s"]
    return done.stdout.splitlines() or done.stderr.splitlines()[-1:]


@contextmanager
def _counting(outcome: Outcome, tap: Tap, step: str) -> Iterator[None]:
    before = len(tap.calls)
    try:
        yield
    finally:
        outcome.calls[step] = len(tap.calls) - before


def _induce(client: Client) -> str:
    try:
        rubric = client.induce(
            PROMPT,
            teacher_responses=[ROLLOUTS["right"]],
            deadline_s=INDUCE_S,
            student_responses=[ROLLOUTS["wrong"]],
        )
    except StatusError as error:
        return f"{error.status} {error.code}"
    except MarkschemeError as error:
        return f"{type(error).__name__}: {error}"
    return f"200, {len(rubric.criteria)} criteria"


def _score(client: Client, rubric: str, rollouts: dict[str, str], most_s: float) -> dict[str, str]:
    group = {
        "id": "g",
        "prompt": PROMPT,
        "rubric_id": rubric,
        "rollouts": [{"id": name, "text": text} for name, text in rollouts.items()],
    }
    try:
        batch: ScoreBatch = client.score([group], deadline_s=most_s)
    except MarkschemeError as error:
        return dict.fromkeys(rollouts, f"{type(error).__name__}: {error}")
    return {
        rollout.id: str(rollout.reason) if rollout.reward is None else f"{rollout.reward:.2f}"
        for rollout in batch.groups[0].rollouts
    }


def _learnt(log: Path) -> Iterator[str]:
    """Return what the service now asks differently, in the order it learnt it."""
    for line in log.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "endpoint_adapted":
            yield f"{event['what']}: {event['detail']}"


def _repeated(tap: Tap) -> int:
    replied: set[str] = set()
    repeated = 0
    for call in tap.calls:
        repeated += call.digest in replied
        if call.status == 200:
            replied.add(call.digest)
    return repeated


def _distinct(tap: Tap) -> Iterator[Any]:
    """Return one call for each refusal, in the server's own words."""
    seen = set()
    for call in tap.calls:
        if call.body and (call.status, call.body[:120]) not in seen:
            seen.add((call.status, call.body[:120]))
            yield call
