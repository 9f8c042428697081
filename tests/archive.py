"""What tests of the archive share: an archivist as the worker has it, and a ledger of quarters."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from prometheus_client import CollectorRegistry
from tests.database_clock import make_settable, set_ahead
from tests.ledger import Ledger, consume, held_by, running_ledger, topup, words

from tollkeeper.credits import requests
from tollkeeper.credits.archive_store import SESSION_SETTINGS, ArchiveStore
from tollkeeper.credits.archivist import Archivist
from tollkeeper.credits.life_metrics import ArchiveMetrics
from tollkeeper.credits.note import SigningKey
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import TransactionId

QUARTER = timedelta(days=91)
EVERY_SEAL = timedelta(0)
"""For rounds that check all seals, however new."""

PARTITIONS_OF = (
    "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = $1::text::regclass ORDER BY 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """A ledger whose first transactions are three quarters and more old, and what they made."""

    ledger: Ledger
    owner: Connection
    hold_id: TransactionId
    consumption_id: TransactionId

    async def partitions(self, table: str) -> list[str]:
        return [row["relname"] for row in await self.owner.fetch(PARTITIONS_OF, table)]


@asynccontextmanager
async def aged_ledger(dsn: str) -> AsyncIterator[Aged]:
    """Run a ledger with `ann`, `bob` and `cleo`: in five quarters, in one old one, and in none old.

    Of ann a hold is open since the first quarter, and half of a consumption was not refunded.
    """
    owner = await connector(dsn, settings={"application_name": "owner"})()
    await make_settable(owner)
    try:
        async with running_ledger(dsn) as ledger:
            await set_ahead(owner, -7 * QUARTER)
            await ledger.open_with(100, "ann", "bob")
            hold, consumption, _ = await ledger.execute(
                requests.reserve(words("ann"), amount=20, expires_in_s=10 * 365 * 86_400),
                consume("ann", 10),
                consume("bob", 1),
            )
            for quarters in (6, 5, 4):
                await set_ahead(owner, -quarters * QUARTER)
                await ledger.execute(consume("ann", quarters), topup("ann", 1))
            await set_ahead(owner, timedelta(0))
            await ledger.open_with(50, "cleo")
            await ledger.execute(consume("ann", 2), topup("ann", 3))
            yield Aged(
                ledger=ledger,
                owner=owner,
                hold_id=held_by(hold),
                consumption_id=held_by(consumption),
            )
    finally:
        await owner.close()


@asynccontextmanager
async def running_archivist(
    dsn: str,
    *,
    key: SigningKey | None = None,
    after_quarters: int = 2,
    registry: CollectorRegistry | None = None,
    attempts: Backoff | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Archivist]:
    pool = Pool(connector(dsn, settings=SESSION_SETTINGS), size=1, clock=SystemClock())
    try:
        yield Archivist(
            pool, ArchiveStore(), key=key, clock=clock or SystemClock(), jitter=lambda: 0.0,
            metrics=ArchiveMetrics(registry or CollectorRegistry()),
            after_quarters=after_quarters,
            attempts=attempts or Backoff(first_ms=1.0, ceiling_ms=1.0, retries=0),
        )  # fmt: skip
    finally:
        await pool.close()
