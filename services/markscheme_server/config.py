"""Settings: one frozen object, built where the process starts and passed down.

Every field is an environment variable ``MARKSCHEME_<NAME>`` or a line in ``.env``. The README's table names
each of them; a test reads it there.
"""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

StructuredOutput = Literal["auto", "json_schema", "json_object", "text"]


def _env(name: str, *fallbacks: str) -> AliasChoices:
    return AliasChoices(f"MARKSCHEME_{name}", *fallbacks)


class Settings(BaseSettings):
    """What a deployment decides. Secrets have no default and never show in a repr."""

    model_config = SettingsConfigDict(
        env_prefix="MARKSCHEME_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default=Path("~/.markscheme"), description="Where the default SQLite file lives")
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; SQLite or PostgreSQL")
    redis_url: str | None = Field(default=None, description="Shared verdict cache; may vanish at any time")
    api_key: SecretStr | None = Field(default=None, description="When set, every /v1 call must present it")

    judge: Literal["builtin", "openai"] | None = Field(default=None, description="openai when a key or URL is set")
    judge_base_url: str | None = Field(default=None, validation_alias=_env("JUDGE_BASE_URL", "OPENAI_BASE_URL"))
    judge_model: str | None = Field(default=None, validation_alias=_env("JUDGE_MODEL", "OPENAI_MODEL"))
    judge_api_key: SecretStr | None = Field(default=None, validation_alias=_env("JUDGE_API_KEY", "OPENAI_API_KEY"))
    judge_revision: str | None = Field(default=None, description="Part of the identity; default: the URL's host")
    judge_timeout_s: float = Field(default=60.0, gt=0, description="One judge call")
    judge_concurrency: int = Field(default=32, ge=1, description="Judge calls in flight")
    judge_structured: StructuredOutput = Field(default="auto", description="auto steps down as the endpoint refuses")
    judge_max_response_tokens: int = Field(default=8192, ge=16, description="Longest response judged; its tail is kept")
    judge_rubricator_temperature: float | None = 0.7
    judge_verifier_temperature: float | None = 0.0
    judge_evidence: bool = Field(default=False, description="Ask for a quotation with each verdict")
    judge_nonce: bool = Field(default=False, description="The reply must repeat a secret of the prompt")
    judge_canary: bool = Field(default=False, description="Add a surely false criterion; met means no trust")

    request_timeout_s: float = Field(default=600.0, gt=0, description="One request, all its judge calls")
    heartbeat_s: float = Field(default=10.0, gt=0, description="Between keep-alive lines of an NDJSON answer")
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)

    reuse_max_uses: int = Field(default=8, ge=1, description="if_fresh: groups a rubric may serve in one run")
    reuse_mean_below: float = Field(default=0.9, description="if_fresh: mean reward at which a rubric is spent")

    @field_validator("redis_url", "database_url", "judge_base_url", "judge_model", "judge_revision", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("judge_api_key", "api_key", "judge", mode="before")
    @classmethod
    def _empty_secret_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        if self.judge_kind == "openai" and not self.judge_model:
            raise ValueError(
                "the openai judge needs a model: set MARKSCHEME_JUDGE_MODEL (or OPENAI_MODEL), "
                "or set MARKSCHEME_JUDGE=builtin to judge without a model"
            )
        return self

    @property
    def judge_kind(self) -> Literal["builtin", "openai"]:
        """The judge in use: as set, else ``openai`` when a key or a base URL is there."""
        if self.judge is not None:
            return self.judge
        return "openai" if self.judge_api_key or self.judge_base_url else "builtin"

    @property
    def sqlalchemy_url(self) -> str:
        """The database, with the async driver named."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.home.expanduser().resolve() / 'markscheme.db'}"
        for plain, driver in (("postgresql://", "postgresql+asyncpg://"), ("postgres://", "postgresql+asyncpg://"),
                              ("sqlite://", "sqlite+aiosqlite://")):
            if self.database_url.startswith(plain):
                return driver + self.database_url.removeprefix(plain)
        return self.database_url

    @property
    def judge_origin(self) -> str:
        """Host and path of the judge's URL, without credentials or query: the default revision."""
        if not self.judge_base_url:
            return "api.openai.com/v1"
        parts = urlsplit(self.judge_base_url)
        host = parts.hostname or ""
        return f"{host}:{parts.port}{parts.path}" if parts.port else f"{host}{parts.path}"
