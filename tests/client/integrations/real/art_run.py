"""ART's own `gather_trajectory_groups` with the recipe."""

import asyncio
import json
import sys
from typing import Any

import art
from recipe import recipe

score_group = recipe("art.md")["score_group"]


async def rollout(text: str) -> art.Trajectory:
    said = [{"role": "user", "content": sys.argv[1]}, {"role": "assistant", "content": text}]
    return art.Trajectory(messages_and_choices=said)


async def gathered(*groups: list[str]) -> list[Any]:
    """Return the text, the reward and the missed criteria of the trajectories of each group."""
    made = await art.gather_trajectory_groups(
        [
            art.TrajectoryGroup((rollout(text) for text in texts), metadata={"row": row})
            for row, texts in enumerate(groups)
        ],
        pbar_desc=None,
        after_each=score_group,
    )
    return [
        [group.metadata["row"], [[t.reward, t.metrics["missed"]] for t in group.trajectories]]
        for group in made
    ]


async def main() -> None:
    texts = sys.argv[2:6]
    facts = {
        "group": await gathered(texts),
        "unscored": await gathered(["silent", *texts[1:]], ["silent", texts[0]]),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
