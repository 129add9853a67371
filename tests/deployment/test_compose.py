"""Test the deployment files as far as possible without an engine.

`make compose-test` runs them for real.
"""

import json
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from markscheme_server import metrics
from markscheme_server.config import Settings, variables

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE_FILES = (
    "docker-compose.yml",
    "deploy/balancer.yml",
    "benchmarks/deployment/host-network.yml",
)
DOCKERFILES = ("Dockerfile.rubric", "Dockerfile.trainer")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
EXPLAINED = dict(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))


class Loader(yaml.SafeLoader):
    """YAML as Compose has it: ``!reset`` takes away what the file below it says."""


Loader.add_constructor("!reset", lambda loader, node: [])


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((ROOT / name).read_text("utf-8"), Loader)
    return loaded


SERVICES = compose()["services"]


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_a_compose_file_is_one_by_the_specification(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "compose.yml"
    plain.write_text(yaml.safe_dump(compose(name)))
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", plain],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_has_nothing_that_its_linter_minds(name: str) -> None:
    done = subprocess.run(
        [BIN / "hadolint", ROOT / name], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# syntax" not in (ROOT / name).read_text("utf-8"), (
        "it would ask a registry before anything is built"
    )


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_a_dockerfile_copies_is_there_and_reaches_the_engine(name: str) -> None:
    sent = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", (ROOT / name).read_text(), re.MULTILINE)
        for source in line.split()[:-1]
        if not source.startswith("wheels/")
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source.removeprefix("./").split("/")[0] in sent, source


def test_the_services_and_profiles_are_those_of_the_guide() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert profiles == {
        "postgres": [],
        "redis": [],
        "migrate": [],
        "trainer-key": [],
        "rubric": [],
        "trainer": ["gpu"],
        "demo": ["cpu-demo"],
        "llm": ["llm"],
        "prometheus": ["observability"],
        "grafana": ["observability"],
    }
    guide = (ROOT / "docs/deploy.md").read_text("utf-8")
    for name in SERVICES:
        assert f"| `{name}` |" in guide


def test_every_variable_is_explained_and_every_explained_one_is_used() -> None:
    used = {
        match[1]
        for name in COMPOSE_FILES
        for match in VARIABLE.finditer((ROOT / name).read_text("utf-8"))
    }
    passed_on = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    assert used - set(EXPLAINED) == set()
    assert set(EXPLAINED) - used - passed_on == {"COMPOSE_PROFILES"}


def test_the_defaults_are_those_that_the_example_shows() -> None:
    for match in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text("utf-8")):
        name, kind, text = match.groups()
        if kind == "-":
            assert EXPLAINED[name] == text.rpartition(":-")[2], (
                name
            )  # the innermost, where one stands in another


def test_what_must_be_filled_in_is_asked_for_with_a_sentence() -> None:
    asked = {
        match[1]: match[3]
        for match in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text("utf-8"))
        if match[2] == "?"
    }
    assert asked == {
        name: f"copy .env.example to .env and fill in {name}"
        for name in (
            "POSTGRES_PASSWORD",
            "POSTGRES_APP_PASSWORD",
            "REDIS_PASSWORD",
            "MARKSCHEME_API_KEY",
            "MARKSCHEME_KEY_PEPPER",
        )
    }
    for name in asked:
        assert re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE), (
            "the example must not come filled in"
        )


def test_every_setting_of_the_service_can_be_given_in_env() -> None:
    given = SERVICES["rubric"]["environment"]
    # The image's, a file, those of `migrate`; and fields of a judge that no teacher has a use for.
    others = re.compile(
        "MARKSCHEME_(HOME|CONFIG|MIGRATION_URL|MIGRATION_PASSWORD|TEACHER_"
        "(VIEW|STRUCTURED|RATIONALE|EVIDENCE|HARDENING|MAX_CRITERIA|MAX_RESPONSE_TOKENS))"
    )
    for name in variables():
        assert name in given or others.fullmatch(name), name


