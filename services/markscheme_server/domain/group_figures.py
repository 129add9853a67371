"""The figures of a scored group: what curves and findings need of it, without texts.

They are stored with the group as JSON, so that the figures of a run are read without its rollouts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markscheme_server.domain.verdict import UNKNOWN


class GroupFigures(NamedTuple):
    """The figures of a group. A tuple, because a run has thousands.

    Attributes:
        at: When it was scored, in seconds since 1970.
        rewards: The rollouts' rewards in the order of the request; `None` for an unknown one.
        words: The words of what was judged of each; `None` where that is not known.
        truncated: Rollouts that hit the token limit.
        reasons: The reasons of unknown rewards.
        spread: The greatest minus the least reward; `None` if fewer than two different texts have
            one.
        verdicts: The verdict strings of all rollouts, joined; empty where they are not known.
        teacher_rewards: Rewards of the teacher responses that were judged beside them.
        teacher_verdicts: Their verdict strings, joined.
        teacher_keys: The keys of their texts.
        length_reward: What `length_reward` returns of words and rewards.
    """

    at: float
    rewards: Sequence[float | None]
    words: Sequence[int | None]
    truncated: int
    reasons: Sequence[str] = ()
    spread: float | None = None
    verdicts: str = ""
    teacher_rewards: Sequence[float | None] = ()
    teacher_verdicts: str = ""
    teacher_keys: Sequence[str] = ()
    length_reward: Sequence[float] | None = None

    def dump(self) -> str:
        """Return the JSON that `load_figures` reads; what has its default is left out."""
        given = {
            name: value for name, value in self._asdict().items() if value not in ("", (), [], None)
        }
        return json.dumps(
            given | {"rewards": list(self.rewards), "words": list(self.words)},
            separators=(",", ":"),
        )

    @property
    def known(self) -> list[float]:
        """The known rewards."""
        return [reward for reward in self.rewards if reward is not None]

    @property
    def teacher_known(self) -> list[float]:
        """The known rewards of teacher responses."""
        return [reward for reward in self.teacher_rewards if reward is not None]


def load_figures(stored: Iterable[str]) -> list[GroupFigures]:
    """Read the figures of groups as `GroupFigures.dump` wrote them."""
    # One call for all: thousands of calls take several times as long.
    rows: list[Mapping[str, Any]] = json.loads(f"[{','.join(stored)}]")
    return [GroupFigures(**row) for row in rows]


def joined_verdicts(verdicts: Sequence[str], criteria: int) -> str:
    """Join verdict strings to one of equal parts; a rollout without verdicts has unknown ones."""
    return "".join(each or UNKNOWN * criteria for each in verdicts)


def length_reward(
    words: Sequence[int | None], rewards: Sequence[float | None]
) -> tuple[int, float, float, float] | None:
    """Return how length and reward vary within a group, over rollouts of which both are known.

    That is how many there are, and the sums of squares and products about the group's means: of
    words, of rewards, and of both. `None` for fewer than two such rollouts.
    """
    pairs = [(x, y) for x, y in zip(words, rewards, strict=True) if x is not None and y is not None]
    count = len(pairs)
    if count < 2:
        return None
    mean_x, mean_y = sum(x for x, _ in pairs) / count, sum(y for _, y in pairs) / count
    return (
        count,
        sum((x - mean_x) ** 2 for x, _ in pairs),
        sum((y - mean_y) ** 2 for _, y in pairs),
        sum((x - mean_x) * (y - mean_y) for x, y in pairs),
    )
