"""Test the doctor: each judge by name, and a training's cost through the installed trainer."""

import asyncio
import json
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from rich.console import Console

from fakes.judge import RUBRIC, ScriptedJudge, offered, text_of, verdicts
from fakes.service import running
from fakes.shell import command
from fakes.stores import PostgresServer
from markscheme import Client
from markscheme.plan import TrainingPlan
from markscheme_server.cli import doctor
from markscheme_server.cli.diagnosis import diagnose
from markscheme_server.config import Settings
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.store import Store

PLAN = {
    "steps": 10,
    "batches": 10,
    "groups": 20,
    "rollouts_per_group": 4,
    "prompts": 5,
    "prompt_characters": 80,
    "response_tokens": 64,
    "teacher_responses": 1,
    "teacher_characters": 90,
    "reuse": "always_new",
    "verify": "rollout",
}


@pytest.fixture
def configured(tmp_path: Path, judge: ScriptedJudge) -> Callable[..., Settings]:
    """Write settings with two judges: one answers, and the other's model does not exist."""

    def make(more: str = "") -> Settings:
        file = tmp_path / "markscheme.toml"
        file.write_text(
            f'[judges.good]\nbase_url = "{judge.url}"\nmodel = "g"\n'
            "price_input = 1\nprice_output = 2\n"
            f'[judges.bad]\nbase_url = "{judge.url}"\nmodel = "b"\n{more}\n'
            '[roles]\nrubricator = "good"\nverifier = "good"\n'
        )
        return Settings(_env_file=None, home=tmp_path, config=file)

    judge.script = lambda request, number: 404 if request["model"] == "b" else right(request)
    return make


def right(request: dict[str, Any]) -> str:
    """Answer each of the doctor's questions correctly.

    The reply follows the schema, meets c1, and is a valid rubric where one is requested.
    """
    form = request.get("response_format", {})
    schema = form.get("json_schema", {}).get("schema", {})
    if "word" in schema.get("properties", {}):
        return json.dumps({"word": schema["properties"]["word"]["enum"][0]})
    return (
        verdicts(request, lambda criterion, _: criterion == "c1")
        if offered(request)
        else json.dumps(RUBRIC)
    )


def examined(settings: Settings) -> tuple[bool, dict[str, float], str]:
    screen = StringIO()
    passed, seconds = asyncio.run(diagnose(settings, Console(file=screen, width=200)))
    return passed, seconds, screen.getvalue()


def test_each_judge_is_asked_and_named(
    configured: Callable[..., Settings], judge: ScriptedJudge
) -> None:
    passed, seconds, said = examined(configured())
    assert not passed
    assert list(seconds) == ["good"]
    assert (
        "ok  judge good (g; rubricator, verifier): structured output: json_schema: enforced" in said
    )
    assert "ok  judge good (g; rubricator, verifier): writes a rubric of 4 criteria" in said
    assert "FAILED  judge bad (b; when asked for by name):" in said
    assert "builtin" not in said
    judge.script = lambda request, number: right(request)
    assert examined(configured())[0]


