"""Import of rubrics; `markscheme.exchange` reads and writes the formats."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from markscheme.schema.base import Prompt, Tags, Wire
from markscheme.schema.metadata import check_json
from markscheme.schema.rubrics import Rubric
from markscheme.vocabulary import ExchangeFormat, MapField

MapPath = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class RubricImport(Wire):
    """`POST /v1/rubrics:import`: a rubric in one of the formats.

    `prompt` is for formats that hold none. `map` says where the format `mapped` has its parts.
    """

    format: ExchangeFormat
    content: Annotated[dict[str, Any] | list[Any], AfterValidator(check_json)]
    prompt: Prompt | None = None
    tags: Tags = []
    allow_loss: bool = Field(
        default=False, description="Take what can be held and leave the rest, which is told"
    )
    map: dict[MapField, MapPath] | None = Field(
        default=None,
        description="For the format mapped: paths of the prompt, the list of criteria, and within "
        "a criterion its text and points; also of reference answers and of the row's id",
    )


class RubricImported(Wire):
    """The rubric as stored.

    `losses` says what of the content was left out, `notes` what was read in a way that may
    surprise: one sentence each.
    """

    object: Literal["rubric.imported"] = "rubric.imported"
    rubric: Rubric
    losses: list[str]
    notes: list[str] = []
