"""Settings: one frozen object, built where the process starts and passed down.

Every field is an environment variable ``MARKSCHEME_<NAME>`` or a line of the settings file: the one that
``--env-file`` names, else ``.env`` in ``MARKSCHEME_HOME``. The README's table names each of them; a test reads it
there. Judges beyond a single one are tables of ``markscheme.toml`` in ``MARKSCHEME_HOME``, or of
``MARKSCHEME_CONFIG``. What lies in the working directory is never read: whoever wrote it would choose where keys and
prompts are sent.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import make_url

from markscheme_server.domain.usage import NANO

StructuredOutput = Literal["auto", "json_schema", "json_object", "text"]
Temperature = Annotated[float, Field(ge=0)] | Literal["default"] | None
"""``default``: not sent, the endpoint's own. ``None``: not set."""
Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None
"""USD per million tokens; a dollar a token at most."""
Rationale = Literal["off", "short"]
VerdictReuse = Literal["per_criterion", "exact_set"]
BUILTIN = "builtin"
"""The name of the judge that is always there: rules, no model."""
DEFAULT = "default"
"""The name of the judge that the ``MARKSCHEME_JUDGE_*`` variables describe."""
TEACHER = "teacher"
"""The role of the model that is distilled, and the name of the one that ``MARKSCHEME_TEACHER_*`` describe."""
CONFIG_FILE = "markscheme.toml"
ENV_FILE = ".env"
HOME = Path("~/.markscheme")
OPENAI_HOST = "api.openai.com"
TEACHER_TIMEOUT_S = 300.0
"""A teacher writes a whole response."""
Role = Literal["rubricator", "verifier", "teacher"]
_TEMPERATURES: Mapping[Role, float] = {"rubricator": 0.7, "verifier": 0.0, "teacher": 1.0}
_OURS = frozenset(
    {
        "model",
        "messages",
        "stream",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "response_format",
        "reasoning_effort",
        "seed",
    }
)
_OURS_ADVICE = "they have settings of their own, or are the service's to set"
_NAME = r"^[A-Za-z0-9][\w.-]{0,63}$"


_ENDPOINTS = (
    (
        ("MARKSCHEME_JUDGE_BASE_URL", "OPENAI_BASE_URL"),
        ("MARKSCHEME_JUDGE_API_KEY", "OPENAI_API_KEY"),
    ),
    (("MARKSCHEME_TEACHER_BASE_URL",), ("MARKSCHEME_TEACHER_API_KEY",)),
)
"""Names of the URL and of the key of each endpoint that variables describe."""


def withheld(
    environment: Mapping[str, str | None], file: Mapping[str, str | None]
) -> tuple[list[str], list[str]]:
    """The keys that are not used, of the environment and of the settings file: those of an endpoint whose URL is
    stated in the other one. A key goes only to a URL that was written beside it."""
    from_environment: list[str] = []
    from_file: list[str] = []
    for urls, keys in _ENDPOINTS:
        if any(environment.get(name) for name in urls):
            from_file += [name for name in keys if file.get(name)]
        elif any(file.get(name) for name in urls):
            from_environment += [name for name in keys if environment.get(name)]
    return from_environment, from_file


def _with_secrets(
    variables: Mapping[str, str | None], fields: Iterable[str]
) -> Mapping[str, str | None]:
    """Variables (in lower case, as pydantic has them) with the contents of the files that ``…_file`` ones name."""
    found = dict(variables)
    for name in (f"markscheme_{field}" for field in fields):
        path = found.get(f"{name}_file")
        if path:
            try:
                found[name] = Path(path).read_text("utf-8").strip()
            except OSError as error:
                raise ValueError(
                    f"cannot read {path}: {error.strerror}; check {name.upper()}_FILE"
                ) from error
    return found


def _env(name: str, *fallbacks: str) -> AliasChoices:
    return AliasChoices(f"MARKSCHEME_{name}", *fallbacks)


