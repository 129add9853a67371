"""Train the demo in a container, through the loss of the service and of the trainer."""

import json
import time

from deployment import containment
from deployment.project import RUN, Run

OUTAGE_S = 30
"""How long the service stays away: longer than a step on two cores, so that one has to wait."""
KILL_SERVICE_AT, KILL_TRAINER_AT = 2, 7
"""Steps; the demo saves every fifth."""
KILL = """
import os, signal
for name in os.listdir("/proc"):
    if name.isdigit() and name not in ("1", str(os.getpid())):
        if b"markscheme" in open(f"/proc/{name}/cmdline", "rb").read():
            os.kill(int(name), signal.SIGKILL)
"""
"""Kills the container's processes from inside, like a crash.

The engine does not restart a container that is killed from outside.
"""


def start_demo(run: Run) -> None:
    """Start the training, and look at how every container is held."""
    run.console.print("Training SmolLM2 in a container (about ten minutes) …")
    run.compose("up", "--detach", "demo")
    run.wait(lambda: bool(run.log().strip()), within_s=60, what="the trainer's first line")
    first = run.log().splitlines()[0]
    run.expect(
        "the trainer says what it will do before it does it",
        first.startswith("Trains SmolLM2-135M") and "judge in .env: none" in first,
        first,
    )
    run.expect(
        "every container is confined: no capabilities but PostgreSQL's to start, none to be "
        "gained, bounded logs, a read-only root but for the demo's",
        *containment.confinement(run),
    )
    run.expect(
        "no container runs as root, none has a capability, and none can write to its root",
        *containment.processes(run),
    )
    run.expect(
        "each secret is in the containers that need it: the owner's of the database in PostgreSQL "
        "and `migrate` only, the operator's key in the service only",
        *containment.secrets_in_place(run),
    )
    containment.trainers_key(run)
    containment.reach(run)


def lose_the_service(run: Run) -> None:
    """Kill the service between two steps, and bring it back."""
    run.wait(
        lambda: len(run.steps()) >= KILL_SERVICE_AT, within_s=900, what=f"step {KILL_SERVICE_AT}"
    )
    before = run.steps()
    run.console.print(f"Killing the service after step {before[-1]['step']}, for {OUTAGE_S} s …")
    run.compose("kill", "--signal", "KILL", "rubric")
    time.sleep(OUTAGE_S)
    during = run.steps()
    run.compose("up", "--detach", "--wait", "--no-deps", "rubric")
    took = run.wait(
        lambda: len(run.steps()) >= len(during) + 2, within_s=300, what="two steps after the outage"
    )
    state = run.state("demo")
    lines = [
        line for line in run.log().splitlines() if line.startswith("waiting for the rubric service")
    ]
    run.expect(
        "a killed service only delays the training",
        state["State"]["Running"] and state["RestartCount"] == 0 and bool(lines),
        f"the trainer waited ({len(lines)} tries), was not restarted, and had done two more steps "
        f"{took:.0f} s after the service was back",
    )


def lose_the_trainer(run: Run) -> None:
    """Kill the trainer's process during a step; its restart policy must start it again."""
    run.wait(
        lambda: len(run.steps()) >= KILL_TRAINER_AT, within_s=900, what=f"step {KILL_TRAINER_AT}"
    )
    last, rows = run.steps()[-1]["step"], run.counts()["rollouts"]
    run.console.print(f"Killing the trainer's process after step {last} …")
    marks = len(run.log().splitlines())
    run.compose("exec", "-T", "demo", "python", "-c", KILL, check=False)
    run.wait(
        lambda: any(line.startswith("step ") for line in run.log().splitlines()[marks:]),
        within_s=600,
        what="a step of the resumed training",
    )
    first = next(
        line for line in run.log().splitlines()[marks:] if line.startswith("step ")
    ).split()[1]
    step = int(first.partition("/")[0])
    restarts = run.state("demo")["RestartCount"]
    run.expect(
        "a killed trainer is restarted and goes on from its checkpoint",
        restarts == 1 and 1 < step <= last + 1,
        f"killed after step {last}, {restarts} restart, went on with step {step}",
    )
    run.figure("rollouts stored when the trainer was killed", str(rows))


def finish(run: Run) -> None:
    """Wait for the end; look at the rewards and into the database."""
    took = run.wait(
        lambda: not run.state("demo")["State"]["Running"], within_s=1800, what="the end of the demo"
    )
    run.figure("from the resumed step to the end", f"{took:.0f} s")
    state = run.state("demo")
    ended = (
        state["State"]["ExitCode"] == 0
        and not state["State"]["Restarting"]
        and state["RestartCount"] == 1
    )
    run.expect(
        "the trainer ends with 0 and stays ended",
        ended,
        f"status {state['State']['ExitCode']}, {state['RestartCount']} restart",
    )

    def read(name: str) -> str:
        return run.compose(
            "run", "--rm", "--no-deps", "--entrypoint", "cat", "demo", f"{RUN}/{name}"
        ).stdout

    records = [json.loads(line) for line in read("run/steps.jsonl").splitlines()]
    run.expect(
        "every step happened once",
        [r["step"] for r in records] == list(range(1, records[-1]["steps"] + 1)),
        f"{len(records)} steps of {records[-1]['rollouts']} rollouts",
    )
    summary = json.loads(read("summary.json"))
    known = sum(record["rollouts"] - record["unscored"] for record in records)
    explained = all(sum(record["reasons"].values()) == record["unscored"] for record in records)
    run.expect(
        "every reward is known, or null with a reason",
        explained and known > 0,
        f"{known} known, {sum(r['unscored'] for r in records)} null with a reason",
    )
    run.expect(
        "the rewards rose",
        summary["reward_after"] > summary["reward_before"],
        f"{summary['reward_before']:.2f} to {summary['reward_after']:.2f} on the prompts trained "
        f"on (± {summary['reward_after_se']:.2f}), {summary['heldout_before']:.2f} to "
        f"{summary['heldout_after']:.2f} held out",
    )
    counts = run.counts()
    run.expect(
        "rubrics and verdicts are in PostgreSQL",
        counts["rubrics"] > 0 and counts["verdicts"] > 0,
        ", ".join(f"{count:,} {table}" for table, count in counts.items()),
    )
    for service in ("rubric", "postgres", "redis"):
        used = run.docker(
            "stats", "--no-stream", "--format", "{{.MemUsage}}", run.container(service)
        ).stdout
        run.figure(f"memory of `{service}` after the training", used.partition(" /")[0].strip())
    trained = int(
        run.query(
            "SELECT count(*) FROM rollouts r JOIN assignments a ON a.id = r.assignment_id "
            "WHERE a.step IS NOT NULL"
        )
    )
    expected = sum(record["rollouts"] for record in records)
    run.expect(
        "no rollout was stored twice, none was lost",
        trained == expected,
        f"{trained} of the training in the database, {expected} trained on",
    )
