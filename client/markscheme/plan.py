"""The size of a training run, from which the cost of its judge calls is estimated.

`markscheme train --plan` prints it as JSON and `markscheme doctor --train` reads it, so that
neither side imports the other.
"""

from pydantic import BaseModel, ConfigDict, Field

from markscheme.vocabulary import ReusePolicy, VerifyMode


class TrainingPlan(BaseModel):
    """One run in figures.

    A group is the rollouts of one prompt at one visit. Lengths are means, in characters.
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
    evaluation_groups: int = Field(default=0, ge=0, description="Of all evaluations together")
    evaluation_rollouts: int = Field(default=0, ge=0, description="Of all evaluations together")
    reuse: ReusePolicy
    verify: VerifyMode
    judge: str | None = None

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run."""
        return self.groups * self.rollouts_per_group
