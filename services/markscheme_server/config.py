"""Settings: one frozen object, built where the process starts and passed down.

Every field is an environment variable `MARKSCHEME_<NAME>` or a line of the settings file: the one
that `--env-file` names, else `.env` in `MARKSCHEME_HOME`. The variables `MARKSCHEME_JUDGE_<FIELD>`
and `MARKSCHEME_TEACHER_<FIELD>` describe one judge and one teacher with the fields of
`JudgeOptions`; further judges are tables of `markscheme.toml` with the same fields.
docs/configuration.md lists every variable, and a test reads it there.

No file of the working directory is read: its author could choose where keys and prompts go.
"""

import os
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import make_url

from markscheme.names import did_you_mean
from markscheme_server.judge_settings import (
    BUILTIN,
    DEFAULT,
    OPENAI_HOST,
    SHADOW,
    TEACHER,
    JudgeRole,
    JudgeSettings,
    JudgeVariables,
    check_key,
    origin_of,
)

CONFIG_FILE = "markscheme.toml"
ENV_FILE = ".env"
HOME = Path("~/.markscheme")
TEACHER_TIMEOUT_S = 300.0
"""Default of the teacher's `timeout_s`: it writes a whole response."""

Share = Annotated[float, Field(ge=0, le=1)]

_PREFIX = "markscheme_"
_JUDGE_PREFIX, _TEACHER_PREFIX = "judge_", "teacher_"
_FALLBACKS = {
    "judge_base_url": "openai_base_url",
    "judge_model": "openai_model",
    "judge_api_key": "openai_api_key",
}
_ENDPOINTS = (("judge_base_url", "judge_api_key"), ("teacher_base_url", "teacher_api_key"))
"""The variables that name the URL and the key of each endpoint."""
_JUDGE_NAME = r"^[A-Za-z0-9][\w.-]{0,63}$"


def unused_keys(
    environment: Mapping[str, str | None], file: Mapping[str, str | None]
) -> tuple[list[str], list[str]]:
    """Name the API keys that are ignored, of the environment and of the settings file.

    A key is sent only to a URL that stands in the same place, so a key is ignored where the URL of
    its endpoint stands in the other place. Names are compared in lower case.
    """
    environment, file = _lower(environment), _lower(file)
    ignored: tuple[list[str], list[str]] = ([], [])
    for url, key in _ENDPOINTS:
        if any(environment.get(name) for name in _names(url)):
            ignored[1].extend(name.upper() for name in _names(key) if file.get(name))
        elif any(file.get(name) for name in _names(url)):
            ignored[0].extend(name.upper() for name in _names(key) if environment.get(name))
    return ignored


def _lower(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.lower(): value for name, value in variables.items()}


def _names(setting: str) -> list[str]:
    """List the variables of a setting, in lower case: its own, then the one it falls back to."""
    own = f"{_PREFIX}{setting}"
    return [own, _FALLBACKS[setting]] if setting in _FALLBACKS else [own]


