"""The shapes of the formats: what makes a content one of theirs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from markscheme.exchange.base import MAX_TAGS
from markscheme.schema.base import Messages, Prompt, Tag, Wire
from markscheme.schema.rubrics import Criteria


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Filled = Annotated[str, AfterValidator(_filled)]


class Native(Wire):
    schema_version: Literal["markscheme.rubric.v1"]
    prompt: Prompt
    criteria: Criteria
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] = []


class RopdCriterion(Wire):
    criterion_id: str
    category: Filled
    criterion: Filled
    points: Annotated[int, Field(ge=1, le=5)]


class Ropd(Wire):
    schema_version: Literal["ropd.rubric.v1"]
    rubrics: Annotated[list[RopdCriterion], Field(min_length=4, max_length=12)]
    maximum_score: int


class Row(BaseModel):
    """Of a format that others add to: what is not named here is found in ``model_extra``."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class HealthBenchCriterion(Row):
    criterion: Filled
    points: float
    tags: list[str] = []


class HealthBench(Row):
    prompt: Messages
    rubrics: Annotated[list[HealthBenchCriterion], Field(min_length=1)]
    example_tags: list[str] = []


class RarCriterion(Row):
    title: str = ""
    description: Filled
    weight: float


class Rar(Row):
    question: Filled
    rubric: Annotated[list[RarCriterion], Field(min_length=1)]


class VerifiersCriterion(Row):
    name: Filled
    text: Filled
    weight: Annotated[float, Field(ge=0)] = 1.0
    choices: list[str] = ["no", "yes"]


class Verifiers(Row):
    criteria: Annotated[list[VerifiersCriterion], Field(min_length=1)]
