"""The worker's instrument of alerts: how many are open, as the database has it.

What the services fire they count themselves (`metrics.py`).
"""

from prometheus_client import CollectorRegistry, Gauge

from tollkeeper.credits.alert_store import AlertStore
from tollkeeper.database.pool import Pool


class OpenAlerts:
    """Counts the open alerts when it is told to; every worker shows the same."""

    def __init__(self, pool: Pool, store: AlertStore, registry: CollectorRegistry) -> None:
        self._pool = pool
        self._store = store
        self._open = Gauge(
            "credits_alerts_open",
            "Low-balance alerts that stand and nobody has acknowledged.",
            registry=registry,
        )
        self._open.set(float("nan"))  # not known yet

    async def count(self) -> None:
        """Count once."""
        async with self._pool.connection() as connection:
            self._open.set(await self._store.count_open(connection))