def test_secrets_stand_in_no_command_and_in_no_address() -> None:
    for name, service in SERVICES.items():
        words = json.dumps([service.get("command"), service.get("ports"), service.get("build")])
        assert not re.search(r"PASSWORD|_KEY|TOKEN|SECRET", words), name
        for variable, value in service.get("environment", {}).items():
            assert "URL" not in variable or "PASSWORD" not in str(value), (
                "a password may have what a URL may not"
            )


def test_only_what_is_meant_to_be_reached_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "rubric": ["${MARKSCHEME_PUBLISH:-127.0.0.1:8321}:8321"],
        "grafana": ["${GRAFANA_PUBLISH:-127.0.0.1:3000}:3000"],
    }


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_files_that_are_mounted_are_there(name: str) -> None:
    text = VARIABLE.sub(lambda match: match[3] or "", (ROOT / name).read_text("utf-8"))
    for service in yaml.load(text, Loader)["services"].values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert (ROOT / volume["source"]).is_file(), volume
                assert volume["bind"] == {"create_host_path": False}
            elif volume.startswith("."):
                assert (ROOT / volume.split(":")[0]).exists(), volume


def test_a_service_is_given_the_time_that_its_ending_takes() -> None:
    from markscheme_server.cli.server import CLOSING_S, IN_FLIGHT_S

    ending = Settings.model_fields["drain_delay_s"].default + IN_FLIGHT_S + CLOSING_S
    assert ending < int(SERVICES["rubric"]["stop_grace_period"].removesuffix("s"))
    for trainer in ("trainer", "demo"):
        assert SERVICES[trainer]["stop_grace_period"].endswith("m"), (
            "a step is finished and saved first"
        )
        assert SERVICES[trainer]["restart"].startswith("on-failure"), (
            "a finished run stays finished"
        )
        assert SERVICES[trainer]["depends_on"]["rubric"] == {"condition": "service_healthy"}


def test_the_image_asks_itself_whether_it_is_ready(service: str) -> None:
    """The health check of the image, run as it stands against a service."""
    text = (ROOT / "Dockerfile.rubric").read_text("utf-8")
    words = json.loads(
        "["
        + re.search(r"HEALTHCHECK .*?CMD \[(.*?)\]\n", text, re.DOTALL)[1].replace("\\\n", "")
        + "]"
    )  # type: ignore[index]

    def check(port: str) -> int:
        return subprocess.run(
            [sys.executable, *words[1:]],
            env={"MARKSCHEME_PORT": port},
            capture_output=True,
            timeout=30,
        ).returncode

    assert words[0] == "python"
    assert check(service.rpartition(":")[2]) == 0
    assert check("1") != 0


