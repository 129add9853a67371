"""Rewards for slime: `--group-rm --custom-rm-path markscheme.integrations.slime.rubric_rm`.

Checked with slime 624b824 (21 August 2026).
"""

from collections.abc import Sequence
from typing import Any

from markscheme.integrations.conversation import normal_conversation, wire_prompt
from markscheme.integrations.gathering import RolloutUnscored, loop_client, retry_outages
from markscheme.schema import Group, Rollout
from markscheme.text import replace_invalid


async def rubric_rm(args: Any, samples: Sequence[Any], **_options: Any) -> list[float]:
    """Return the rewards of one group of slime's samples.

    slime takes no null. An unscored sample is taken out of the loss (`remove_sample`) and gets the
    mean of the known rewards, which leaves the group's mean as it is. Settings come from
    `MARKSCHEME_URL` and `MARKSCHEME_API_KEY`. A sample's `metadata` may hold a `rubric_id`.

    Raises:
        RolloutUnscored: No reward of the group is known.
        MarkschemeError: The service refuses the request, or stays away too long.
    """
    first = samples[0]
    group = Group(
        id=f"g{first.group_index}",
        prompt=wire_prompt(normal_conversation(first.prompt, "prompt")),
        rubric_id=(first.metadata or {}).get("rubric_id"),
        rollouts=[
            Rollout(
                id=f"r{place}",
                text=replace_invalid(sample.response),
                truncated=sample.status.value == "truncated",
            )
            for place, sample in enumerate(samples)
        ],
    )
    client = loop_client()
    batch = await retry_outages(lambda: client.score([group]))
    scores = batch.groups[0].rollouts
    known = [score.reward for score in scores if score.reward is not None]
    if not known:
        raise RolloutUnscored(", ".join(sorted({str(score.reason) for score in scores})))
    for sample, score in zip(samples, scores, strict=True):
        if score.reward is None:
            sample.remove_sample = True
    mean = sum(known) / len(known)
    return [mean if score.reward is None else score.reward for score in scores]
