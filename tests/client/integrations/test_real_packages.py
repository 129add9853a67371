"""`markscheme.integrations` and `/compat` in the real trainers: `make test-integrations`.

Each trainer is installed into an environment of its own, which sees the project's packages behind
its own ones. slime and NeMo Gym are on no index: `SLIME_SOURCE` names a checkout of slime's 624b824
and `NEMO_GYM_SOURCE` one of NeMo Gym's 07d6b0d. Of SkyRL, ART, the Tinker cookbook, NeMo Gym, AReaL
and ms-swift the code that calls the reward runs, on the first block of Python of their guide; the
generation is scripted and nothing is trained.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.judge import ScriptedJudge, answered_texts, offered, verdicts, well_behaved

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # an install may be the first

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).with_name("real")
VENVS = Path(os.environ.get("INTEGRATIONS_VENVS", ROOT / "build" / "integrations"))
SLIME_SOURCE = os.environ.get("SLIME_SOURCE")
NEMO_GYM_SOURCE = os.environ.get("NEMO_GYM_SOURCE")
PROMPT = "Describe snow. Do not use any commas."
TEXTS = ["Snow falls over the town", "snow, cold, white", "Soft white flakes", "snow, ice"]
REWARDS = [1.0, 0.0, 1.0, 0.0]
"""No comma, a comma, no comma, a comma."""


@dataclass(frozen=True, slots=True)
class Install:
    """What pip installs: `bare` without what it depends on, `needs` with it."""

    bare: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


INSTALLS = {
    "verl": Install(
        ("verl==0.9.1",),
        (
            "ray",
            "tensordict==0.10.0",
            "hydra-core",
            "codetiming",
            "orjson",
            "TransferQueue==0.1.11",
            "cachetools",
            "torchdata",
        ),
    ),
    "openrlhf": Install(("openrlhf==0.11.2",), ("pylatexenc",)),
    "slime": Install(needs=("pylatexenc",)),
    "verifiers": Install(needs=("verifiers==0.4.0",)),
    "inspect_ai": Install(needs=("inspect_ai==0.3.285", "openai")),
    "skyrl": Install(
        ("skyrl==0.3.0", "skyrl-gym==0.4.0"),
        ("loguru", "omegaconf", "ray", "torchdata", "jaxtyping"),
    ),
    "art": Install(
        ("openpipe-art==0.5.18",),
        ("polars", "setproctitle", "tblib", "nest-asyncio", "litellm<=1.82.0", "weave"),
    ),
    "tinker": Install(
        ("tinker-cookbook==0.6.1",),
        ("tinker==0.38.0", "chz", "blobfile", "termcolor", "tiktoken", "tml-renderers"),
    ),
    "nemo_gym": Install(
        needs=(
            "ray",
            "hydra-core",
            "omegaconf",
            "orjson",
            "itsdangerous",
            "yappi",
            "pydot",
            "wandb",
        )
    ),
    "areal": Install(
        ("areal==1.0.4",),
        (
            "ray",
            "hydra-core==1.4.0.dev1",
            "omegaconf==2.4.0.dev2",
            "colorlog",
            "flask",
            "torchdata",
            "lark",
            "numba",
            "orjson",
            "einops",
            "aiofiles",
        ),
    ),
    "ms_swift": Install(("ms-swift==4.6.0",), ("modelscope", "json_repair", "dacite")),
    "trl-1.13": Install(("trl==1.13.0",)),
    "trl-1.14": Install(("trl==1.14.2",)),
    "trl-1.15": Install(("trl==1.15.0",)),
}


def environment(trainer: str) -> Path:
    """Make the trainer's environment, if it is not there; return its Python."""
    python = VENVS / trainer / "bin" / "python"
    done = VENVS / trainer / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", VENVS / trainer], check=True)
        site = next((VENVS / trainer / "lib").iterdir()) / "site-packages"
        (site / "project.pth").write_text(sysconfig.get_path("purelib"))
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = INSTALLS[trainer]
        if wanted.bare:
            subprocess.run([*pip, "--no-deps", *wanted.bare], check=True)
        if wanted.needs:
            subprocess.run([*pip, *wanted.needs], check=True)
        done.touch()
    return python