def locked(name: str) -> dict[str, str]:
    """Versions by package in one of the locks; each has a hash."""
    found = {}
    for entry in re.split(r"\n(?=[a-z0-9])", (ROOT / "lock" / name).read_text()):
        match = re.match(r"([a-z0-9.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", entry)
        assert match is not None, entry[:80]
        found[match[1]] = match[2]
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("service.txt", ("server", "otel")),
        ("trainer.txt", ("train", "demo")),
        ("vllm.txt", ("train", "vllm", "demo")),
        ("all.txt", ("server", "otel", "train", "demo", "dev")),
    ],
)
def test_a_lock_has_all_that_is_installed_from_it(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needs = [
        *project["dependencies"],
        *(need for extra in extras for need in project["optional-dependencies"][extra]),
    ]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", need)[0]).lower() for need in needs}  # type: ignore[index]
    assert len(names) > 10
    assert names - {"torch", "markscheme"} <= set(locked(name))
    assert "torch" not in locked(name)
    cuda = {package for package in locked(name) if package.startswith("nvidia-")}
    # vLLM runs on CUDA alone: its lock has NVIDIA's packages, among them those that PyTorch needs.
    assert ({p for p in locked("cuda.txt") if p.startswith("nvidia-")} <= cuda) == (
        name == "vllm.txt"
    )


def test_the_locks_agree_with_the_versions_that_were_chosen() -> None:
    chosen = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    older = {"fastapi", "numpy"}  # vLLM's bounds on them end below ours
    for name in (ROOT / "lock").glob("*.txt"):
        for package, version in locked(name.name).items():
            if name.name == "vllm.txt" and package in older:
                continue
            assert chosen.get(package, version) == version, package
    torch = re.search(
        r"^ARG TORCH_VERSION=(.*)$", (ROOT / "Dockerfile.trainer").read_text(), re.MULTILINE
    )
    assert torch is not None
    assert locked("torch.txt") == {"torch": torch[1]} == {"torch": chosen["torch"]}
    assert f"torch=={torch[1]}" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", ["Makefile", *DOCKERFILES])
def test_what_is_installed_from_an_index_has_a_hash(name: str) -> None:
    text = (
        (ROOT / name)
        .read_text()
        .replace("\\\n", " ")
        .replace("$(LOCKED)", "pip install --require-hashes")
    )
    installs = [
        line
        for line in re.split(r"&&|;|\n", text)
        if "pip" in line and re.search(r"\binstall\b.* -r ", line)
    ]
    assert installs
    assert all("--require-hashes" in line for line in installs)
    for word in re.findall(r"(lock/\w+\.txt)", text):
        assert (ROOT / word).is_file()


def test_the_image_for_gpus_has_vllm_and_the_demos_has_not() -> None:
    arguments = {name: SERVICES[name]["build"]["args"]["LOCK"] for name in ("trainer", "demo")}
    assert arguments == {"trainer": "${TRAINER_LOCK:-vllm}", "demo": "trainer"}
    text = (ROOT / "Dockerfile.trainer").read_text()
    assert text.count("ARG LOCK=vllm\n") == 2, "built by hand it is as Compose builds it"
    trained = yaml.safe_load((ROOT / "examples/train-gpu.yaml").read_text())
    assert (trained["use_vllm"], trained["vllm_mode"]) == (True, "colocate")


@pytest.mark.parametrize(
    ("lock", "device", "index", "refused"),
    [
        ("vllm", "cuda", "", None),
        ("trainer", "cuda", "https://index.example/cu129", None),
        ("trainer", "cpu", "", None),
        ("vllm", "cpu", "", "add --build-arg LOCK=trainer"),
        ("vllm", "cuda", "https://index.example/cu129", "add --build-arg LOCK=trainer"),
        ("all", "cuda", "", "LOCK is vllm or trainer, not all"),
    ],
)
def test_an_image_that_vllm_does_not_fit_is_not_built(
    lock: str, device: str, index: str, refused: str | None
) -> None:
    text = (ROOT / "Dockerfile.trainer").read_text()
    check = text[text.index('case "$LOCK') : text.index("esac") + len("esac")]
    done = subprocess.run(
        ["sh", "-c", check.replace("\\\n", "\n")],
        env={"LOCK": lock, "DEVICE": device, "TORCH_INDEX_URL": index},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == (0 if refused is None else 1)
    assert (refused or "") in done.stderr


def test_services_are_confined() -> None:
    for name, service in {**SERVICES, **compose("deploy/balancer.yml")["services"]}.items():
        if name == "rubric" and "image" not in service:
            continue
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["logging"]["options"]["max-file"]) * 10 <= 100, name
        assert service.get("read_only") or name in ("trainer", "demo", "llm"), name


def test_only_the_service_reaches_the_database() -> None:
    networks = {name: service.get("networks", ["default"]) for name, service in SERVICES.items()}
    assert {name for name, on in networks.items() if "data" in on} == {
        "postgres",
        "redis",
        "migrate",
        "trainer-key",
        "rubric",
    }
    assert {name for name, on in networks.items() if "default" in on and "data" in on} == {"rubric"}
    assert compose()["networks"]["data"] == {"internal": True}


def test_each_has_the_secrets_that_it_needs_and_no_others() -> None:
    def holders(secret: str) -> set[str]:
        return (
            {
                name
                for name, service in SERVICES.items()
                if any(
                    re.search(rf"\$\{{{secret}\b", str(value))
                    for value in service["environment"].values()
                )
            }
            if secret
            else set()
        )

    for service in SERVICES.values():
        service.setdefault("environment", {})
    assert holders("POSTGRES_PASSWORD") == {"postgres", "migrate"}
    assert holders("POSTGRES_APP_PASSWORD") == {"migrate", "trainer-key", "rubric"}
    assert holders("REDIS_PASSWORD") == {"redis", "rubric"}
    assert holders("MARKSCHEME_API_KEY") == {"rubric"}
    assert holders("MARKSCHEME_KEY_PEPPER") == {"trainer-key", "rubric"}
    key = json.dumps(SERVICES["trainer-key"]["command"])
    assert "--team trainer --scope score,induce " in key
    assert SERVICES["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_a_trainer_says_what_it_will_do_before_it_does(tmp_path: Path) -> None:
    for name in ("trainer", "demo"):
        script = (
            SERVICES[name]["entrypoint"][2]
            .replace("$$", "$")
            .replace("/keys/trainer", str(tmp_path / "key"))
        )
        (tmp_path / "key").write_text("mk_x\n")
        fake = tmp_path / "markscheme"
        fake.write_text('#!/bin/sh\necho "runs $* with $MARKSCHEME_API_KEY"\n')
        fake.chmod(0o755)
        done = subprocess.run(
            ["sh", "-ec", script, "markscheme", "train", "x y"],
            capture_output=True,
            text=True,
            env={
                "PATH": f"{tmp_path}:/usr/bin:/bin",
                "PLAN": "Trains",
                "MARKSCHEME_JUDGE_MODEL": "m",
            },
            timeout=30,
        )
        said = [
            "Trains; judge in .env: m; the service's log begins with the judges in use",
            "runs train x y with mk_x",
        ]
        assert done.stdout.splitlines() == said, done.stderr


def test_the_images_say_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for name in DOCKERFILES:
        assert f"ARG VERSION={version}\n" in (ROOT / name).read_text()


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/markscheme.json").read_text("utf-8"))
    known: dict[str, set[str]] = {}
    for family in metrics.REGISTRY.collect():
        collector = next(
            c for n, c in metrics.REGISTRY._names_to_collectors.items() if n == family.name
        )
        kinds = {
            "histogram": ("_bucket", "_count", "_sum"),
            "counter": ("_total",),
            "gauge": ("",),
        }[family.type]
        for ending in kinds:
            known[family.name + ending] = {
                *collector._labelnames,
                *(["le"] if ending == "_bucket" else []),
            }  # type: ignore[attr-defined]
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"\bmarkscheme_\w+", target["expr"])
            labels = {
                word
                for group in re.findall(r"by \(([^)]*)\)", target["expr"])
                for word in group.split(", ")
            }
            labels |= set(re.findall(r"[{,]\s*(\w+)=", target["expr"])) - {"job"}
            for name in names:
                assert labels <= known[name], target["expr"]
            asked |= set(names)
    # A figure that nobody looks at is no figure: all of them are on the dashboard.
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} == {
        re.sub(r"_(bucket|count|sum)$", "", name) for name in known
    }


@pytest.mark.parametrize("unit", ["markscheme.service", "markscheme-train@.service"])
def test_the_units_call_commands_that_there_are(unit: str) -> None:
    parsed = ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(ROOT / "deploy/systemd" / unit)
    program, command, *words = parsed["Service"]["ExecStart"].split()
    assert program == "/opt/markscheme/bin/markscheme"
    help_text = subprocess.run(
        [BIN / "markscheme", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"COLUMNS": "200", "PATH": ""},
    ).stdout
    options = [word for word in words if word.startswith("--")]
    assert options
    for option in options:
        assert option in help_text
