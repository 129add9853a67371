"""What is wrong with a training run, in sentences. Pure: figures by step in, findings out.

docs/runs.md has the rules. One truth for pages, API, terminal and metrics.
"""

from markscheme_server.domain.findings.figures import (
    TRAINER_METRICS,
    BudgetFigures,
    CriterionFigures,
    LengthReward,
    PairedRewards,
    PairFigures,
    RunFigures,
    StepColumns,
    StepFigures,
)
from markscheme_server.domain.findings.finding import Finding, GroupFilter
from markscheme_server.domain.findings.rules import find, find_in_criteria

__all__ = [
    "TRAINER_METRICS",
    "BudgetFigures",
    "CriterionFigures",
    "Finding",
    "GroupFilter",
    "LengthReward",
    "PairFigures",
    "PairedRewards",
    "RunFigures",
    "StepColumns",
    "StepFigures",
    "find",
    "find_in_criteria",
]