def test_a_judge_that_errs_on_an_easy_question_fails(
    configured: Callable[..., Settings], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: verdicts(request) if offered(request) else right(request)
    passed, seconds, said = examined(configured())
    assert (passed, seconds) == (False, {})
    assert said.count("easy question wrong") == 2


def test_a_judge_that_writes_no_rubric_fails(
    configured: Callable[..., Settings], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: (
        "no" if '"category"' in text_of(request) else right(request)
    )
    passed, _, said = examined(configured())
    assert not passed
    assert (
        "FAILED  judge good (g; rubricator, verifier): asked for a rubric: "
        "the judge's reply cannot be used" in said
    )


@pytest.mark.parametrize(
    ("obeys", "said", "stored"),
    [
        ((), "json_schema: accepted but ignored; 'auto' asks for text", ("ignored", "text")),
        (
            ("json_object",),
            "json_schema: accepted but ignored; 'auto' asks for json_object",
            ("ignored", "json_object"),
        ),
    ],
)
def test_a_schema_that_is_ignored_is_found_out_and_remembered(
    obeys: tuple[str, ...], said: str, stored: tuple[str, str], tmp_path: Path, judge: ScriptedJudge
) -> None:
    def script(request: dict[str, Any], _number: int) -> str:
        if "weather" in text_of(request):
            form = request.get("response_format", {}).get("type")
            return '{"weather": "mild"}' if form in obeys else "It is mild and wet."
        return right(request)

    judge.script = script
    settings = Settings(_env_file=None, home=tmp_path, judge_base_url=judge.url, judge_model="m")
    migrated(settings)
    assert said in examined(settings)[2]
    assert asyncio.run(known_of(settings)) == stored
    judge.requests.clear()
    with running(settings) as url, Client(url) as client:
        rubric = client.create_rubric("p", [{"text": "It is short.", "points": 1}])
        client.score(
            [
                {
                    "id": "g",
                    "prompt": "p",
                    "rubric_id": rubric.id,
                    "rollouts": [{"id": "r", "text": "a"}],
                }
            ]
        )
    assert [r.get("response_format", {}).get("type", "text") for r in judge.requests] == [stored[1]]


def migrated(settings: Settings) -> None:
    asyncio.run(prepare(settings.sqlalchemy_url))


async def known_of(settings: Settings) -> tuple[str, str] | None:
    store = Store(settings.sqlalchemy_url)
    try:
        probe = await store.probes.find(settings.judges["default"].origin, "m")
        return None if probe is None else (probe.json_schema, probe.form)
    finally:
        await store.close()


def test_the_endpoints_own_words_are_shown(tmp_path: Path, judge: ScriptedJudge) -> None:
    judge.script = lambda request, number: 401
    _, _, said = examined(
        Settings(_env_file=None, home=tmp_path, judge_base_url=judge.url, judge_model="m")
    )
    assert "the judge refused the key" in said
    assert "it said: scripted" in said


def test_a_model_that_the_endpoint_does_not_list_is_warned_of(
    configured: Callable[..., Settings], judge: ScriptedJudge
) -> None:
    judge.models = ["g-large", "other"]
    _, _, said = examined(configured())
    assert "warn  judge good (g; rubricator, verifier)" in said
    assert "does not list this model; it lists g-large" in said
    judge.models = ["g", "b"]
    assert "does not list" not in examined(configured())[2]


def test_a_url_without_a_scheme_is_said() -> None:
    with pytest.raises(ValidationError, match="no scheme: write 'http://127.0.0.1:1/v1'"):
        Settings(_env_file=None, judge_base_url="127.0.0.1:1/v1", judge_model="m")


def test_a_missing_key_does_not_hide_the_other_judges(configured: Callable[..., Settings]) -> None:
    passed, seconds, said = examined(configured('api_key_env = "NOT_SET_ANYWHERE"'))
    assert not passed
    assert list(seconds) == ["good"]
    assert "NOT_SET_ANYWHERE" in said


def test_without_a_model_the_rules_are_checked(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    migrated(settings)
    passed, seconds, said = examined(settings)
    assert passed
    assert list(seconds) == ["builtin"]
    assert "rules, not a language model" in said
    assert f"ok  database: {tmp_path / 'markscheme.db'} answers" in said
    assert "SQLite has no row-level security" in said


def test_a_database_that_is_not_there_yet_is_said_and_not_made(
    configured: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = configured().model_copy(update={"home": tmp_path / "new"})
    _, seconds, said = examined(settings)
    file = tmp_path / "new" / "markscheme.db"
    assert f"warn  database: there is none yet at {file}; 'markscheme migrate' creates it" in said
    assert not file.exists()
    # The judges are asked all the same; what was found out has no place to be stored.
    assert list(seconds) == ["good"]
    assert "not stored for the service, as there is no database" in said


def test_a_database_without_tables_is_said_and_not_filled(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = postgres.create("doctor_without_tables")
    passed, _, said = examined(Settings(_env_file=None, home=tmp_path, database_url=url))
    assert passed
    assert "doctor_without_tables answers, and has no tables of Markscheme" in said
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert postgres.query(tables, database="doctor_without_tables") == []


@pytest.mark.parametrize(
    ("superuser", "said"),
    [
        (False, "ok  teams: row-level security is enforced"),
        (True, "warn  teams: row-level security is not enforced"),
    ],
)
def test_it_says_whether_teams_have_a_second_wall(
    superuser: bool, said: str, tmp_path: Path, new_postgres: Callable[..., str]
) -> None:
    url = sa.make_url(new_postgres())
    if superuser:
        url = url.set(username="postgres")
    passed, _, shown = examined(
        Settings(_env_file=None, home=tmp_path, database_url=url.render_as_string(False))
    )
    assert passed
    assert said in shown
    assert ("MARKSCHEME_MIGRATION_URL" in shown) == superuser


def test_a_database_that_does_not_answer_does_not_hide_the_judges(tmp_path: Path) -> None:
    url = "postgresql://u:planted@127.0.0.1:1/x"
    passed, seconds, said = examined(Settings(_env_file=None, home=tmp_path, database_url=url))
    assert (passed, list(seconds)) == (False, ["builtin"])
    assert "FAILED  database: postgresql://u:***@127.0.0.1:1/x does not answer" in said
    assert "check MARKSCHEME_DATABASE_URL" in said
    assert "planted" not in said


def test_what_is_found_out_where_there_are_no_tables_is_not_stored_and_said(
    tmp_path: Path, judge: ScriptedJudge
) -> None:
    (tmp_path / "markscheme.db").touch()
    judge.script = lambda request, number: right(request)
    settings = Settings(_env_file=None, home=tmp_path, judge_base_url=judge.url, judge_model="m")
    passed, _, said = examined(settings)
    assert passed
    assert "has no tables of Markscheme; 'markscheme migrate' creates it" in said
    assert (
        "could not be stored for the service (OperationalError); run 'markscheme migrate'" in said
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Blue.", "ok  judge teacher (t; teacher): responds in"),
        (401, "FAILED  judge teacher (t; teacher): the judge refused the key"),
    ],
)
def test_a_teacher_is_only_asked_to_respond(
    answer: str | int, said: str, tmp_path: Path, judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: answer
    settings = Settings(
        _env_file=None, home=tmp_path, teacher_base_url=judge.url, teacher_model="t"
    )
    passed, seconds, shown = examined(settings)
    assert passed == (answer == "Blue.")
    assert ("teacher" in seconds) == passed
    assert said in shown
    assert [text_of(request) for request in judge.requests] == ["Name a primary colour."]


def test_a_judge_that_fails_at_a_verdict_is_not_asked_for_a_rubric(
    configured: Callable[..., Settings], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: 401 if offered(request) else right(request)
    passed, seconds, said = examined(configured())
    assert (passed, seconds) == (False, {})
    assert "FAILED  judge good (g; rubricator, verifier): the judge refused the key" in said
    assert "writes a rubric" not in said


def test_a_form_of_output_that_is_set_is_not_asked_about(
    tmp_path: Path, judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: right(request)
    passed, _, said = examined(
        Settings(
            _env_file=None,
            home=tmp_path,
            judge_base_url=judge.url,
            judge_model="m",
            judge_structured="text",
        )
    )
    assert passed
    assert "structured output: text, as set" in said
    assert len(judge.requests) == 2  # a verdict and a rubric


def refused(parameter: str, message: str) -> tuple[int, dict[str, Any]]:
    error = {"message": message, "type": "invalid_request_error", "param": parameter, "code": None}
    return 400, {"error": error}


def is_long(request: dict[str, Any]) -> bool:
    return max(request.get("max_tokens", 0), request.get("max_completion_tokens", 0)) > 100


@pytest.mark.parametrize(
    ("refuses", "answer", "learned"),
    [
        (
            lambda request: "temperature" in request,
            refused("temperature", "Unsupported value: 'temperature' does not support 0"),
            "temperature is not sent",
        ),
        (
            lambda request: "max_tokens" in request,
            refused("max_tokens", "Unsupported parameter: use 'max_completion_tokens' instead."),
            "max_completion_tokens is sent in place of max_tokens",
        ),
        (
            is_long,
            refused(
                "max_tokens", "max_tokens is too large: this model supports at most 100 tokens"
            ),
            "a reply may have 100 tokens",
        ),
        (
            lambda request: (
                request.get("response_format", {}).get("type") == "json_schema"
                and "weather" not in text_of(request)
            ),
            refused("response_format", "response_format json_schema is not supported"),
            "structured output steps down to json_object",
        ),
    ],
    ids=["a parameter", "a name", "a length", "a form"],
)
def test_what_an_endpoint_refuses_is_said(
    refuses: Callable[[dict[str, Any]], bool],
    answer: tuple[int, dict[str, Any]],
    learned: str,
    configured: Callable[..., Settings],
    judge: ScriptedJudge,
) -> None:
    judge.script = lambda request, number: answer if refuses(request) else right(request)
    said = examined(configured())[2]
    place = judge.url.removeprefix("http://")
    assert (
        f"warn  judge good (g; rubricator, verifier): learned from refusals of {place}: {learned}\n"
        in said
    )


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a trainer that plans `PLAN` and refuses every override."""
    script = (
        f"import sys\nif len(sys.argv) > 4: sys.exit('unknown key')\nprint({json.dumps(PLAN)!r})\n"
    )
    monkeypatch.setattr(doctor, "TRAIN", (sys.executable, "-c", script))


def estimated(settings: Settings, *overrides: str, **seconds: float) -> tuple[bool, str]:
    screen = StringIO()
    done = doctor.estimate_training(
        Path("t.yaml"), overrides, settings, seconds, Console(file=screen, width=200)
    )
    return done, screen.getvalue()


@pytest.mark.usefixtures("trainer")
def test_the_estimate_shows_calls_money_time_and_what_it_assumes(
    configured: Callable[..., Settings],
) -> None:
    done, said = estimated(configured(), good=0.5)
    assert done
    assert (
        "10 steps, 20 groups of 4 = 80 rollouts, over 5 prompts; reuse always_new, verify rollout"
        in said
    )
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert rows["rubricator"][1:3] == ["good", "20"]
    assert rows["verifier"][1:3] == ["good", "80"]
    assert rows["both"][1] == "100"
    assert float(rows["both"][-1]) == pytest.approx(
        float(rows["rubricator"][-1]) + float(rows["verifier"][-1]), abs=0.011
    )
    assert "good: at least 0 min at 32 at a time, 0.50 s each" in said
    for stated in (
        "prompts of 80 characters",
        "64 tokens",
        "8 criteria",
        "each time a prompt is visited",
        "no retries",
    ):
        assert stated in said


@pytest.mark.parametrize(("override", "status"), [((), 0), (("oops=1",), 1)])
@pytest.mark.usefixtures("trainer")
def test_the_command_ends_with_the_estimate_and_fails_where_there_is_none(
    override: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    done = command(
        "doctor", "--train", "t.yaml", *override, directory=tmp_path, settings={"home": tmp_path}
    )
    assert done.returncode == status
    assert "judge builtin (rubricator, verifier): answers in" in done.stdout
    said = "FAILED  t.yaml: unknown key" if status else "t.yaml: 10 steps, 20 groups of 4"
    assert said in done.stdout


def test_the_estimate_names_evaluations_and_what_no_reward_waits_for(
    configured: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = TrainingPlan(**PLAN, evaluation_groups=5, evaluation_rollouts=20)
    monkeypatch.setattr(doctor, "read_plan", lambda config, overrides: plan)
    settings = configured().model_copy(update={"reask_share": 0.25})
    done, said = estimated(settings)
    assert done
    assert "evaluations: 20 rollouts more, without new rubrics" in said
    (asked_again,) = [line.split() for line in said.splitlines() if "asked again" in line]
    assert asked_again[2:4] == ["good", "25"]
    assert "second judge and re-asks are paid apart" in said


def test_a_plan_of_another_version_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TRAIN", (sys.executable, "-c", "print('{\"steps\": 10}')"))
    assert estimated(Settings(_env_file=None, home=tmp_path)) == (
        False,
        "FAILED  t.yaml: the trainer's plan cannot be read: is it of the same version?\n",
    )


@pytest.mark.usefixtures("trainer")
def test_prices_that_are_not_set_are_asked_for(tmp_path: Path, judge: ScriptedJudge) -> None:
    done, said = estimated(
        Settings(_env_file=None, home=tmp_path, judge_base_url=judge.url, judge_model="m")
    )
    assert done
    assert "MARKSCHEME_JUDGE_PRICE_INPUT" in said
    assert "?" in said


@pytest.mark.usefixtures("trainer")
def test_rules_have_no_price(tmp_path: Path) -> None:
    done, said = estimated(Settings(_env_file=None, home=tmp_path))
    assert done
    assert "nothing to pay" in said


@pytest.mark.usefixtures("trainer")
def test_a_configuration_that_cannot_be_read_is_a_failed_check(tmp_path: Path) -> None:
    assert estimated(Settings(_env_file=None, home=tmp_path), "oops=1") == (
        False,
        "FAILED  t.yaml: unknown key\n",
    )


def test_without_a_trainer_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys; sys.modules['markscheme_train'] = None; " + doctor.TRAIN[2]
    monkeypatch.setattr(doctor, "TRAIN", (sys.executable, "-c", script, "train"))
    done, said = estimated(Settings(_env_file=None, home=tmp_path))
    assert not done
    assert "pip install 'markscheme[train]'" in said
