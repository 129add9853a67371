"""Rubric distillation on TRL. ``RubricReward`` alone works with any TRL trainer; importing it needs no torch."""

from markscheme_train.reward import RubricReward

__all__ = ["RubricReward"]
