"""The teacher bank: responses of the model that is distilled, by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from markscheme_server.domain.hashing import ChatMessage, prompt_key
from markscheme_server.domain.trajectory import Response, response_key
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import as_utc, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import prompts, teacher_responses, texts
from markscheme_server.store.texts import response_row, stored_response

MAX_REMEMBERED = 100_000
"""Teacher responses that a process remembers as stored."""


@dataclass(frozen=True, slots=True)
class TeacherResponse:
    """One response of the bank; ``model`` wrote it, where that is known."""

    response: Response
    model: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TeacherResponses:
    """Responses to one prompt, to be stored."""

    team: str
    prompt: tuple[ChatMessage, ...]
    responses: tuple[Response, ...]
    model: str | None


class TeacherBank:
    """Teacher responses by prompt."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._saving: Batcher[TeacherResponses, int] = Batcher(database, self._save)
        self._saved: dict[tuple[str, str, str], None] = {}
        """Responses known to be stored: training steps send the same ones again and again."""
        t = teacher_responses.c
        self._save_all = database.combine(
            *(database.insert_rows(table).on_conflict_do_nothing() for table in (prompts, texts)),
            database.insert_rows(teacher_responses)
            .on_conflict_do_nothing()
            .returning(t.team, t.prompt_key, t.text_key),
        )

    async def find(self, team: str, prompt: str) -> list[TeacherResponse]:
        """Return the team's teacher responses for a prompt, oldest first."""
        t = teacher_responses.c
        query = (
            sa.select(texts.c.text, texts.c.messages, t.model, t.created_at)
            .join(teacher_responses, t.text_key == texts.c.key)
            .where(t.team == team, t.prompt_key == prompt)
            .order_by(t.created_at, t.text_key)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [
                TeacherResponse(stored_response(text, messages), model, as_utc(created))
                for text, messages, model, created in await connection.execute(query)
            ]

    async def save(
        self,
        team: str,
        prompt: Sequence[ChatMessage],
        responses: Sequence[Response],
        model: str | None = None,
    ) -> int:
        """Add responses; return how many are new. Existing ones are left as they are."""
        return await self._saving.submit(
            TeacherResponses(team, tuple(prompt), tuple(responses), model)
        )

    async def _save(self, batch: Sequence[TeacherResponses]) -> list[int]:
        created = now()
        prompt_rows: dict[str, dict[str, Any]] = {}
        text_rows: dict[str, dict[str, Any]] = {}
        bank_rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        candidates = []  # per item, the keys (team, prompt, text) that it may be the first to add
        for item in batch:
            key = prompt_key(item.prompt)
            keys = [(item.team, key, response_key(response)) for response in item.responses]
            candidates.append(
                [k for k in dict.fromkeys(keys) if k not in self._saved and k not in bank_rows]
            )
            prompt_rows[key] = {"key": key, "messages": list(item.prompt), "created_at": created}
            for bank_key, response in zip(keys, item.responses, strict=True):
                text_rows[bank_key[2]] = response_row(bank_key[2], response, created)
                bank_rows.setdefault(
                    bank_key,
                    {
                        "team": item.team,
                        "prompt_key": key,
                        "text_key": bank_key[2],
                        "model": item.model,
                        "created_at": created,
                    },
                )
        new = {key: row for key, row in bank_rows.items() if key not in self._saved}
        added: set[tuple[str, str, str]] = set()
        if new:
            # Sorted, so that two writers of the same rows queue instead of deadlocking.
            rows = await self._db.write(
                team_scope(*(item.team for item in batch)),
                self._save_all,
                {
                    "prompts": self._db.pack([prompt_rows[key] for key in sorted(prompt_rows)]),
                    "texts": self._db.pack([text_rows[key] for key in sorted(text_rows)]),
                    "teacher_responses": self._db.pack([new[key] for key in sorted(new)]),
                },
            )
            added = {(team, prompt, text) for team, prompt, text in rows}
            # Only after the commit: what a failed transaction did not store must be sent again.
            self._saved.update(dict.fromkeys(new))
            while len(self._saved) > MAX_REMEMBERED:
                self._saved.pop(next(iter(self._saved)))
        return [len(added.intersection(keys)) for keys in candidates]
