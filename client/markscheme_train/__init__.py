"""Markscheme's trainer: GRPO, SDPO and SRPO on rubric rewards, on top of TRL."""

from markscheme_train.reward import RubricReward

__all__ = ["RubricReward"]
