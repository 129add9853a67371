"""All repositories of one database."""

import asyncio
import secrets

import sqlalchemy as sa

from markscheme_server.store import tables
from markscheme_server.store.assignments import AssignmentStore
from markscheme_server.store.audit import AuditStore
from markscheme_server.store.budgets import BudgetStore
from markscheme_server.store.claims import ClaimStore
from markscheme_server.store.engine.database import NO_TEAM, PING_TIMEOUT_S, Database, create_engine
from markscheme_server.store.engine.ids import new_id
from markscheme_server.store.gathering import GatheringStore
from markscheme_server.store.idempotency import IdempotencyStore
from markscheme_server.store.judge_reports import JudgeReportStore
from markscheme_server.store.ledger import LedgerStore
from markscheme_server.store.lineage import LineageStore
from markscheme_server.store.probes import ProbeStore
from markscheme_server.store.replays import ReplayStore
from markscheme_server.store.rubric_versions import RubricVersions
from markscheme_server.store.rubrics import RubricStore
from markscheme_server.store.run_groups import RunGroupStore
from markscheme_server.store.runs import RunStore
from markscheme_server.store.teachers import TeacherBank
from markscheme_server.store.teams import TeamStore
from markscheme_server.store.usage import UsageStore
from markscheme_server.store.verdicts import VerdictStore


class Store:
    """The repositories of one database. ``owner`` names this process in its claims and holds."""

    def __init__(
        self, url: str, *, claim_lease_s: float = 8.0, hold_lease_s: float = 660.0
    ) -> None:
        self.owner = new_id("own")
        self.database = Database(create_engine(url))
        self.claims = ClaimStore(self.database, owner=self.owner, lease_s=claim_lease_s)
        self.teams = TeamStore(self.database)
        self.rubrics = RubricStore(self.database)
        self.rubric_versions = RubricVersions(self.database, self.claims)
        self.lineage = LineageStore(self.database, self.rubrics)
        self.ledger = LedgerStore(self.database)
        self.verdicts = VerdictStore(self.database, self.claims, self.ledger)
        self.assignments = AssignmentStore(self.database)
        self.runs = RunStore(self.database)
        self.judge_reports = JudgeReportStore(self.database)
        self.run_groups = RunGroupStore(self.database)
        self.replays = ReplayStore(self.database)
        self.gathering = GatheringStore(self.database, self.claims)
        self.teachers = TeacherBank(self.database)
        self.budgets = BudgetStore(
            self.database, self.ledger, owner=self.owner, lease_s=hold_lease_s
        )
        self.usage = UsageStore(self.database)
        self.probes = ProbeStore(self.database)
        self.audit = AuditStore(self.database)
        self.idempotency = IdempotencyStore(self.database, lease_s=claim_lease_s)

    async def ready(self) -> None:
        """Raise unless the database answers within `PING_TIMEOUT_S`.

        After a full disk it must also write.
        """
        await self.database.ping()
        if self.database.disk_full:
            # Any write shows whether there is room; this row is deleted at once.
            row = {"key": f"ready-{self.owner}", "owner": self.owner, "fence": 0, "expires_at": 0.0}
            claims = tables.claims
            async with (
                asyncio.timeout(PING_TIMEOUT_S),
                self.database.writing(NO_TEAM) as connection,
            ):
                await connection.execute(claims.insert().values(row))
                await connection.execute(claims.delete().where(claims.c.key == row["key"]))

    async def secret(self, name: str) -> str:
        """Return a secret of this deployment, which is generated on first use."""
        table = tables.secrets
        async with self.database.writing(NO_TEAM) as connection:
            # The first process stores its own; all of them then read that one.
            await self.database.insert_new(
                connection, table, [{"name": name, "value": secrets.token_hex(32)}]
            )
            return str(
                (
                    await connection.execute(sa.select(table.c.value).where(table.c.name == name))
                ).scalar_one()
            )

    async def drain(self) -> None:
        """Wait until all pending writes are stored."""
        await self.database.drain()

    async def close(self) -> None:
        """Close the connections."""
        await self.claims.aclose()
        await self.database.close()
