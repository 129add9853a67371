"""The module that verifiers finds the judge in."""

from markscheme.integrations.verifiers import MarkschemeJudge

__all__ = ["MarkschemeJudge"]