class JudgeSettings(BaseModel):
    """One named judge: a model behind one or several OpenAI-compatible endpoints. ``[judges.NAME]`` in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str | tuple[str, ...] | None = Field(
        default=None, description="One endpoint, or several that serve the very same model"
    )
    model: str = Field(min_length=1)
    revision: str | None = Field(
        default=None, description="Part of the identity; default: the URL's host and path"
    )
    api_key_env: str | None = Field(
        default=None, description="The environment variable that holds the key"
    )
    structured: StructuredOutput = "auto"
    temperature: Temperature = Field(
        default=None, description="Of all roles that have none of their own"
    )
    rubricator_temperature: Temperature = None
    verifier_temperature: Temperature = None
    teacher_temperature: Temperature = None
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest reply, thinking included; default: "
        "computed from the number of criteria",
    )
    teacher_max_tokens: int | None = Field(
        default=None, ge=1, description="Longest response that a teacher may give; default: 8192"
    )
    reasoning_effort: str | None = Field(
        default=None,
        pattern=r"^[a-z]{1,20}$",
        description="Sent as it is: minimal, low, medium, high, …",
    )
    seed: int | None = Field(default=None, description="Sent as it is")
    extra_body: dict[str, Any] = Field(default={}, description="More fields of the request's body")
    extra_headers: dict[str, str] = Field(default={}, description="More headers of the request")
    rationale: Rationale = Field(
        default="off", description="short: a sentence with each verdict, said before it"
    )
    concurrency: int = Field(
        default=32, ge=1, description="Calls in flight, over the whole deployment"
    )
    rpm: int | None = Field(
        default=None, ge=1, description="Calls a minute, over the whole deployment"
    )
    tpm: int | None = Field(
        default=None, ge=1, description="Tokens a minute, over the whole deployment"
    )
    timeout_s: float = Field(default=60.0, gt=0, description="One call")
    max_criteria: int | None = Field(
        default=None, ge=1, description="Criteria in one verifier call; default: all"
    )
    max_response_tokens: int = Field(
        default=8192, ge=16, description="Longest response judged; its tail is kept"
    )
    evidence: bool = False
    nonce: bool = False
    canary: bool = False
    price_input: Price = Field(default=None, description="USD per million prompt tokens")
    price_output: Price = Field(default=None, description="USD per million completion tokens")
    price_cached: Price = Field(
        default=None,
        description="The same, for prompt tokens that the endpoint "
        "had cached; default: price_input",
    )
    breaker_probe_s: float = Field(
        default=15.0, gt=0, description="How long an open breaker waits before a probe"
    )
    breaker_wait_s: float = Field(
        default=60.0, ge=0, description="How long a call waits for an open breaker"
    )

    @model_validator(mode="after")
    def _one_identity(self) -> "JudgeSettings":
        if len(self.base_urls) > 1 and self.revision is None:
            raise ValueError(
                "several base_url of one judge need a revision: it says that they serve the same model"
            )
        for url in self.base_urls:
            if url is not None and not url.startswith(("http://", "https://")):
                raise ValueError(
                    f"the base_url {url!r} has no scheme: write 'http://{url}' or 'https://{url}'"
                )
        if ours := sorted(_OURS & self.extra_body.keys()):
            raise ValueError(f"extra_body must not hold {', '.join(ours)}: {_OURS_ADVICE}")
        if any(name.lower() == "authorization" for name in self.extra_headers):
            raise ValueError(
                "extra_headers must not hold Authorization: the key goes into api_key_env"
            )
        return self

    def temperature_of(self, role: Role) -> float | None:
        """What is sent for a role; ``None``: nothing is sent."""
        stated = next(
            (
                value
                for value in (getattr(self, f"{role}_temperature"), self.temperature)
                if value is not None
            ),
            _TEMPERATURES[role],
        )
        return None if stated == "default" else stated

    def sets_temperature(self, role: Role) -> bool:
        """Whether the operator chose the temperature of a role."""
        return getattr(self, f"{role}_temperature") is not None or self.temperature is not None

    @property
    def priced(self) -> bool:
        """Whether it is known what tokens cost."""
        return self.price_input is not None and self.price_output is not None

    def cost(self, prompt: int, cached: int, completion: int) -> int:
        """What tokens come to, ``cached`` of the prompt's, in nano-dollars; 0 without prices."""
        if self.price_input is None or self.price_output is None:
            return 0
        low = self.price_input if self.price_cached is None else self.price_cached
        per_million = sum(
            (
                tokens * Decimal(repr(price))
                for tokens, price in (
                    (prompt - cached, self.price_input),
                    (cached, low),
                    (completion, self.price_output),
                )
            ),
            Decimal(),
        )
        return int((per_million * NANO / 10**6).to_integral_value(ROUND_HALF_EVEN))

    def most(self, prompt: int, completion: int) -> int:
        """The most that so many tokens can come to, in nano-dollars; 0 without prices."""
        return max(self.cost(prompt, 0, completion), self.cost(prompt, prompt, completion))

    @property
    def base_urls(self) -> tuple[str | None, ...]:
        """The endpoints; ``None`` is OpenAI's own."""
        if self.base_url is None or isinstance(self.base_url, str):
            return (self.base_url or None,)
        return self.base_url

    @property
    def origin(self) -> str:
        """Host and path of the (first) URL, without credentials or query: the default revision."""
        return origin_of(self.base_urls[0])


