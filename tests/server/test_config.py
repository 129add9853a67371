"""Test settings: the judges, the roles that they play, and helpful refusals."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fakes.shell import command
from markscheme_server.config import Settings

FILE = """
[judges.fast]
base_url = ["http://a/v1", "http://b/v1"]
model = "small"
revision = "7"
concurrency = 128

[judges.strong]
model = "large"
api_key_env = "STRONG_KEY"
price_input = 1.25

[roles]
rubricator = "strong"
verifier = "fast"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "judges.toml"
    path.write_text(text)
    return path


def settings(**fields: object) -> Settings:
    return Settings(_env_file=None, **fields)  # type: ignore[call-arg, arg-type]


def test_without_anything_the_rules_judge() -> None:
    bare = settings()
    assert bare.judges == {}
    assert bare.roles == {"rubricator": "builtin", "verifier": "builtin"}


def test_the_variables_describe_the_default_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:secret@judge:8000/v1?x=1")
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("MARKSCHEME_JUDGE_RPM", "90")
    found = settings()
    assert found.roles == {"rubricator": "default", "verifier": "default"}
    assert found.judges["default"].rpm == 90
    assert found.judges["default"].origin == "judge:8000/v1"


def test_a_second_judge_is_named_in_the_file(tmp_path: Path) -> None:
    two = '[judges.a]\nmodel = "m"\n[judges.b]\nmodel = "n"\n[roles]\nshadow = "b"\n'
    made = settings(config=written(tmp_path, two), shadow_share=0.05)
    assert made.roles == {"rubricator": "a", "verifier": "a", "shadow": "b"}
    with pytest.raises(ValidationError, match="SHADOW_SHARE needs a second judge"):
        settings(shadow_share=0.05)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        settings(reask_share=5)


def test_the_file_names_judges_and_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONG_KEY", "k-strong")
    found = settings(config=written(tmp_path, FILE))
    assert list(found.judges) == ["fast", "strong"]
    assert found.roles == {"rubricator": "strong", "verifier": "fast"}
    assert found.judges["fast"].base_urls == ("http://a/v1", "http://b/v1")
    key = found.key_of("strong")
    assert key is not None
    assert key.get_secret_value() == "k-strong"
    assert "k-strong" not in repr(found)
    assert found.key_of("fast") is None


def test_a_lone_judge_of_the_file_plays_both_roles(tmp_path: Path) -> None:
    assert set(
        settings(config=written(tmp_path, '[judges.one]\nmodel = "m"\n')).roles.values()
    ) == {"one"}


def test_a_key_that_is_not_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'strong' takes its key from STRONG_KEY"):
        settings(config=written(tmp_path, FILE)).key_of("strong")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[judges.x]\nmodel = "m"\nbase_url = ["http://a", "http://b"]\n', "need a revision"),
        ('[judges.builtin]\nmodel = "m"\n', "is taken"),
        ('[judges.x]\nmodel = "m"\nspeed = 9\n', "judges.x.speed"),
        ('[judges.x]\nmodel = "m"\n[roles]\nverifier = "y"\n', "names the judge 'y'"),
        ('[judges.x]\nmodel = "m"\n[roles]\nshadow = "x"\n', "another model"),
        ('[judges.x]\nmodel = "m"\n[roles]\nshadow = "builtin"\n', "another model"),
        ('[judges."a b"]\nmodel = "m"\n', "a b"),
        ('[roles]\ncook = "x"\n', "roles.cook"),
        ("[judges\n", "is not TOML"),
        ("x = " + "[" * 5000, "is nested too deeply"),
        ('[judges.x]\nmodel = "m"\ntimeout_s = inf\n', "finite number"),
        ('[judges.x]\nmodel = "m"\ntemperature = nan\n', "finite number"),
        ('[judges.x]\nmodel = "m"\nextra_body = {top_p = nan}\n', "every number must be finite"),
        ('[judges.x]\nmodel = "m"\nextra_body = {day = 2026-01-01}\n', "a date is not JSON"),
        ('[judges.x]\nmodel = "m"\nextra_headers = {"X Y" = "a"}\n', "no header can hold"),
        ('[judges.x]\nmodel = "m"\nextra_headers = {X = "é"}\n', "no header can hold"),
        ('[judges.x]\nmodel = "m"\nbase_url = "http://h:99999/v1"\n', "is no address"),
        ('[judges.x]\nmodel = "m"\nbase_url = "http://[::1"\n', "is no address"),
        ('[judges.x]\nmodel = "m"\nbase_url = "https://"\n', "has no host"),
        ('[judges.x]\nmodel = "m"\nbase_url = "http://a b"\n', "holds white space"),
        ('[judges.x]\nmodel = "m"\nconcurrency = 0\n', "concurrency"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(config=written(tmp_path, text))


def test_a_file_of_another_encoding_is_named_and_a_mark_is_none_of_its_text(
    tmp_path: Path,
) -> None:
    file = tmp_path / "markscheme.toml"
    file.write_bytes(b'[judges.x]\nmodel = "\xe9"\n')
    with pytest.raises(ValidationError, match=r"markscheme\.toml is not UTF-8"):
        settings(config=file)
    file.write_bytes(b'\xef\xbb\xbf[judges.x]\nmodel = "m"\n')
    assert settings(config=file).judges["x"].model == "m"


def test_a_key_is_sent_without_the_white_space_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, '[judges.x]\nmodel = "m"\napi_key_env = "KEY"\n')
    monkeypatch.setenv("KEY", " sk-1\n")
    key = settings(config=file).key_of("x")
    assert key is not None
    assert key.get_secret_value() == "sk-1"
    for bad in ("sk-é", "sk\n1", "sk\x7f"):
        monkeypatch.setenv("KEY", bad)
        with pytest.raises(ValueError, match="KEY: a key is of printable ASCII"):
            settings(config=file).key_of("x")
        monkeypatch.setenv("MARKSCHEME_JUDGE_API_KEY", bad)
        with pytest.raises(ValidationError, match="a key is of printable ASCII"):
            settings()
        monkeypatch.delenv("MARKSCHEME_JUDGE_API_KEY")


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot read .*MARKSCHEME_CONFIG"):
        settings(config=tmp_path / "absent.toml")


