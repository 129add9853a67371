"""A random one-layer model and a scripted client: no network, no service, no download."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from markscheme.schema import (
    Criterion,
    Group,
    GroupScore,
    Rollout,
    RolloutScore,
    RubricRef,
    ScoreBatch,
    ScoreCounts,
    TeacherScore,
    Usage,
    VerdictView,
)
from markscheme.vocabulary import UnscoredReason

CRITERION = Criterion(id="c1", text="It is [bold]short[/bold].", points=5)


Script = Callable[[int, Rollout], float | None]


class ScriptedClient:
    """Answers ``score`` from a script: the place of the rollout in its group → its reward."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[dict[str, Any]] = []

    def score(self, groups: Sequence[Group], **options: Any) -> ScoreBatch:
        self.calls.append({"groups": list(groups), **options})
        scored = [self._group(group) for group in groups]
        if options.get("score_teachers"):
            anchors = [
                TeacherScore(rewards=[1.0] * len(group.teacher_responses or [])) for group in groups
            ]
            scored = [
                group.model_copy(update={"teacher": anchor})
                for group, anchor in zip(scored, anchors, strict=True)
            ]
        rewards = [rollout.reward for group in scored for rollout in group.rollouts]
        unscored = rewards.count(None)
        return ScoreBatch(
            groups=scored,
            usage=Usage(judge_calls=0, prompt_tokens=0, completion_tokens=0, cached_verdicts=0),
            counts=ScoreCounts(
                rollouts=len(rewards), scored=len(rewards) - unscored, unscored=unscored
            ),
        )

    def _group(self, group: Group) -> GroupScore:
        rubric = RubricRef(
            id="rub_1", version=1, content_hash="0", origin="induced", criteria=[CRITERION]
        )
        return GroupScore(
            id=group.id,
            status="partial",
            error=None,
            rubric=rubric,
            teacher=None,
            rollouts=[
                _rollout(rollout, self.script(place, rollout))
                for place, rollout in enumerate(group.rollouts)
            ],
        )


def _rollout(rollout: Rollout, reward: float | None) -> RolloutScore:
    reason = UnscoredReason.TIMEOUT if reward is None else None
    met = None if reward is None else reward >= 0.5
    return RolloutScore(
        id=rollout.id,
        reward=reward,
        status="unscored" if reward is None else "scored",
        reason=reason,
        feedback=[],
        verdicts=[VerdictView(criterion_id="c1", met=met, reason=reason)],
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(61))]
    plain = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            **config,
        )
    )


def tiny_mixture_of_experts() -> Qwen3MoeForCausalLM:
    """Return a model of one layer with four experts, two a token."""
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
