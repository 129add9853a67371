"""Scored groups of a run, made at random."""

import random

from markscheme_server.domain.group_figures import GroupFigures, joined_verdicts, length_reward
from markscheme_server.domain.run_columns import RunGroup

CRITERIA = 3


def make_group(rng: random.Random, step: int, number: int, *, pruned: bool = False) -> RunGroup:
    rewards = [rng.choice([None, 0.0, 0.25, 0.5, 1.0]) for _ in range(rng.randint(1, 5))]
    words = [rng.choice([None, 3, 10, 40]) for _ in rewards]
    known = [reward for reward in rewards if reward is not None]
    figures = GroupFigures(
        at=1000.0 + 10 * step + number,
        rewards=rewards,
        words=words,
        truncated=rng.randint(0, len(rewards)),
        reasons=["timeout"] * (len(rewards) - len(known)),
        spread=max(known) - min(known) if len(known) > 1 else None,
        verdicts=joined_verdicts(
            ["".join(rng.choices("10-?", k=CRITERIA)) for _ in rewards], CRITERIA
        ),
        teacher_rewards=[rng.choice([None, 0.75, 1.0])],
        teacher_verdicts="".join(rng.choices("10", k=CRITERIA)),
        teacher_keys=["t"],
        length_reward=length_reward(words, rewards),
    )
    return RunGroup(f"g{step}-{number}", step, f"rubric {number % 2}", "judge", pruned, figures)


def make_run(seed: int, steps: int = 30) -> list[RunGroup]:
    rng = random.Random(seed)
    return [
        make_group(rng, step, number, pruned=step < 3)
        for step in range(steps)
        if step % 7  # some steps were not scored
        for number in range(rng.randint(1, 3))
    ]
