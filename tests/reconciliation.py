"""What tests of reconciliation share: a reconciler as the worker has it, and a metric by name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.ledger import Ledger

from tollkeeper.credits.evidence import EvidenceFolder
from tollkeeper.credits.reconciler import Reconciler
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import SESSION_SETTINGS, ReconciliationStore
from tollkeeper.database.connect import connector
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
    try:
        yield Reconciler(
            pool,
            ReconciliationStore(),
            ledger.service,
            clock=clock,
            metrics=ReconciliationMetrics(registry or CollectorRegistry()),
            evidence=EvidenceFolder(folder, software="tollkeeper under test"),
            share=0.05,
            freeze_limit=freeze_limit,
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