class Settings(BaseSettings):
    """The settings of a deployment. Secrets have no default and never appear in a repr."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    home: Path = Field(default=HOME, description="Where the default SQLite file lives")
    config: Path | None = Field(
        default=None, description="The judges' file; default: markscheme.toml in home"
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; SQLite or PostgreSQL"
    )
    database_password: SecretStr | None = Field(
        default=None, description="Password of database_url's user"
    )
    migration_url: str | None = Field(
        default=None, description="PostgreSQL: the same database as the role that owns its tables"
    )
    migration_password: SecretStr | None = Field(
        default=None, description="Password of migration_url's user"
    )
    redis_url: str | None = Field(
        default=None, description="Where replicas share limits; may vanish at any time"
    )
    redis_password: SecretStr | None = Field(
        default=None, description="Password of the Redis at redis_url"
    )
    api_key: SecretStr | None = Field(
        default=None, description="The operator's key: every scope, as the team default"
    )
    require_api_key: bool = Field(
        default=False, description="Require a key even before one exists; always beyond loopback"
    )
    key_pepper: SecretStr | None = Field(
        default=None, description="Keys are stored under it; without it none can be created"
    )
    team_rpm: int | None = Field(
        default=None, ge=1, description="Requests a minute of each team without its own limit"
    )
    workers: int = Field(default=1, ge=1, description="Worker processes; set by serve --workers")

    judge: Literal["builtin", "openai"] | None = Field(
        default=None, description="Default: openai when a key or URL is set"
    )
    default_judge: JudgeVariables = Field(
        default=JudgeVariables(), description="The judge of MARKSCHEME_JUDGE_*"
    )
    teacher: JudgeVariables = Field(
        default=JudgeVariables(),
        description="The model that is distilled, of MARKSCHEME_TEACHER_*",
    )

    request_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds for one request with all its judge calls"
    )
    drain_delay_s: float = Field(
        default=2.0,
        ge=0,
        description="Seconds after SIGTERM in which requests are still accepted",
    )
    reuse_max_uses: int = Field(
        default=8, ge=1, description="if_fresh: groups of a run that one rubric may serve"
    )
    reuse_max_mean_reward: float = Field(
        default=0.9, description="if_fresh: mean reward above which a rubric is replaced"
    )
    shadow_share: Share = Field(
        default=0.0, description="Share of rollouts that the second judge scores too"
    )
    reask_share: Share = Field(
        default=0.0, description="Share of rollouts that the verifier is asked about again"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment before the file, each without the keys that `unused_keys` names.

        The value of `MARKSCHEME_<NAME>` may also stand in the file `MARKSCHEME_<NAME>_FILE`.
        """
        sources = [
            source
            for source in (env_settings, dotenv_settings)
            if isinstance(source, EnvSettingsSource)
        ]
        for source in sources:
            source.env_vars = _with_secret_files(source.env_vars)
        ignored = unused_keys(*(source.env_vars for source in sources))
        for source, names in zip(sources, ignored, strict=True):
            source.env_vars = {
                name: value for name, value in source.env_vars.items() if name.upper() not in names
            }
        tables = [_JudgeVariablesSource(settings_cls, source.env_vars) for source in sources]
        # The first source that sets a field wins.
        return init_settings, env_settings, tables[0], dotenv_settings, tables[1]

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Move `judge_<field>` and `teacher_<field>` into the tables that they belong to."""
        nested = dict(values)
        for table, prefix in (("default_judge", _JUDGE_PREFIX), ("teacher", _TEACHER_PREFIX)):
            fields = {name: nested.pop(name) for name in list(nested) if name.startswith(prefix)}
            if fields:
                nested[table] = {name.removeprefix(prefix): fields[name] for name in fields}
        return nested

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.key_pepper is not None and len(self.key_pepper.get_secret_value()) < 16:
            raise ValueError("MARKSCHEME_KEY_PEPPER must have at least 16 characters")
        if self.judge_kind == "openai" and not self.default_judge.model and not self.file:
            raise ValueError(
                "the openai judge needs a model: set MARKSCHEME_JUDGE_MODEL (or OPENAI_MODEL), "
                "or set MARKSCHEME_JUDGE=builtin to judge without a model"
            )
        if self.roles.get(TEACHER) == BUILTIN:
            raise ValueError("the builtin judge cannot be the teacher: it writes no responses")
        second = self.roles.get(SHADOW)
        if self.shadow_share and second is None:
            raise ValueError(
                "MARKSCHEME_SHADOW_SHARE needs a second judge: name one as shadow under [roles] in "
                f"{CONFIG_FILE}"
            )
        if second is not None and second in (BUILTIN, self.roles["verifier"]):
            raise ValueError(
                f"the role shadow names the judge {second!r}: the second judge must be another "
                "model than the verifier's"
            )
        for role, name in self.roles.items():
            if name != BUILTIN and name not in self.judges:
                raise ValueError(
                    f"the role {role} names the judge {name!r}, which does not exist: "
                    f"there are {', '.join([BUILTIN, *self.judges])}"
                    f"{did_you_mean(name, [BUILTIN, *self.judges])}"
                )
        return self

    @property
    def judge_kind(self) -> Literal["builtin", "openai"]:
        """The kind of the default judge: as set, else `openai` when a key or URL is set."""
        if self.judge is not None:
            return self.judge
        return "openai" if self.default_judge.api_key or self.default_judge.base_url else "builtin"

    @cached_property
    def file(self) -> Path | None:
        """The judges' file in use."""
        if self.config is not None:
            return self.config.expanduser()
        found = self.home.expanduser() / CONFIG_FILE
        return found if found.is_file() else None

    @cached_property
    def judges(self) -> dict[str, JudgeSettings]:
        """The model judges by name: those of the file, then those that variables describe."""
        judges = dict(_read_file(self.file).judges) if self.file else {}
        default = self.default_judge.judge() if self.judge_kind == "openai" else None
        if default is not None:
            judges.setdefault(DEFAULT, default)
        teacher = self.teacher.judge(
            timeout_s=TEACHER_TIMEOUT_S, teacher_max_tokens=self.teacher.max_tokens
        )
        if teacher is not None:
            judges.setdefault(TEACHER, teacher)
        return judges

    @cached_property
    def roles(self) -> dict[str, str]:
        """The judge of each role where a request names none. No teacher unless one is set."""
        stated: dict[JudgeRole, str] = _read_file(self.file).roles if self.file else {}
        usual = DEFAULT if DEFAULT in self.judges else BUILTIN
        # A file with one judge beside the second one, and no roles, means that judge.
        able = [name for name in self.judges if name != TEACHER]
        if len(able) > 1 and stated.get(SHADOW) in able:
            able.remove(stated[SHADOW])
        if usual == BUILTIN and self.judge != "builtin" and len(able) == 1:
            usual = able[0]
        roles = {"rubricator": usual, "verifier": usual}
        if TEACHER in self.judges:
            roles[TEACHER] = TEACHER
        return roles | {str(role): name for role, name in stated.items()}

    def key_of(self, name: str) -> SecretStr | None:
        """Return the key of a model judge, from the variable that its table names.

        Raises:
            ValueError: The variable is not set, or is OpenAI's and the endpoint is another one.
        """
        judge = self.judges[name]
        variable = judge.api_key_env
        if variable is None:
            return {DEFAULT: self.default_judge.api_key, TEACHER: self.teacher.api_key}.get(name)
        if variable.startswith("OPENAI_") and any(
            origin_of(url).split("/")[0] != OPENAI_HOST for url in judge.base_urls
        ):
            raise ValueError(
                f"the judge {name!r} would be sent {variable}, which is OpenAI's: give the key of "
                "its base_url a variable of its own, and name that in api_key_env"
            )
        value = os.environ.get(variable)
        if not value:
            raise ValueError(f"the judge {name!r} takes its key from {variable}, which is not set")
        try:
            return check_key(SecretStr(value))
        except ValueError as error:
            raise ValueError(f"{variable}: {error}") from error

    @property
    def sqlalchemy_url(self) -> str:
        """The database, with the async driver named."""
        return _complete_url(
            self.database_url or f"sqlite:///{self.home.expanduser().resolve() / 'markscheme.db'}",
            self.database_password,
        )

    @property
    def sqlalchemy_migration_url(self) -> str | None:
        """The same database as the role that owns its tables, where that is another role."""
        if self.migration_url is None:
            return None
        return _complete_url(self.migration_url, self.migration_password)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite, not PostgreSQL."""
        return self.sqlalchemy_url.startswith("sqlite")


def variables() -> list[str]:
    """List the names of all variables that are read, `MARKSCHEME_HOME` and so on."""
    own = [name for name in Settings.model_fields if name not in ("default_judge", "teacher")]
    return [f"{_PREFIX}{name}".upper() for name in (*own, *_judge_settings())]


def _judge_settings() -> list[str]:
    """List `judge_<field>` and `teacher_<field>`, without fields that belong to another role."""
    return [
        f"{prefix}{field}"
        for prefix, others in (
            (_JUDGE_PREFIX, (_TEACHER_PREFIX,)),
            (_TEACHER_PREFIX, ("rubricator_", "verifier_", _TEACHER_PREFIX)),
        )
        for field in JudgeVariables.model_fields
        if not field.startswith(others)
    ]


def variable_of(location: tuple[int | str, ...]) -> str:
    """Return the variable at fault, from the location in a validation error; else an empty text."""
    path = [str(part) for part in location]
    prefixes = {"default_judge": _JUDGE_PREFIX, "teacher": _TEACHER_PREFIX}
    if len(path) > 1 and path[0] in prefixes:
        return f"{_PREFIX}{prefixes[path[0]]}{path[1]}".upper()
    return f"{_PREFIX}{path[0]}".upper() if path and path[0] not in prefixes else ""


class _JudgeVariablesSource(PydanticBaseSettingsSource):
    """Reads `judge_<field>` and `teacher_<field>` from variables (names in lower case)."""

    def __init__(
        self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]
    ) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return nothing: the fields are read all at once, by `__call__`."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for setting in _judge_settings():
            values = (self._variables.get(name) for name in _names(setting))
            if value := next((value for value in values if value), None):
                found[setting] = value
        return found


def _with_secret_files(variables_: Mapping[str, str | None]) -> dict[str, str | None]:
    """Add the contents of the files that `…_file` variables name (names in lower case)."""
    found = dict(variables_)
    for name in map(str.lower, variables()):
        path = found.get(f"{name}_file")
        if path:
            try:
                found[name] = Path(path).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise ValueError(
                    f"cannot read {path}: {reason}; check {name.upper()}_FILE"
                ) from error
    return found


def _complete_url(url: str, password: SecretStr | None) -> str:
    """Add the async driver to a URL, and the password where one is set apart from it."""
    full = _with_driver(url)
    if password is None:
        return full
    return (
        make_url(full)
        .set(password=password.get_secret_value())
        .render_as_string(hide_password=False)
    )


def _with_driver(url: str) -> str:
    for plain, driver in (
        ("postgresql://", "postgresql+asyncpg://"),
        ("postgres://", "postgresql+asyncpg://"),
        ("sqlite://", "sqlite+aiosqlite://"),
    ):
        if url.startswith(plain):
            return driver + url.removeprefix(plain)
    return url


class _File(BaseModel):
    """`markscheme.toml`: `[judges.NAME]` tables and `[roles]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    judges: dict[Annotated[str, StringConstraints(pattern=_JUDGE_NAME)], JudgeSettings] = {}
    roles: dict[JudgeRole, str] = {}

    @model_validator(mode="after")
    def _check(self) -> "_File":
        if BUILTIN in self.judges:
            raise ValueError(f"the name {BUILTIN!r} is taken: it is the judge without a model")
        return self


def _read_file(path: Path) -> _File:
    """Read the judges' file.

    Raises:
        ValueError: The file cannot be read; the message names it and the place in it.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; check MARKSCHEME_CONFIG"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
