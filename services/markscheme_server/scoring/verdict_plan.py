"""What is asked of a judge for one group, under which keys, and in which calls."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from markscheme.vocabulary import VerifyMode, View
from markscheme_server.domain.hashing import (
    ChatMessage,
    VerdictKey,
    criterion_key,
    digest,
    prompt_key,
)
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import DEFAULT_VIEW, Judged, judged_key, pool_key
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.judge.base import Judge
from markscheme_server.store.ledger import CallRole

Criteria = tuple[Criterion, ...]
Unit = tuple[Judged, ...]
"""What is judged in one judge call: one response, or in group mode all of them."""


@dataclass(frozen=True)
class VerdictQuery:
    """Criteria to decide for the texts of one group by one judge.

    `texts` are what is judged of the responses in `view`, each once (see `trajectory.judged`).
    `role`: what calls are recorded as. `replay_id`: the replay that they are made for.
    """

    team: str
    prompt: tuple[ChatMessage, ...]
    criteria: Criteria
    texts: tuple[Judged, ...]
    judge: Judge
    verify: VerifyMode
    view: View = DEFAULT_VIEW
    run_id: str | None = None
    rubric_id: str | None = None
    role: CallRole = "verifier"
    replay_id: str | None = None
    _text_keys: dict[Judged, str] = field(default_factory=dict, compare=False)
    _keys: dict[Judged, dict[str, str]] = field(default_factory=dict, compare=False)

    @property
    def is_free(self) -> bool:
        """Whether the judge makes no calls: then nothing is queued, claimed or paid."""
        return self.judge.gateway is None

    @property
    def is_pooled(self) -> bool:
        """Whether one call sees all texts. A check does not depend on rivals: it has no pool."""
        return self.verify == "group" and not self.is_free

    @cached_property
    def prompt_key(self) -> str:
        """The key of the prompt."""
        return prompt_key(self.prompt)

    @cached_property
    def criterion_keys(self) -> dict[str, str]:
        """The keys of the criteria, by criterion id."""
        return {c.id: criterion_key(c) for c in self.criteria}

    def text_key(self, text: Judged) -> str:
        """Return the key of what is judged of a response."""
        if (key := self._text_keys.get(text)) is None:
            key = self._text_keys[text] = judged_key(text)
        return key

    def key(self, criterion: Criterion, text: Judged) -> str:
        """Return the key of the verdict on one criterion for one text."""
        # A text's keys are computed when its first is asked for: to compute those of all texts at
        # once would block the event loop.
        if (keys := self._keys.get(text)) is None:
            response = self.text_key(text)
            keys = self._keys[text] = {
                id_: key.for_response(response) for id_, key in self._verdict_keys.items()
            }
        return keys[criterion.id]

    def keys(self, criteria: Criteria, texts: Iterable[Judged]) -> list[str]:
        """Return the keys of all verdicts on these criteria for these texts."""
        return [self.key(c, text) for text in texts for c in criteria]

    def claim_key(self, unit: Unit) -> str:
        """Return the key under which a unit is claimed, whichever criteria are asked about."""
        return digest(
            [
                self.team,
                self.prompt_key,
                self.judge.verifier_identity,
                self.verify,
                [self.text_key(text) for text in unit],
            ]
        )

    def units(self, texts: Iterable[Judged]) -> list[Unit]:
        """Split texts into units."""
        return [self.texts] if self.is_pooled else [(text,) for text in texts]

    def calls(self, criteria: Criteria) -> list[Criteria]:
        """Split criteria into the calls in which they are asked about."""
        return _split(criteria, self.judge.max_criteria)

    @cached_property
    def _verdict_keys(self) -> dict[str, VerdictKey]:
        pool = pool_key(self.texts) if self.is_pooled else ""
        return {
            c.id: VerdictKey(
                team=self.team,
                prompt=self.prompt_key,
                criterion=self.criterion_keys[c.id],
                judge=self.judge.verifier_identity,
                pool=pool,
                verify="group" if self.is_pooled else "rollout",
            )
            for c in self.criteria
        }


@dataclass(frozen=True, slots=True)
class VerdictPlan:
    """The verdicts that are stored already, and what is left to ask.

    All units are asked about the same `missing` criteria: what is compared must be reached alike.
    """

    query: VerdictQuery
    known: Mapping[str, StoredDecision]
    units: list[Unit]
    missing: Criteria

    @property
    def calls(self) -> int:
        """How many judge calls the rest takes, at most one per unit and set of criteria."""
        if self.query.is_free:
            return 0
        return len(self.units) * len(_split(self.missing, self.query.judge.max_criteria))


def _split(criteria: Criteria, size: int | None) -> list[Criteria]:
    size = size or len(criteria) or 1
    return [criteria[start : start + size] for start in range(0, len(criteria), size)]