def test_the_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Path(__file__).parents[2] / "examples" / "markscheme.toml"
    made = settings(config=example)
    assert {"fast", "strong", "openai", "azure", "anthropic", "gemini", "vllm", "ollama"} <= set(
        made.judges
    )
    assert made.roles["verifier"] == "fast"
    assert made.judges["strong"].temperature_of("verifier") is None
    monkeypatch.setenv("STRONG_JUDGE_KEY", "k")
    assert made.key_of("strong") is not None


def test_empty_variables_are_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARKSCHEME_JUDGE", "")
    (tmp_path / ".env").write_text(
        "MARKSCHEME_JUDGE_BASE_URL=\nMARKSCHEME_DATABASE_URL=\nMARKSCHEME_API_KEY=\n"
    )
    found = Settings(_env_file=tmp_path / ".env")  # type: ignore[call-arg]
    assert (found.default_judge.base_url, found.database_url, found.api_key, found.judge_kind) == (
        None,
        None,
        None,
        "builtin",
    )


@pytest.mark.parametrize("price", ["inf", "nan", "-inf", "1e400", "1e7", "-1"])
@pytest.mark.parametrize("name", ["price_input", "price_output", "price_cached"])
def test_a_price_is_a_finite_number_of_dollars(
    name: str, price: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MARKSCHEME_JUDGE_{name.upper()}", price)
    with pytest.raises(
        ValidationError,
        match=f"(?is){name}.*(finite number|greater than or equal|less than or equal)",
    ):
        settings()
    monkeypatch.delenv(f"MARKSCHEME_JUDGE_{name.upper()}")
    stated = "inf" if price == "1e400" else price
    with pytest.raises(
        ValueError, match=f"{name}: .*(finite number|greater than or equal|less than or equal)"
    ):
        settings(config=written(tmp_path, f'[judges.x]\nmodel = "m"\n{name} = {stated}\n')).judges  # noqa: B018


def test_a_secret_is_read_from_the_file_that_its_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("sk-of-a-file\n")
    monkeypatch.setenv("MARKSCHEME_JUDGE_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("MARKSCHEME_JUDGE_MODEL", "m")
    key = settings().key_of("default")
    assert key is not None
    assert key.get_secret_value() == "sk-of-a-file"


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "No such file or directory"), ("latin", "it is not UTF-8")]
)
def test_a_secret_file_that_cannot_be_read_is_named_with_its_variable(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    file = tmp_path / name
    done = command("teams", "list", directory=tmp_path, settings={"key_pepper_file": file})
    assert (done.returncode, done.stdout) == (1, "")
    said = f"cannot read {file}: {reason}; check MARKSCHEME_KEY_PEPPER_FILE"
    assert done.stderr.splitlines() == [said]


@pytest.mark.parametrize(
    ("stated", "used"),
    [
        ("postgresql://u@db/m", "postgresql+asyncpg://u:p%40ss@db/m"),
        ("postgresql+asyncpg://u@db/m", "postgresql+asyncpg://u:p%40ss@db/m"),
    ],
)
def test_the_password_of_the_database_may_be_set_apart_from_its_url(stated: str, used: str) -> None:
    found = settings(database_url=stated, database_password="p@ss")
    assert found.sqlalchemy_url == used


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ('{"X-Tenant": "red"', "MARKSCHEME_JUDGE_EXTRA_HEADERS: this is not JSON: "),
        (
            '{"authorization": "Bearer x"}',
            "extra_headers must not hold Authorization: the key goes into api_key_env",
        ),
    ],
)
def test_headers_of_a_variable_that_cannot_be_sent_are_refused(
    headers: str, words: str, tmp_path: Path
) -> None:
    variables = {"home": tmp_path, "judge_model": "m", "judge_extra_headers": headers}
    done = command("teams", "list", directory=tmp_path, settings=variables)
    assert done.returncode == 1
    assert words in done.stderr


def test_headers_of_a_variable_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKSCHEME_JUDGE_BASE_URL", "http://judge/v1")
    monkeypatch.setenv("MARKSCHEME_JUDGE_MODEL", "m")
    monkeypatch.setenv("MARKSCHEME_JUDGE_EXTRA_HEADERS", '{"X-Tenant": "red"}')
    assert settings().judges["default"].extra_headers == {"X-Tenant": "red"}
