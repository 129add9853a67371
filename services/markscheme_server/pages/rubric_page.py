"""What the page of a rubric shows, made from the answers that the API gives. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markscheme.schema import Criterion, Lineage, LineageRubric, LineageRun, Rubric, RubricHealth
from markscheme_server.pages.labels import headline
from markscheme_server.pages.words import decimal, share


@dataclass(frozen=True, slots=True)
class Change:
    """How a criterion differs from the parent's. `before` is null where it is new."""

    before: Criterion | None
    after: Criterion | None

    @property
    def points(self) -> str:
        """The change of its points, in words."""
        if self.before is None or self.after is None or self.before.points == self.after.points:
            return ""
        return f"{decimal(self.before.points, 0)} to {decimal(self.after.points, 0)} points"


def changes(before: Sequence[Criterion], after: Sequence[Criterion]) -> list[Change]:
    """Return added, removed and changed criteria.

    Criteria with equal texts are the same; of the rest, those with equal ids were reworded.
    """
    own = {criterion.text: criterion for criterion in after}
    same = {c.text for c in before if c.text in own}
    left = {c.id: c for c in before if c.text not in same}
    found = []
    for criterion in after:
        if criterion.text in same:
            old = next(c for c in before if c.text == criterion.text)
            if old.points != criterion.points:
                found.append(Change(old, criterion))
        else:
            found.append(Change(left.pop(criterion.id, None), criterion))
    return [*found, *(Change(criterion, None) for criterion in left.values())]


@dataclass(frozen=True, slots=True)
class Branch:
    """A rubric of a lineage and what was made from it."""

    rubric: LineageRubric
    how: str
    children: list["Branch"]


def rubric_page(
    rubric: Rubric, parent: Rubric | None, lineage: Lineage, health: RubricHealth
) -> dict[str, Any]:
    """Return what the page of a rubric shows."""
    return {
        "rubric": rubric,
        "parent": parent,
        "changes": changes(parent.criteria, rubric.criteria) if parent is not None else [],
        "tree": _tree(lineage),
        "lineage": lineage,
        "runs": [node for node in lineage.nodes if isinstance(node, LineageRun)],
        "health": {each.criterion_id: each for each in health.criteria},
        "groups": health.groups,
        "headline": headline,
        "share": share,
    }


def _tree(lineage: Lineage) -> list[Branch]:
    """Return the rubrics of a lineage, each below the one that it was made from."""
    rubrics = {node.id: node for node in lineage.nodes if isinstance(node, LineageRubric)}
    made_from = {
        edge.target: edge
        for edge in lineage.edges
        if edge.kind in ("version", "fork") and edge.source in rubrics
    }

    def branch(node: LineageRubric) -> Branch:
        edge = made_from.get(node.id)
        return Branch(
            node,
            edge.kind if edge is not None else node.origin,
            [
                branch(rubrics[target])
                for target, edge in made_from.items()
                if edge.source == node.id and target in rubrics
            ],
        )

    return [branch(node) for node in rubrics.values() if node.id not in made_from]
