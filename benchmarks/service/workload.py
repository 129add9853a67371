"""The work: prompts with rubrics, and batches of new answers. Standard library only.

Sizes follow a small training step: prompts of about 40 words, criteria of 14, answers of 150. A
text depends on its position and the batch's name alone: a run can be repeated, and another name
makes an unseen batch.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from service.oracle import answer_id, criterion_id, is_met

PROMPT_WORDS, CRITERION_WORDS, ANSWER_WORDS = 40, 14, 150
_VOCABULARY = (
    "amber anchor answer apple arrow autumn balance barley basin beacon bridge bright bronze "
    "cabin candle canyon carries castle cedar circle clay clear cloud coast copper corner cotton "
    "crosses dawn deep delta desert distant drifts eager early earth echo ember engine evening "
    "fallow feather fern field finds fire forest fresh garden gathers gentle glass gold grain "
    "granite grows harbour harvest hazel hidden hill holds hollow honey horizon iron island ivory "
    "jasper journey keeps kettle lantern leaf ledger letter light linen listens long marble "
    "market meadow measures mill mirror mist morning mountain moves narrow needle night north oak "
    "ocean olive orchard paper patient pebble pine plain plants pocket pottery quarry quiet rain "
    "reads reaches reed ridge river road root rope rough saddle salt sand scatters season shade "
    "shore signal silver slate slow smooth south spring spruce stable station stone stream summer "
    "sunlight table teaches thread timber tower traces turns valley vessel village walks warm "
    "water weaves wheat willow wind window winter wooden writes yarrow"
)
_WORDS = tuple(_VOCABULARY.split())


@dataclass(frozen=True)
class Work:
    """Size of a batch."""

    prompts: int
    rollouts: int
    criteria: int

    @classmethod
    def parse(cls, name: str) -> "Work":
        """Parse a name such as `8x8x6`."""
        prompts, rollouts, criteria = map(int, name.split("x"))
        return cls(prompts, rollouts, criteria)

    def __str__(self) -> str:
        return f"{self.prompts}x{self.rollouts}x{self.criteria}"

    @property
    def answers(self) -> int:
        """Answers of a batch."""
        return self.prompts * self.rollouts

    @property
    def verdicts(self) -> int:
        """Verdicts of a batch."""
        return self.answers * self.criteria


@dataclass(frozen=True)
class Criterion:
    """A criterion with the id in its text."""

    text: str
    points: int
    id: str


@dataclass(frozen=True)
class Task:
    """One prompt and its criteria."""

    prompt: str
    criteria: tuple[Criterion, ...]

    def reward(self, answer: str) -> float:
        """Return the right reward of an answer."""
        ref = answer_id(_without_id(answer))
        met = sum(c.points for c in self.criteria if is_met(c.id, ref))
        return met / sum(c.points for c in self.criteria)

    def verdicts(self, answer: str) -> list[bool]:
        """Return the right verdicts on an answer, in the criteria's order."""
        ref = answer_id(_without_id(answer))
        return [is_met(c.id, ref) for c in self.criteria]


@dataclass(frozen=True)
class Batch:
    """Tasks with the answers to each."""

    name: str
    tasks: tuple[Task, ...]
    answers: tuple[tuple[str, ...], ...]

    def pairs(self) -> Iterator[tuple[Task, str]]:
        """Yield every answer with its task."""
        return (
            (task, answer)
            for task, answers in zip(self.tasks, self.answers, strict=True)
            for answer in answers
        )


def make_tasks(work: Work, name: str) -> tuple[Task, ...]:
    """Return the prompts and criteria of a series of batches."""
    return tuple(_task(work, random.Random(f"task {name} {p}")) for p in range(work.prompts))


def make_batch(work: Work, name: str, tasks: tuple[Task, ...] | None = None) -> Batch:
    """Return a batch of answers that are unique to `name`; tasks may be shared."""
    return Batch(
        name,
        tasks or make_tasks(work, name),
        tuple(
            tuple(_answer(random.Random(f"answer {name} {p} {r}")) for r in range(work.rollouts))
            for p in range(work.prompts)
        ),
    )


def _task(work: Work, rng: random.Random) -> Task:
    prompt = f"Write about this in your own words: {_sentence(rng, PROMPT_WORDS)}."
    return Task(prompt, tuple(_criterion(rng) for _ in range(work.criteria)))


def _criterion(rng: random.Random) -> Criterion:
    words = f"The answer says that {_sentence(rng, CRITERION_WORDS)}"
    ref = criterion_id(words)
    return Criterion(f"{words}, as {ref} asks.", rng.randint(1, 5), ref)


def _answer(rng: random.Random) -> str:
    words = _sentence(rng, ANSWER_WORDS)
    return f"{words} {answer_id(words)}"


def _without_id(answer: str) -> str:
    return answer.rsplit(" ", 1)[0]


def _sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(_WORDS, k=length))
