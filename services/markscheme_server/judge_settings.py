"""The settings of a judge: a model behind OpenAI-compatible endpoints, with its prices.

A table of `markscheme.toml` and the variables `MARKSCHEME_JUDGE_*` and `MARKSCHEME_TEACHER_*` have
the same fields; `config` reads them.
"""

import json
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from markscheme.schema.metadata import check_json
from markscheme.vocabulary import View
from markscheme_server.domain.usage import NANO

BUILTIN = "builtin"
"""The name of the judge that always exists: rules, no model."""
DEFAULT = "default"
"""The name of the judge that the variables `MARKSCHEME_JUDGE_*` describe."""
SHADOW: Final = "shadow"
"""The role of the second judge, whose verdicts are compared with the verifier's."""
TEACHER = "teacher"
"""The role of the model that is distilled, and the name of the one in `MARKSCHEME_TEACHER_*`."""
OPENAI_HOST = "api.openai.com"

Role = Literal["rubricator", "verifier", "teacher"]
"""The tasks of a judge."""
JudgeRole = Literal[Role, "shadow"]
"""The roles of judges, which the ledger records with each call. `shadow`: verify again what another
judge, or the same one, has verified."""
StructuredOutput = Literal["auto", "json_schema", "json_object", "text"]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["default"] | None
"""`default` sends none, so that the endpoint uses its own; `None` is not set."""
Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None
"""USD per million tokens; at most one dollar a token."""
Rationale = Literal["off", "short"]

