"""A pool's counters in the exposition: read when scraped, so that acquiring pays nothing."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tollkeeper.database.pool import Pool


class PoolCollector(Collector):
    """Exposes every pool of a process as `database_pool_*` with the pool's name as label."""

    def __init__(self, pools: Mapping[str, Pool], registry: CollectorRegistry) -> None:
        self._pools = dict(pools)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Read all counters now."""
        connections = GaugeMetricFamily(
            "database_pool_connections", "Connections by state.", labels=("pool", "state")
        )
        size = GaugeMetricFamily("database_pool_size", "Most connections.", labels=("pool",))
        waiting = GaugeMetricFamily("database_pool_waiting", "Waiting for one.", labels=("pool",))
        totals = {
            "acquired": CounterMetricFamily(
                "database_pool_acquired", "Connections handed out.", labels=("pool",)
            ),
            "waited": CounterMetricFamily(
                "database_pool_waited", "Acquires that had to wait.", labels=("pool",)
            ),
            "timeouts": CounterMetricFamily(
                "database_pool_timeouts", "Acquires that gave up.", labels=("pool",)
            ),
            "opened": CounterMetricFamily(
                "database_pool_opened", "Connections opened.", labels=("pool",)
            ),
            "discarded": CounterMetricFamily(
                "database_pool_discarded", "Connections thrown away.", labels=("pool",)
            ),
            "wait_seconds": CounterMetricFamily(
                "database_pool_wait_seconds", "Time spent waiting for one.", labels=("pool",)
            ),
        }
        for name, pool in self._pools.items():
            counters = pool.counters()
            connections.add_metric((name, "idle"), counters.idle)
            connections.add_metric((name, "in_use"), counters.in_use)
            size.add_metric((name,), counters.size)
            waiting.add_metric((name,), counters.waiting)
            for what, family in totals.items():
                family.add_metric((name,), getattr(counters, f"{what}_total"))
        return [connections, size, waiting, *totals.values()]
