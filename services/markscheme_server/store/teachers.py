"""The teacher bank: what the model that is distilled said, by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from markscheme_server.domain.hashing import ChatMessage, prompt_key, text_key
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import as_utc, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import prompts, teacher_responses, texts

REMEMBERED = 100_000
"""Teacher responses that one process remembers having stored."""


@dataclass(frozen=True, slots=True)
class TeacherResponse:
    """One response of the bank; ``model`` is what it came from, where that is known."""

    text: str
    model: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TeacherResponses:
    """Responses to one prompt that are to be kept."""

    team: str
    prompt: tuple[ChatMessage, ...]
    responses: tuple[str, ...]
    model: str | None


class TeacherBank:
    """Teacher responses by prompt."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._saving: Batcher[TeacherResponses, int] = Batcher(self._save)
        self._saved: dict[tuple[str, str, str], None] = {}
        """Those that are known to be there: a training step brings the same ones again and again."""
        t = teacher_responses.c
        self._save_all = database.combine(
            *(database.insert_rows(table).on_conflict_do_nothing() for table in (prompts, texts)),
            database.insert_rows(teacher_responses)
            .on_conflict_do_nothing()
            .returning(t.team, t.prompt_key, t.text_key),
        )

    async def find(self, team: str, prompt: str) -> list[TeacherResponse]:
        """The team's teacher responses for a prompt, oldest first."""
        t = teacher_responses.c
        query = (
            sa.select(texts.c.text, t.model, t.created_at)
            .join(teacher_responses, t.text_key == texts.c.key)
            .where(t.team == team, t.prompt_key == prompt)
            .order_by(t.created_at, t.text_key)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [
                TeacherResponse(text, model, as_utc(created))
                for text, model, created in await connection.execute(query)
            ]

    async def save(
        self,
        team: str,
        prompt: Sequence[ChatMessage],
        responses: Sequence[str],
        model: str | None = None,
    ) -> int:
        """Add responses; those already there are left as they are. Returns how many were new."""
        return await self._saving.submit(
            TeacherResponses(team, tuple(prompt), tuple(responses), model)
        )

    async def drain(self) -> None:
        """Wait until everything handed in is stored: what a teacher said was paid for."""
        await self._saving.drain()

    async def _save(self, given: Sequence[TeacherResponses]) -> list[int]:
        created = now()
        asked: dict[str, dict[str, Any]] = {}
        said: dict[str, dict[str, Any]] = {}
        bank: dict[tuple[str, str, str], dict[str, Any]] = {}
        places = []
        for deposit in given:
            key = prompt_key(deposit.prompt)
            own = [(deposit.team, key, text_key(text)) for text in deposit.responses]
            places.append(
                [
                    place
                    for place in dict.fromkeys(own)
                    if place not in self._saved and place not in bank
                ]
            )
            asked[key] = {"key": key, "messages": list(deposit.prompt), "created_at": created}
            for place, text in zip(own, deposit.responses, strict=True):
                said[place[2]] = {"key": place[2], "text": text, "created_at": created}
                bank.setdefault(
                    place,
                    {
                        "team": deposit.team,
                        "prompt_key": key,
                        "text_key": place[2],
                        "model": deposit.model,
                        "created_at": created,
                    },
                )
        new = {place: row for place, row in bank.items() if place not in self._saved}
        added: set[tuple[str, str, str]] = set()
        if new:
            rows = await self._db.write(
                team_scope(*(deposit.team for deposit in given)),
                self._save_all,
                {
                    "prompts": self._db.pack([asked[key] for key in sorted(asked)]),
                    "texts": self._db.pack([said[key] for key in sorted(said)]),
                    "teacher_responses": self._db.pack([new[place] for place in sorted(new)]),
                },
            )
            added = {(row.team, row.prompt_key, row.text_key) for row in rows}
            self._saved.update(dict.fromkeys(new))
            while len(self._saved) > REMEMBERED:
                self._saved.pop(next(iter(self._saved)))
        return [len(added.intersection(own)) for own in places]