@pytest.fixture
def run(
    serve: Callable[..., str], judge: ScriptedJudge, model_settings: dict[str, Any]
) -> Callable[..., Any]:
    """Return a function that runs a trainer's script beside a service and reads its facts.

    The judge finds every criterion met unless there is a comma, and does not answer for `silent`.
    """
    judge.script = lambda request, number: (
        well_behaved(request, number)
        if not offered(request)
        else 401
        if any("silent" in text for _, text in answered_texts(request))
        else verdicts(request, lambda _criterion, answer: "," not in answer)
    )
    url = serve(**model_settings)

    def run(trainer: str, script: str, *more_path: str) -> Any:
        python = environment(trainer)
        path = [SCRIPTS, ROOT / "client", ROOT / "tests", *more_path]
        finished = subprocess.run(
            [python, SCRIPTS / script, PROMPT, *TEXTS],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
            env=os.environ
            | {
                "MARKSCHEME_URL": url,
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-6000:]
        facts = json.loads(finished.stdout.splitlines()[-1])
        sys.stdout.write(f"{trainer}: {json.dumps(facts, indent=1)}\n")
        return facts

    return run


def inductions(judge: ScriptedJudge) -> int:
    return sum(not offered(request) for request in judge.requests)


def test_verl(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("verl", "verl_run.py")
    assert [each["reward_score"] for each in facts["manager"]] == REWARDS
    assert facts["manager"][1]["reward_extra_info"] == {"missed": 4.0}
    assert [each["reward_score"] for each in facts["validation"]] == REWARDS[:1]
    assert [each["reward_score"] for each in facts["unscored"][:3]] == REWARDS[:3]
    # verl leaves out what raises.
    assert facts["unscored"][3] == "RolloutUnscored: the rollout is unscored (misconfigured)"
    for epoch in facts["compute_score"]:
        assert [each["reward_score"] for each in epoch] == REWARDS
    assert facts["assembled"] == [1.0, 0.5, 0.25, 0.0]
    assert facts["ray"] == REWARDS
    assert facts["examples"] == ["MarkschemeRewardManager", "NaiveRewardManager"]
    assert inductions(judge) == 1


def test_verl_leaves_out_what_is_not_known_and_refills(run: Callable[..., Any]) -> None:
    facts = run("verl", "verl_refill.py")
    known, lost = sorted(REWARDS), sorted(REWARDS[:3])
    # Three of four are known: in the sync mode they are the group.
    assert facts["sync, one unknown"] == {
        "rewards": {"a-0": known, "a-1": lost},
        "refilled": [],
        "metrics": {},
    }
    assert facts["sync, none known, refill"] == {
        "rewards": {"b-0": known, "b-2": known},
        "refilled": [1],
        "metrics": {"training/rollout_failure/evicted_samples": 1.0},
    }
    assert facts["sync, none known"]["rewards"] == {"c-0": known}
    assert facts["sync, none known"]["refilled"] == []
    # In the async modes the whole group goes.
    assert facts["async, one unknown"]["rewards"] == {"d-0": known, "d-2": known}
    assert facts["async, one unknown"]["refilled"] == [1]


def test_openrlhf(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("openrlhf", "openrlhf_run.py")
    for epoch in facts["epochs"]:
        assert epoch == [[reward, reward, {"unscored": 0.0}] for reward in REWARDS]
    mean = pytest.approx(2 / 3)
    assert facts["unscored"][3] == [mean, mean, {"unscored": 1.0}]
    assert [reward for reward, *_ in facts["unscored"][:3]] == REWARDS[:3]
    # OpenRLHF's trainer then stops: it has no reward.
    assert facts["nothing known"] == [[None, None, {}]] * 2
    assert inductions(judge) == 1


@pytest.mark.skipif(SLIME_SOURCE is None, reason="SLIME_SOURCE names no checkout of slime")
def test_slime(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("slime", "slime_run.py", str(SLIME_SOURCE))
    assert facts["group"] == REWARDS
    assert facts["unscored"] == pytest.approx([1.0, 0.0, 1.0, 2 / 3])
    assert facts["removed"] == [False, False, False, True]
    assert facts["remote"] == REWARDS
    assert facts["remote, unscored"] == pytest.approx([1.0, 0.0, 1.0, 2 / 3])
    assert inductions(judge) == 1


def test_verifiers(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("verifiers", "verifiers_run.py")
    assert "the rollout is unscored (no_rubric)" in facts["no rubric"]
    assert [reward for reward, _ in facts["group"]] == REWARDS
    assert facts["group"][1][1] == {f"markscheme_judge/c{i}": 0.0 for i in range(1, 5)}
    assert [reward for reward, _ in facts["unscored"][:3]] == REWARDS[:3]
    assert "the rollout is unscored (misconfigured)" in facts["unscored"][3]
    assert inductions(judge) == 1


def test_inspect_ai(run: Callable[..., Any]) -> None:
    facts = run("inspect_ai", "inspect_ai_run.py")
    assert facts["status"] == "success"
    assert facts["scores"] == [1.0, 0.0, None]
    assert facts["explanations"] == ["", "It has no comma.", "unscored: misconfigured"]
    assert facts["mean"] == 0.5
    assert facts["counts"] == [2, 1]


def test_skyrl(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("skyrl", "skyrl_run.py")
    assert facts["group"] == [REWARDS, [1, 1, 1, 1]]
    # The mean of the known, and a loss mask of zeros.
    assert facts["unscored"] == [pytest.approx([1.0, 0.0, 1.0, 2 / 3]), [1, 1, 1, 0]]
    assert "no reward of group row is known: misconfigured" in facts["nothing known"]
    assert inductions(judge) == 1


def test_art(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("art", "art_run.py")
    [[row, group]] = facts["group"]
    # ART gathers trajectories in the order in which they end.
    assert (row, sorted(group)) == (0, [[0.0, 4], [0.0, 4], [1.0, 0], [1.0, 0]])
    # The unscored trajectory leaves its group, and the group with one known reward is dropped.
    [[row, group]] = facts["unscored"]
    assert (row, sorted(group)) == (0, [[0.0, 4], [0.0, 4], [1.0, 0]])
    assert inductions(judge) == 1


def test_tinker(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("tinker", "tinker_run.py")
    assert facts["group"] == [REWARDS, [0, 4, 0, 4]]
    assert facts["thinking"] == facts["group"], "what the model thinks is not scored"
    # The default strategy ends the run; one that catches the errors of groups leaves this one out.
    assert facts["unscored"] == "RolloutUnscored: the rollout is unscored (misconfigured)"
    assert facts["unscored, skipped"] is None
    assert inductions(judge) == 1


@pytest.mark.skipif(NEMO_GYM_SOURCE is None, reason="NEMO_GYM_SOURCE names no checkout of NeMo Gym")
def test_nemo_gym(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("nemo_gym", "nemo_gym_run.py", str(NEMO_GYM_SOURCE))
    for form in ("group", "text"):
        assert facts[form] == [[reward, None] for reward in REWARDS]
    assert facts["unscored"][:3] == facts["group"][:3]
    assert facts["unscored"][3] == [0.0, "judge_failed"], "a row of the failures, not a reward"
    assert inductions(judge) == 1


def test_areal(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("areal", "areal_run.py")
    assert facts["epochs"] == [REWARDS, REWARDS]
    assert facts["unscored"] is None, "AReaL rejects the group"
    assert inductions(judge) == 1


def test_ms_swift(run: Callable[..., Any], judge: ScriptedJudge) -> None:
    facts = run("ms_swift", "ms_swift_run.py")
    assert facts["epochs"] == [[REWARDS, [0.5, -0.5, 0.5, -0.5]]] * 2
    assert facts["unscored"].startswith("Unscored: 1 of 4 rollouts")
    assert inductions(judge) == 1


@pytest.mark.parametrize("minor", ["1.13", "1.14", "1.15"])
def test_trl(run: Callable[..., Any], minor: str) -> None:
    facts = run(f"trl-{minor}", "trl_run.py")
    assert facts["version"].startswith(f"{minor}.")
    for rewards in facts.keys() - {"version"}:
        assert facts[rewards]["advantages"] == pytest.approx([0.0] * 4)
        assert facts[rewards]["rubric/unscored_rate"] == 0.25
