"""What a training run will ask of the service: the basis of a cost estimate before the run.

A trainer provides it through an entry point `train` in the group `markscheme.plans`: a function of
a configuration path and of `key=value` overrides. The server finds it there, so that neither
package imports the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from markscheme.vocabulary import ReusePolicy, VerifyMode

GROUP, NAME = "markscheme.plans", "train"


class PlanError(Exception):
    """The configuration cannot be planned; the message says why."""


class TrainingPlan(BaseModel):
    """A whole run in figures.

    A group is one prompt's rollouts at one visit. Lengths are means, in characters unless named
    otherwise.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1)
    batches: int = Field(
        ge=1, description="Requests to the service: a batch may serve several steps, or the reverse"
    )
    groups: int = Field(ge=1)
    rollouts_per_group: int = Field(ge=1)
    prompts: int = Field(ge=1, description="Prompts in the data")
    prompt_characters: int = Field(ge=0)
    response_tokens: int = Field(ge=1, description="The longest response that the student may give")
    teacher_responses: int = Field(ge=0, description="Per prompt that has any, rounded up")
    teacher_characters: int = Field(ge=0, description="Of one teacher response")
    reuse: ReusePolicy
    verify: VerifyMode
    judge: str | None = None

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run."""
        return self.groups * self.rollouts_per_group


Planner = Callable[[Path, Sequence[str]], TrainingPlan]
"""The entry point's type. Raises `PlanError`."""
