"""The judge interface: the two roles, their tasks and results, and failures with a reason.

The ``openai`` judge asks a model; the ``builtin`` judge applies rules. Scoring treats both alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from markscheme.vocabulary import FindingKind, UnscoredReason, VerifyMode, View
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.hashing import ChatMessage
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_columns import Counts
from markscheme_server.domain.trajectory import Judged

if TYPE_CHECKING:
    from markscheme_server.judge.gateway import Gateway  # which imports this module

MAX_ATTEMPTS = 3
"""Times a question is asked: as it is, with the error of the first reply, and reworded."""


FAULTS: tuple[FindingKind, ...] = ("saturated", "inverted")
"""Findings on a criterion for which an induced rubric is replaced."""


class JudgeFailure(Exception):
    """The judge gave no usable answer.

    The reward is then null with ``reason``, never a number. The message is for people and holds no
    prompt, rollout or key. ``detail`` is the endpoint's own error message, for the operator only.
    """

    def __init__(self, reason: UnscoredReason, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class StudentResponse:
    """What is judged of a rollout, to contrast with teacher responses.

    ``truncated``: it hit the token limit.
    """

    text: Judged
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class EarlierCriterion:
    """A criterion of a rubric that is to be replaced, how often it was met, and its findings."""

    criterion: Criterion
    rollouts: Counts
    teachers: Counts
    findings: Sequence[FindingKind]


@dataclass(frozen=True, slots=True)
class InductionTask:
    """All that the rubricator sees. `earlier`: the criteria that the new ones replace, if any."""

    prompt: tuple[ChatMessage, ...]
    teacher_responses: tuple[Judged, ...]
    student_responses: tuple[StudentResponse, ...]
    earlier: tuple[EarlierCriterion, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """The criteria to decide for one response, or for a blinded pool of them (group mode)."""

    prompt: tuple[ChatMessage, ...]
    criteria: tuple[Criterion, ...]
    responses: tuple[Judged, ...]
    verify: VerifyMode = "rollout"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a criterion is met, with the judge's quotation and rationale where it gave them.

    ``met``: ``None`` where the criterion does not apply to the response.
    """

    met: bool | None
    evidence: str | None = None
    rationale: str | None = None


Verification = tuple[Mapping[str, Decision], ...]
"""Decisions by criterion id, one mapping per response of the task, in its order.

A criterion is missing where there was no time for it. Any other failure is raised.
"""


class Judge(Protocol):
    """A named model, or the rules that replace one."""

    @property
    def name(self) -> str:
        """The name in requests and settings."""

    @property
    def rubricator_identity(self) -> str:
        """Model, revision, sampling and template that induce; part of an induction's cache key."""

    @property
    def verifier_identity(self) -> str:
        """Model, revision, sampling and template that verify; part of a verdict's cache key."""

    @property
    def template(self) -> str:
        """The version of the rubricator's template, for the provenance of rubrics."""

    @property
    def max_criteria(self) -> int | None:
        """The maximum number of criteria per verifying call; ``None``: no maximum."""

    @property
    def view(self) -> View | None:
        """Which part of a trajectory it judges where neither request nor rubric says so."""

    @property
    def max_response_tokens(self) -> int | None:
        """How much of a response it is shown, in tokens; ``None``: all."""

    @property
    def gateway(self) -> "Gateway | None":
        """Limits and retries its calls; ``None`` for a judge that makes none."""

    async def induce(
        self, task: InductionTask, context: CallContext, *, max_attempts: int = MAX_ATTEMPTS
    ) -> tuple[Criterion, ...]:
        """Induce criteria, in at most ``max_attempts`` attempts. Raises `JudgeFailure`.

        Their ids are c1, c2, … in order.
        """

    async def verify(self, task: VerifyTask, context: CallContext) -> Verification:
        """Decide every criterion for every response. Raises `JudgeFailure`."""

    async def aclose(self) -> None:
        """Close the connections."""


@runtime_checkable
class Teacher(Protocol):
    """A model that writes responses of its own: the one that is distilled."""

    @property
    def teacher_identity(self) -> str:
        """Model, revision and sampling; recorded with its calls."""

    @property
    def teacher_model(self) -> str:
        """The model's name, stored with its responses."""

    @property
    def gateway(self) -> "Gateway | None":
        """Limits and retries its calls."""

    async def respond(self, prompt: tuple[ChatMessage, ...], context: CallContext) -> str:
        """Sample one response. Raises `JudgeFailure`."""
