"""What tests of reconciliation share: a worker's reconciler, on a ledger under attack."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.ledger import Ledger, consume, words

from tollkeeper.credits import errors, requests
from tollkeeper.credits.engine import Result
from tollkeeper.credits.evidence import EvidenceFolder
from tollkeeper.credits.freezer import Freezer
from tollkeeper.credits.model import Unfreeze
from tollkeeper.credits.reconciler import Reconciler
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import SESSION_SETTINGS, ReconciliationStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock


@asynccontextmanager
async def running_reconciler(
    ledger: Ledger,
    dsn: str,
    folder: Path,
    *,
    freeze_limit: int = 100,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[Reconciler]:
    clock = SystemClock()
    pool = Pool(connector(dsn, settings=SESSION_SETTINGS), size=1, clock=clock)
    store, metrics = ReconciliationStore(), ReconciliationMetrics(registry or CollectorRegistry())
    evidence = EvidenceFolder(folder, software="tollkeeper under test")
    freezer = Freezer(store, clock=clock, metrics=metrics, evidence=evidence, limit=freeze_limit)
    try:
        yield Reconciler(
            pool,
            store,
            ledger.service,
            clock=clock,
            metrics=metrics,
            freezer=freezer,
            share=0.05,
        )
    finally:
        await pool.close()


async def look_at_all(reconciler: Reconciler) -> None:
    """Let both passes come to an end."""
    while not await reconciler.recent():
        pass
    while not await reconciler.thorough():
        pass


def gauge(registry: CollectorRegistry, name: str) -> float:
    value = registry.get_sample_value(name)
    assert value is not None
    return value


@dataclass(frozen=True)
class Stage:
    """A ledger, its reconciler, and the owner's connection with the triggers off."""

    ledger: Ledger
    reconciler: Reconciler
    attacker: Connection
    registry: CollectorRegistry
    folder: Path

    async def frozen(self) -> list[str]:
        found = await self.ledger.service.frozen(None, after=0, limit=1_000)
        return sorted(freeze.account_id for freeze in found)

    async def execute(self, *operations: object) -> list[Result]:
        return await self.ledger.execute(*operations)  # type: ignore[arg-type]  # operations

    def evidence(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


@asynccontextmanager
async def running_stage(ledger: Ledger, dsn: str, folder: Path) -> AsyncIterator[Stage]:
    """`ann` has ten transactions, `bob` one."""
    registry = CollectorRegistry()
    attacker = await connector(dsn, settings={"session_replication_role": "replica"})()
    async with running_reconciler(ledger, dsn, folder, registry=registry) as running:
        await ledger.open_with(100, "ann", "bob")
        await ledger.execute(*(consume("ann", 1) for _ in range(9)))
        yield Stage(ledger, running, attacker, registry, folder)
    await attacker.close()


def unfreeze(account_id: str, reason: str = "looked into it", key: str | None = None) -> Unfreeze:
    told = words(account_id, key)
    return requests.unfreeze(
        requests.WriteWords(
            account_id=account_id, key=told.key, entropy=told.entropy, description=reason
        ),
        actor="key-of-the-operator",
    )


def refusal_of(result: Result) -> errors.AccountFrozen:
    assert isinstance(result, errors.AccountFrozen), result
    return result


async def drop_constraint(attacker: Connection, table: str, name: str) -> None:
    """Drop it also from partitions that have it as their own."""
    parts = await attacker.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass",
        table,
    )
    for each in (table, *(part for (part,) in parts)):
        await attacker.execute(f"ALTER TABLE {each} DROP CONSTRAINT IF EXISTS {table}_{name}")
