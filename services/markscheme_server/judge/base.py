"""What a judge is to the rest of the service: two roles, and failures that carry a reason.

``openai`` asks a model, ``builtin`` reads rules; grading cannot tell them apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from markscheme.vocabulary import UnscoredReason, VerifyMode
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.hashing import ChatMessage
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.usage import JudgeUsage

ASKS = 3
"""At most so many times a question is asked: as it is, once with what was wrong, once in other words."""


class JudgeFailure(Exception):
    """The judge gave no usable answer. ``reason`` travels to the reward's place; never a number.

    The message is for people and holds no prompt, rollout or key. ``detail`` is the endpoint's own
    sentence, for the operator only.
    """

    def __init__(
        self,
        reason: UnscoredReason,
        message: str,
        usage: JudgeUsage | None = None,
        *,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.usage = usage or JudgeUsage()
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Response:
    """A response to be contrasted or judged. ``truncated``: it hit the token limit."""

    text: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class InductionTask:
    """Everything the rubricator sees."""

    prompt: tuple[ChatMessage, ...]
    teacher_responses: tuple[str, ...]
    student_responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Induction:
    """What the rubricator made; ids are c1, c2, … in order."""

    criteria: tuple[Criterion, ...]
    usage: JudgeUsage = field(default_factory=JudgeUsage)


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """One judge call: the criteria to decide for one response, or for a blinded pool (group mode)."""

    prompt: tuple[ChatMessage, ...]
    criteria: tuple[Criterion, ...]
    responses: tuple[str, ...]
    verify: VerifyMode = "rollout"


@dataclass(frozen=True, slots=True)
class Decision:
    """Met or not, with a quotation that shows it and a sentence that argues it, where the judge gave them."""

    met: bool
    evidence: str | None = None
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """Per response, in the order asked, the decision by criterion id; where one is missing there was no time for it.
    Any other failure is raised, not returned."""

    decisions: tuple[Mapping[str, Decision], ...]
    usage: JudgeUsage = field(default_factory=JudgeUsage)


class Reservation(Protocol):
    """Room in a judge's queue; see :class:`markscheme_server.judge.queue.Reservation`."""

    def release(self, calls: int | None = None) -> None: ...


class Gateway(Protocol):
    """The part of :class:`markscheme_server.judge.gateway.Gateway` that grading needs."""

    @property
    def concurrency(self) -> int:
        """The most calls in flight."""

    def reserve(self, calls: int, team: str) -> Reservation: ...


class Judge(Protocol):
    """A named model endpoint, or the rules that stand in for one."""

    @property
    def name(self) -> str:
        """What requests and settings call it."""

    @property
    def rubricator_identity(self) -> str:
        """Model, revision, sampling and template of the inducing role: part of an induction's address."""

    @property
    def verifier_identity(self) -> str:
        """The same for the verifying role: part of every verdict's address."""

    @property
    def template(self) -> str:
        """The version of the rubricator's template, for provenance."""

    @property
    def max_criteria(self) -> int | None:
        """The most criteria in one verifying call; ``None``: all."""

    @property
    def gateway(self) -> Gateway | None:
        """Where its calls queue; ``None`` for a judge that makes none."""

    async def induce(
        self, task: InductionTask, context: CallContext, *, asks: int = ASKS
    ) -> Induction:
        """Make a rubric, asking at most ``asks`` times. Raises :class:`JudgeFailure`."""

    async def verify(self, task: VerifyTask, context: CallContext) -> Verification:
        """Decide every criterion for every response. Raises :class:`JudgeFailure`."""

    async def aclose(self) -> None:
        """Let go of connections."""


@runtime_checkable
class Teacher(Protocol):
    """A model that can be asked for responses of its own: the one that is distilled."""

    @property
    def teacher_identity(self) -> str:
        """Model, revision and sampling: what its calls are recorded under."""

    @property
    def teacher_model(self) -> str:
        """The model's name, kept beside its responses."""

    @property
    def gateway(self) -> Gateway | None:
        """Where its calls queue."""

    async def respond(
        self, prompt: tuple[ChatMessage, ...], context: CallContext
    ) -> tuple[str, JudgeUsage]:
        """One sampled response. Raises :class:`JudgeFailure`."""