_TEMPERATURES: Mapping[Role, float] = {"rubricator": 0.7, "verifier": 0.0, "teacher": 1.0}
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESERVED_BODY_FIELDS = frozenset(
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


def _parse_json(value: object) -> object:
    """Parse a variable's text as JSON; a value of the TOML file is a table already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from error


def check_key(key: SecretStr) -> SecretStr:
    """Return a key that can be sent, without the white space around it. Raises `ValueError`."""
    text = key.get_secret_value().strip()
    if not _is_sendable(text):
        raise ValueError("a key is of printable ASCII characters: copy it again")
    return SecretStr(text)


def _is_sendable(text: str) -> bool:
    """Return whether a header can hold it."""
    return text.isascii() and text.isprintable()


def _check_url(url: str) -> None:
    """Raise `ValueError` for an address that no call could be sent to."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            f"the base_url {url!r} has no scheme: write 'http://{url}' or 'https://{url}'"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"the base_url is no address: {error}") from error
    if not host or not url.isprintable() or " " in url:
        raise ValueError("the base_url has no host, or holds white space")


class JudgeOptions(BaseModel):
    """The settings of a judge, in a table of `markscheme.toml` and in variables alike."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    base_url: str | tuple[str, ...] | None = Field(
        default=None, description="One endpoint, or several that serve the very same model"
    )
    revision: str | None = Field(
        default=None, description="Part of the judge's identity; default: the URL's host and path"
    )
    structured: StructuredOutput = "auto"
    temperature: Temperature = Field(
        default=None, description="For all roles that have none of their own"
    )
    rubricator_temperature: Temperature = None
    verifier_temperature: Temperature = None
    teacher_temperature: Temperature = None
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest reply, thinking included; default: computed from the number of "
        "criteria",
    )
    teacher_max_tokens: int | None = Field(
        default=None, ge=1, description="Longest response of a teacher; default: 8192"
    )
    reasoning_effort: str | None = Field(
        default=None,
        pattern=r"^[a-z]{1,20}$",
        description="Sent unchanged: minimal, low, medium, high, …",
    )
    seed: int | None = Field(default=None, description="Sent unchanged")
    extra_body: Annotated[
        dict[str, Any], BeforeValidator(_parse_json), AfterValidator(check_json)
    ] = Field(default={}, description="More fields of the request's body")
    extra_headers: Annotated[dict[str, str], BeforeValidator(_parse_json)] = Field(
        default={}, description="More headers of the request"
    )
    rationale: Rationale = Field(
        default="off", description="short: a sentence before each verdict that explains it"
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
    timeout_s: float = Field(default=60.0, gt=0, description="Seconds for one call")
    max_criteria: int | None = Field(
        default=None, ge=1, description="Criteria in one verifier call; default: all"
    )
    max_response_tokens: int = Field(
        default=8192, ge=16, description="Longest response judged; of a longer one, its end"
    )
    view: View | None = Field(
        default=None,
        description="Which part of a trajectory is judged where neither request nor rubric says "
        "so: reply, assistant or full; default: reply",
    )
    evidence: bool = Field(
        default=False, description="A met criterion needs a quotation from the response"
    )
    hardening: bool = Field(
        default=False,
        description="The reply must repeat a nonce, and must not call a false canary criterion met",
    )
    price_input: Price = Field(default=None, description="USD per million prompt tokens")
    price_output: Price = Field(default=None, description="USD per million completion tokens")
    price_cached: Price = Field(
        default=None,
        description="USD per million prompt tokens that the endpoint had cached; "
        "default: price_input",
    )

    @model_validator(mode="after")
    def _check(self) -> "JudgeOptions":
        if len(self.base_urls) > 1 and self.revision is None:
            raise ValueError(
                "several base_url of one judge need a revision: it says that they serve the same "
                "model"
            )
        for url in self.base_urls:
            if url is not None:
                _check_url(url)
        if reserved := sorted(_RESERVED_BODY_FIELDS & self.extra_body.keys()):
            raise ValueError(
                f"extra_body must not hold {', '.join(reserved)}: the service sets these, by "
                "settings of their own or by itself"
            )
        if any(name.lower() == "authorization" for name in self.extra_headers):
            raise ValueError(
                "extra_headers must not hold Authorization: the key goes into api_key_env"
            )
        for name, value in self.extra_headers.items():
            if not (_HEADER.fullmatch(name) and _is_sendable(value)):
                raise ValueError(f"extra_headers: no header can hold {name!r} and its value")
        return self

    @property
    def base_urls(self) -> tuple[str | None, ...]:
        """The endpoints; `None` is OpenAI's own."""
        if self.base_url is None or isinstance(self.base_url, str):
            return (self.base_url or None,)
        return self.base_url


class JudgeVariables(JudgeOptions):
    """The judge or teacher that environment variables describe, if they name a model."""

    model: str | None = None
    api_key: Annotated[SecretStr, AfterValidator(check_key)] | None = None

    def judge(self, **defaults: Any) -> "JudgeSettings | None":
        """Return the judge, with `defaults` for fields that no variable sets."""
        if not self.model:
            return None
        stated = self.model_dump(exclude_unset=True, exclude={"api_key"})
        return JudgeSettings(**(defaults | stated))


class JudgeSettings(JudgeOptions):
    """One judge: a model behind one or several OpenAI-compatible endpoints. `[judges.NAME]`."""

    model: str = Field(min_length=1)
    api_key_env: str | None = Field(
        default=None, description="The environment variable that holds the key"
    )

    def temperature_of(self, role: Role) -> float | None:
        """Return the temperature to send for a role; `None`: send none."""
        own: Temperature = getattr(self, f"{role}_temperature")
        stated = self.temperature if own is None else own
        if stated is None:
            return _TEMPERATURES[role]
        return None if stated == "default" else stated

    def sets_temperature(self, role: Role) -> bool:
        """Return whether the operator set the temperature of a role."""
        return getattr(self, f"{role}_temperature") is not None or self.temperature is not None

    @property
    def priced(self) -> bool:
        """Whether the prices of tokens are known."""
        return self.price_input is not None and self.price_output is not None

    def cost(self, prompt: int, cached: int, completion: int) -> int:
        """Return the cost of tokens in nano-dollars; 0 without prices.

        Args:
            prompt: Prompt tokens, the cached ones included.
            cached: Prompt tokens that the endpoint had cached.
            completion: Completion tokens.
        """
        if self.price_input is None or self.price_output is None:
            return 0
        price_cached = self.price_input if self.price_cached is None else self.price_cached
        # Decimal, not float: the ledger adds up millions of these, and budgets compare the sums.
        per_million = sum(
            (
                tokens * Decimal(repr(price))
                for tokens, price in (
                    (prompt - cached, self.price_input),
                    (cached, price_cached),
                    (completion, self.price_output),
                )
            ),
            Decimal(),
        )
        return int((per_million * NANO / 10**6).to_integral_value(ROUND_HALF_EVEN))

    def max_cost(self, prompt: int, completion: int) -> int:
        """Return the most that tokens can cost in nano-dollars, cached or not; 0 without prices."""
        return max(self.cost(prompt, 0, completion), self.cost(prompt, prompt, completion))

    @property
    def origin(self) -> str:
        """Host and path of the first URL, without credentials or query: the default revision."""
        return origin_of(self.base_urls[0])


def origin_of(url: str | None) -> str:
    """Return host and path of an endpoint, without credentials or query."""
    if not url:
        return f"{OPENAI_HOST}/v1"
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{host}:{parts.port}{parts.path}" if parts.port else f"{host}{parts.path}"
