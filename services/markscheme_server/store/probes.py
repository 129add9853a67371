"""Results of ``doctor``: whether an endpoint enforces a schema, and which form to ask in."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import sqlalchemy as sa

from markscheme_server.store.engine.database import NO_TEAM, Database
from markscheme_server.store.engine.ids import now
from markscheme_server.store.tables import endpoint_probes

Form = Literal["json_schema", "json_object", "text"]
VALID_FOR = timedelta(days=7)
"""Older results are not used: the server behind a URL may have been replaced."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The result for one endpoint and model.

    ``json_schema``: ``enforced``, ``ignored`` or ``refused``; ``form``: the strictest one honoured.
    """

    endpoint: str
    model: str
    json_schema: str
    form: Form


class ProbeStore:
    """Probes by endpoint and model. They belong to no team."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, endpoint: str, model: str) -> Probe | None:
        """Return the result that is still valid, if there is one."""
        p = endpoint_probes.c
        async with self._db.reading(NO_TEAM) as connection:
            row = (
                await connection.execute(
                    sa.select(p.json_schema, p.form).where(
                        p.endpoint == endpoint, p.model == model, p.probed_at > now() - VALID_FOR
                    )
                )
            ).first()
        return None if row is None else Probe(endpoint, model, row.json_schema, row.form)

    async def save(self, probe: Probe) -> None:
        """Replace the result of the endpoint and model."""
        values = {"json_schema": probe.json_schema, "form": probe.form, "probed_at": now()}
        insert = self._db.insert(endpoint_probes).values(
            endpoint=probe.endpoint, model=probe.model, **values
        )
        async with self._db.writing(NO_TEAM) as connection:
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["endpoint", "model"], set_=values)
            )
