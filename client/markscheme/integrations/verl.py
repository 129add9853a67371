"""Rewards for verl: `MarkschemeRewardManager`, and `compute_score` for its own managers.

An unscored rollout raises `RolloutUnscored`, and verl leaves it out. Its asynchronous trainers drop
the whole group and fill the batch with another prompt. Its synchronous one trains on the group's
other rollouts, and replaces a group without any if `trainer.v1.sampler.sync_refill_failed_groups`
is set. Checked with verl 0.9.1.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from markscheme.integrations.gathering import loop_client, score_in_group

__all__ = ["MarkschemeRewardManager", "compute_score"]

_VALIDATION = frozenset({"test", "val", "validation"})

if TYPE_CHECKING:
    MarkschemeRewardManager: Any


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    size: int,
    wait_s: float = 60.0,
    **_reward_model: Any,
) -> dict[str, float]:
    """Return a rollout's reward, as `reward.custom_reward_function` wants it.

    verl tells it neither the group nor the step, so the rollouts of a prompt are gathered by
    `size` as they come: prefer `MarkschemeRewardManager`. Settings come from
    `MARKSCHEME_URL` and `MARKSCHEME_API_KEY`.

    Args:
        data_source: Ignored.
        solution_str: What the student wrote.
        ground_truth: Ignored.
        extra_info: The row's, which must hold the `prompt` as a text or messages; verl passes no
            other. It may hold a `rubric_id`.
        size: `rollout.n`, given in `reward_kwargs`.
        wait_s: Seconds to wait for the others.

    Raises:
        RolloutUnscored: The reward is not known.
    """
    row = extra_info or {}
    prompt = row.get("raw_prompt", row.get("prompt"))
    if prompt is None:
        raise ValueError(
            "compute_score needs the prompt: put it into the column extra_info as 'prompt', or use "
            "MarkschemeRewardManager"
        )
    scored = await score_in_group(
        loop_client(),
        _listed(prompt),
        solution_str,
        size=size,
        wait_s=wait_s,
        rubric_id=row.get("rubric_id"),
    )
    return {
        "score": cast(float, scored.reward),
        "missed": float(len(scored.rollout.feedback)),
    }


@cache
def _manager() -> type:
    """Return the class, which derives from verl's."""
    from verl.experimental.reward_loop.reward_manager.base import (  # type: ignore[import-not-found]
        RewardManagerBase,
    )

    class MarkschemeRewardManager(RewardManagerBase):  # type: ignore[misc]
        """Scores each prompt's `rollout.n` rollouts as one group, over any number of workers.

        Set `reward.reward_manager.source=importlib`,
        `reward.reward_manager.module.path=pkg://markscheme.integrations.verl` and
        `reward.reward_manager.name=MarkschemeRewardManager`. The row's `extra_info` may hold a
        `rubric_id`; its `split` tells validation rows (`test`, `val`).
        """

        def __init__(
            self,
            config: Any,
            tokenizer: Any,
            compute_score: Any = None,
            reward_router_address: Any = None,
            reward_model_tokenizer: Any = None,
        ) -> None:
            super().__init__(config, tokenizer, compute_score)

        async def run_single(self, data: Any) -> dict[str, Any]:
            """Return the reward of the last sequence of a rollout."""
            item = data[-1:][0]
            row = item.non_tensor_batch
            extra = row.get("extra_info") or {}
            rollout = self.config.actor_rollout_ref.rollout
            is_validation = extra.get("split") in _VALIDATION
            ids = item.batch["responses"]
            # Left-padded prompt, right-padded response: the mask's end is the response's.
            length = int(item.batch["attention_mask"][-len(ids) :].sum())
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
            scored = await score_in_group(
                loop_client(),
                _listed(row["raw_prompt"]),
                text,
                key=str(row["uid"]),
                rollout_id=_session(row),
                size=rollout.val_kwargs.n if is_validation else rollout.n,
                rubric_id=extra.get("rubric_id"),
            )
            return {
                "reward_score": scored.rollout.reward,
                "reward_extra_info": {"missed": float(len(scored.rollout.feedback))},
            }

    MarkschemeRewardManager.__qualname__ = MarkschemeRewardManager.__name__
    return MarkschemeRewardManager


def __getattr__(name: str) -> Any:
    if name == "MarkschemeRewardManager":
        return _manager()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _session(row: Mapping[str, Any]) -> str | None:
    """Return the number of the rollout in its group, where verl gives one."""
    return f"r{row['session_id']}" if "session_id" in row else None


def _listed(prompt: Any) -> Any:
    """Return a prompt of a NumPy or OmegaConf container as plain data."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