def origin_of(url: str | None) -> str:
    """Host and path of an endpoint, without credentials or query."""
    if not url:
        return f"{OPENAI_HOST}/v1"
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{host}:{parts.port}{parts.path}" if parts.port else f"{host}{parts.path}"


class Settings(BaseSettings):
    """What a deployment decides. Secrets have no default and never show in a repr."""

    model_config = SettingsConfigDict(
        env_prefix="MARKSCHEME_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default=HOME, description="Where the default SQLite file lives")
    config: Path | None = Field(
        default=None, description="The judges' file; default: markscheme.toml in home"
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; SQLite or PostgreSQL"
    )
    migration_url: str | None = Field(
        default=None, description="PostgreSQL: as whom to migrate, when as another role"
    )
    database_password: SecretStr | None = Field(default=None, description="Of database_url's user")
    migration_password: SecretStr | None = Field(
        default=None, description="Of migration_url's user"
    )
    redis_password: SecretStr | None = Field(default=None, description="Of the Redis at redis_url")
    redis_url: str | None = Field(
        default=None, description="Where replicas share limits; may vanish at any time"
    )
    api_key: SecretStr | None = Field(
        default=None, description="The operator's key: every scope, as the team default"
    )
    key_pepper: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Keys are stored under it; without it none can be made",
    )
    team_rpm: int | None = Field(
        default=None, ge=1, description="Requests a minute of each team without its own limit"
    )
    guarded: bool = Field(
        default=False, description="Ask for a key even before there is one; so beyond loopback"
    )
    secret: SecretStr | None = Field(
        default=None, description="Fences and nonces derive from it; default: one is made"
    )
    workers: int = Field(default=1, ge=1, description="Worker processes; set by serve --workers")

    judge: Literal["builtin", "openai"] | None = Field(
        default=None, description="openai when a key or URL is set"
    )
    judge_base_url: str | None = Field(
        default=None, validation_alias=_env("JUDGE_BASE_URL", "OPENAI_BASE_URL")
    )
    judge_model: str | None = Field(
        default=None, validation_alias=_env("JUDGE_MODEL", "OPENAI_MODEL")
    )
    judge_api_key: SecretStr | None = Field(
        default=None, validation_alias=_env("JUDGE_API_KEY", "OPENAI_API_KEY")
    )
    judge_revision: str | None = None
    judge_timeout_s: float = Field(default=60.0, gt=0)
    judge_concurrency: int = Field(default=32, ge=1)
    judge_rpm: int | None = Field(default=None, ge=1)
    judge_tpm: int | None = Field(default=None, ge=1)
    judge_structured: StructuredOutput = "auto"
    judge_temperature: Temperature = None
    judge_max_tokens: int | None = Field(default=None, ge=1)
    judge_reasoning_effort: str | None = None
    judge_seed: int | None = None
    judge_extra_body: dict[str, Any] = {}
    judge_extra_headers: dict[str, str] = {}
    judge_rationale: Rationale = "off"
    judge_max_criteria: int | None = Field(default=None, ge=1)
    judge_max_response_tokens: int = Field(default=8192, ge=16)
    judge_rubricator_temperature: Temperature = None
    judge_verifier_temperature: Temperature = None
    judge_evidence: bool = False
    judge_nonce: bool = False
    judge_canary: bool = False
    judge_price_input: Price = None
    judge_price_output: Price = None
    judge_price_cached: Price = None
    judge_breaker_probe_s: float = Field(default=15.0, gt=0)
    judge_breaker_wait_s: float = Field(default=60.0, ge=0)

    teacher_model: str | None = Field(
        default=None, description="The model that is distilled, where it can be asked"
    )
    teacher_base_url: str | None = None
    teacher_api_key: SecretStr | None = None
    teacher_temperature: Temperature = None
    teacher_max_tokens: int | None = Field(default=None, ge=1)
    teacher_reasoning_effort: str | None = None
    teacher_seed: int | None = None
    teacher_extra_body: dict[str, Any] = {}
    teacher_extra_headers: dict[str, str] = {}

    request_timeout_s: float = Field(
        default=600.0, gt=0, description="One request, all its judge calls"
    )
    queue_limit: int = Field(
        default=8192, ge=1, description="Judge calls admitted and not done, a worker; then 503"
    )
    claim_lease_s: float = Field(
        default=8.0, ge=0.5, description="After this a silent owner's work is taken over"
    )
    heartbeat_s: float = Field(
        default=10.0, gt=0, description="Between keep-alive lines of an NDJSON answer"
    )
    drain_delay_s: float = Field(
        default=2.0, ge=0, description="Not ready, but still accepting, after SIGTERM"
    )
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    max_verdicts: int = Field(
        default=65_536, ge=1, description="Rollouts times criteria of one scoring request"
    )
    checks_timeout_s: float = Field(
        default=60.0, gt=0, description="Computing time of one request's checks"
    )

    verdict_reuse: VerdictReuse = Field(
        default="per_criterion", description="What makes a stored verdict reusable"
    )
    reuse_max_uses: int = Field(
        default=8, ge=1, description="if_fresh: groups a rubric may serve in one run"
    )
    reuse_mean_below: float = Field(
        default=0.9, description="if_fresh: mean reward at which a rubric is spent"
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
        """The environment before the file, each without the keys that :func:`withheld` names. A setting
        ``MARKSCHEME_<NAME>`` may also stand in the file that ``MARKSCHEME_<NAME>_FILE`` names."""
        sources = [
            source
            for source in (env_settings, dotenv_settings)
            if isinstance(source, EnvSettingsSource)
        ]
        for source in sources:
            source.env_vars = _with_secrets(source.env_vars, cls.model_fields)
        read = [
            {name.upper(): value for name, value in source.env_vars.items()} for source in sources
        ]
        for source, names in zip(sources, withheld(*read), strict=True):
            source.env_vars = {
                name: value for name, value in source.env_vars.items() if name.upper() not in names
            }
        return init_settings, env_settings, dotenv_settings

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        if self.judge_kind == "openai" and not self.judge_model and not self.file:
            raise ValueError(
                "the openai judge needs a model: set MARKSCHEME_JUDGE_MODEL (or OPENAI_MODEL), "
                "or set MARKSCHEME_JUDGE=builtin to judge without a model"
            )
        if self.roles.get(TEACHER) == BUILTIN:
            raise ValueError("the builtin judge cannot be the teacher: it writes nothing")
        for role, name in self.roles.items():
            if name != BUILTIN and name not in self.judges:
                raise ValueError(
                    f"the role {role} names the judge {name!r}, and there is none: "
                    f"there are {', '.join([BUILTIN, *self.judges])}"
                )
        return self

    @property
    def judge_kind(self) -> Literal["builtin", "openai"]:
        """The kind of the default judge: as set, else ``openai`` when a key or a base URL is there."""
        if self.judge is not None:
            return self.judge
        return "openai" if self.judge_api_key or self.judge_base_url else "builtin"

    @cached_property
    def file(self) -> Path | None:
        """The judges' file in use."""
        if self.config is not None:
            return self.config.expanduser()
        found = self.home.expanduser() / CONFIG_FILE
        return found if found.is_file() else None

    @cached_property
    def judges(self) -> dict[str, JudgeSettings]:
        """The model judges by name: those of the file, and ``default`` where the environment describes one."""
        judges = dict(_read_file(self.file)[0]) if self.file else {}
        if self.judge_kind == "openai" and self.judge_model:
            own = {
                name: getattr(self, f"judge_{name}")
                for name in JudgeSettings.model_fields
                if name != "api_key_env" and not name.startswith("teacher_")
            }
            judges.setdefault(DEFAULT, JudgeSettings(**own))
        if self.teacher_model:
            judges.setdefault(
                TEACHER,
                JudgeSettings(
                    model=self.teacher_model,
                    base_url=self.teacher_base_url,
                    timeout_s=TEACHER_TIMEOUT_S,
                    teacher_temperature=self.teacher_temperature,
                    teacher_max_tokens=self.teacher_max_tokens,
                    reasoning_effort=self.teacher_reasoning_effort,
                    seed=self.teacher_seed,
                    extra_body=self.teacher_extra_body,
                    extra_headers=self.teacher_extra_headers,
                ),
            )
        return judges

    @cached_property
    def roles(self) -> dict[str, str]:
        """The judge that plays each role unless a request names another; none is the teacher unless one is named."""
        stated = _read_file(self.file)[1] if self.file else {}
        usual = DEFAULT if DEFAULT in self.judges else BUILTIN
        able = [name for name in self.judges if name != TEACHER]
        if usual == BUILTIN and self.judge != "builtin" and len(able) == 1:
            usual = able[0]
        teacher = {TEACHER: TEACHER} if TEACHER in self.judges else {}
        return {"rubricator": usual, "verifier": usual, **teacher, **stated}

    def key_of(self, name: str) -> SecretStr | None:
        """The key of a model judge: from the variable that it names, else the default judge's own."""
        variable = self.judges[name].api_key_env
        if variable is None:
            return {DEFAULT: self.judge_api_key, TEACHER: self.teacher_api_key}.get(name)
        if variable.startswith("OPENAI_") and any(
            origin_of(url).split("/")[0] != OPENAI_HOST for url in self.judges[name].base_urls
        ):
            raise ValueError(
                f"the judge {name!r} would be sent {variable}, which is OpenAI's: give the key of its "
                "base_url a variable of its own, and name that in api_key_env"
            )
        value = os.environ.get(variable)
        if not value:
            raise ValueError(
                f"the judge {name!r} takes its key from {variable}, and that is not set"
            )
        return SecretStr(value)

    @property
    def sqlalchemy_url(self) -> str:
        """The database, with the async driver named."""
        return _complete_url(
            self.database_url or f"sqlite:///{self.home.expanduser().resolve() / 'markscheme.db'}",
            self.database_password,
        )

    @property
    def sqlalchemy_migration_url(self) -> str | None:
        """The same database as the role that owns its tables, where that is another one."""
        return (
            _complete_url(self.migration_url, self.migration_password)
            if self.migration_url
            else None
        )

    @property
    def is_sqlite(self) -> bool:
        return self.sqlalchemy_url.startswith("sqlite")


def _complete_url(url: str, password: SecretStr | None) -> str:
    """The URL with its driver, and with the password where one is set apart from it."""
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
    """``markscheme.toml``: ``[judges.NAME]`` tables and ``[roles]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    judges: dict[Annotated[str, StringConstraints(pattern=_NAME)], JudgeSettings] = {}
    roles: dict[Literal["rubricator", "verifier", "teacher"], str] = {}

    @model_validator(mode="after")
    def _named(self) -> "_File":
        if BUILTIN in self.judges:
            raise ValueError(f"the name {BUILTIN!r} is taken: it is the judge without a model")
        return self


def _read_file(path: Path) -> tuple[Mapping[str, JudgeSettings], Mapping[str, str]]:
    """Judges and roles of the file. Raises :class:`ValueError` that names the file and the place."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; check MARKSCHEME_CONFIG"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    try:
        read = _File.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return read.judges, {str(role): name for role, name in read.roles.items()}
