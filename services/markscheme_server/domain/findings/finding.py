"""A finding: a sentence, its figures, and the groups that show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from markscheme.vocabulary import FindingKind, FindingLevel, GroupSort


@dataclass(frozen=True, slots=True)
class GroupFilter:
    """Which groups show a finding. Steps are as the trainer sent them, both included."""

    first_step: int | None = None
    last_step: int | None = None
    criterion: str | None = None
    sort: GroupSort = "newest"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a run that a person should look at.

    Attributes:
        kind: What it is.
        level: How bad.
        sentence: What was seen, with its figures; the first sentence is a heading.
        since_step: The step at which it began, counted from 1.
        criterion: The key of the criterion that it is about.
        values: The figures of the sentence.
        groups: The groups that show it.
    """

    kind: FindingKind
    level: FindingLevel
    sentence: str
    since_step: int | None = None
    criterion: str | None = None
    values: Mapping[str, float | int | str | None] = field(default_factory=dict)
    groups: GroupFilter = GroupFilter()
