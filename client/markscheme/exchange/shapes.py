"""The closed formats as models: what makes a JSON object one of theirs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from markscheme.schema.base import MAX_TAGS, Prompt, Tag, Wire
from markscheme.schema.metadata import Metadata
from markscheme.schema.rubrics import Criteria


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
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] = []
    metadata: Metadata = {}


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
