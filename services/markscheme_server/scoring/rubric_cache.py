"""An in-memory cache of the teams' own rubrics, in front of the database.

What scoring reads of a rubric never changes, and its team always sees it. Another team's rubric may
be withdrawn at any time, so it is read anew each time.
"""

from collections import OrderedDict

from markscheme_server.domain.rubric import Rubric
from markscheme_server.store.rubrics import RubricStore

MAX_RUBRICS = 256
MAX_CHARACTERS = 100_000
"""Rubrics with longer prompts and criteria are not kept: checks may hold long lists of texts."""


class RubricCache:
    """The `MAX_RUBRICS` own rubrics that were used most recently."""

    def __init__(self, store: RubricStore) -> None:
        self._store = store
        self._rubrics: OrderedDict[tuple[str, str], Rubric] = OrderedDict()

    async def find(self, team: str, rubric_id: str) -> Rubric | None:
        """Return the rubric with this id, if the team may see it.

        Its tags, its metadata, whether it is retired and who else sees it may be out of date.
        """
        if (kept := self._rubrics.get((team, rubric_id))) is not None:
            self._rubrics.move_to_end((team, rubric_id))
            return kept
        found = await self._store.find(team, rubric_id)
        if found is not None and found.team == team and _characters(found) <= MAX_CHARACTERS:
            self._rubrics[team, rubric_id] = found
            while len(self._rubrics) > MAX_RUBRICS:
                self._rubrics.popitem(last=False)
        return found


def _characters(rubric: Rubric) -> int:
    return sum(len(str(part)) for part in (*rubric.prompt, *rubric.criteria, rubric.provenance))
