"""The judges of a service."""

from typing import Literal

from pydantic import Field

from markscheme.schema.base import Wire


class JudgeInfo(Wire):
    """A judge that requests may name, what it is used for unless they do, and its prices."""

    name: str
    kind: Literal["builtin", "openai"]
    model: str | None = Field(description="null for the builtin judge, which is rules")
    roles: list[Literal["rubricator", "verifier", "teacher", "shadow"]]
    price_input: float | None = Field(description="USD per million prompt tokens, if known")
    price_output: float | None = Field(description="USD per million completion tokens, if known")


class JudgeList(Wire):
    """`GET /v1/judges`: the judges by name."""

    object: Literal["list"] = "list"
    data: list[JudgeInfo]
