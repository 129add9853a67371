"""The formats as models: what makes a JSON object one of theirs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from markscheme.schema.base import MAX_TAGS, Messages, Prompt, Tag, Wire
from markscheme.schema.rubrics import Criteria
from markscheme.vocabulary import View


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Filled = Annotated[str, AfterValidator(_filled)]


class Native(Wire):
    """Markscheme's own format."""

    schema_version: Literal["markscheme.rubric.v1"]
    prompt: Prompt
    criteria: Criteria
    view: View | None = None
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] = []


class RopdCriterion(Wire):
    """A criterion of ROPD's JSON."""

    criterion_id: str
    category: Filled
    criterion: Filled
    points: Annotated[int, Field(ge=1, le=5)]


class Ropd(Wire):
    """ROPD's reference JSON."""

    schema_version: Literal["ropd.rubric.v1"]
    rubrics: Annotated[list[RopdCriterion], Field(min_length=4, max_length=12)]
    maximum_score: int


class Row(BaseModel):
    """Base of formats that others extend: unknown fields are found in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class HealthBenchCriterion(Row):
    """A criterion of HealthBench."""

    criterion: Filled
    points: float
    tags: list[str] = []


class HealthBench(Row):
    """A row of HealthBench."""

    prompt: Messages
    rubrics: Annotated[list[HealthBenchCriterion], Field(min_length=1)]
    example_tags: list[str] = []


class RarCriterion(Row):
    """A criterion of Rubrics as Rewards."""

    title: str = ""
    description: Filled
    weight: float


class Rar(Row):
    """A row of Rubrics as Rewards."""

    question: Filled
    rubric: Annotated[list[RarCriterion], Field(min_length=1)]


class VerifiersCriterion(Row):
    """A criterion of a verifiers rubric file."""

    name: Filled
    text: Filled
    weight: Annotated[float, Field(ge=0)] = 1.0
    choices: list[str] = ["no", "yes"]


class Verifiers(Row):
    """A rubric file of verifiers."""

    criteria: Annotated[list[VerifiersCriterion], Field(min_length=1)]
