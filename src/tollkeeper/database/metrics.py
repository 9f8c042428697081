"""Databases in the exposition: read when scraped, so that no statement pays for it.

What OpenTelemetry has a name for (semantic conventions, database client metrics) is called by it,
as its "Prometheus and OpenMetrics compatibility" maps names: dots become underscores, the unit is
appended, `_total` to counters. All else is `database_*`. What is not known is NaN.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from tollkeeper.database.histogram import Histogram
from tollkeeper.database.source import PoolDurations, Source
from tollkeeper.database.status import DatabaseStatus, Health, HostState, PoolStatus
from tollkeeper.kernel.breaker import BreakerState

_POOL = ("db_namespace", "db_client_connection_pool_name")
_OURS = ("database", "pool")

_PoolFigure = tuple[str, str, Callable[[PoolStatus], float | None]]

_OTEL_GAUGES: tuple[_PoolFigure, ...] = (
    ("max", "Most connections.", lambda pool: pool.size),
    ("idle_min", "Connections that are kept open.", lambda pool: pool.minimum),
    ("pending_requests", "Callers that wait for a connection.", lambda pool: pool.waiting),
)
_GAUGES: tuple[_PoolFigure, ...] = (
    ("opening", "Connections being opened.", lambda pool: pool.opening),
    ("waiting_limit", "Callers that may wait.", lambda pool: pool.max_waiting),
    ("generation", "Grows when all connections are changed.", lambda pool: pool.generation),
    ("reuse_ratio", "Acquires served by a used connection.", lambda pool: pool.reuse_ratio),
    ("efficiency_ratio", "Acquires that did not wait.", lambda pool: pool.efficiency_ratio),
)
_TOTALS: tuple[_PoolFigure, ...] = (
    ("acquires", "Connections handed out.", lambda pool: pool.acquired_total),
    ("acquires_waited", "Acquires that had to wait.", lambda pool: pool.waited_total),
    ("acquires_refused", "Acquires refused at once.", lambda pool: pool.refused_total),
    ("acquires_nested", "Acquires by who held one.", lambda pool: pool.nested_total),
    ("connections_lost", "Ended by server or network.", lambda pool: pool.lost_total),
    ("connections_retired", "Ended by us.", lambda pool: pool.retired_total),
    ("connections_held_long", "Held for suspiciously long.", lambda pool: pool.held_long_total),
)
_DURATIONS: tuple[tuple[str, str, Callable[[PoolDurations], Histogram]], ...] = (
    ("create_time", "Time to open a connection.", lambda pool: pool.create_times),
    ("wait_time", "Time to obtain a connection.", lambda pool: pool.wait_times),
    ("use_time", "Time a connection was held.", lambda pool: pool.use_times),
)


class DatabaseCollector(Collector):
    """Exposes every database of a process."""

    def __init__(self, sources: Sequence[Source], registry: CollectorRegistry) -> None:
        self._sources = tuple(sources)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Read all figures now."""
        statuses = [source.status() for source in self._sources]
        yield from _pools(statuses)
        yield from _durations(self._sources, statuses)
        yield from _databases(self._sources, statuses)
        yield from _breakers(statuses)
        yield from _hosts(statuses)


def _pools(statuses: Sequence[DatabaseStatus]) -> Iterator[Metric]:
    pools = [((status.name, pool.name), pool) for status in statuses for pool in status.pools]
    count = GaugeMetricFamily(
        "db_client_connection_count",
        "Connections by state.",
        labels=(*_POOL, "db_client_connection_state"),
    )
    timeouts = CounterMetricFamily(
        "db_client_connection_timeouts", "Acquires that gave up.", labels=_POOL
    )
    connects = CounterMetricFamily(
        "database_pool_connects", "Attempts to open a connection.", labels=(*_OURS, "result")
    )
    for labels, pool in pools:
        count.add_metric((*labels, "idle"), pool.idle)
        count.add_metric((*labels, "used"), pool.in_use)
        timeouts.add_metric(labels, pool.timeouts_total)
        connects.add_metric((*labels, "opened"), pool.opened_total)
        connects.add_metric((*labels, "failed"), pool.failed_opens_total)
    yield from (count, timeouts, connects)
    for prefix, names, figures, kind in (
        ("db_client_connection", _POOL, _OTEL_GAUGES, GaugeMetricFamily),
        ("database_pool", _OURS, _GAUGES, GaugeMetricFamily),
        ("database_pool", _OURS, _TOTALS, CounterMetricFamily),
    ):
        for name, meaning, figure in figures:
            family = kind(f"{prefix}_{name}", meaning, labels=names)
            for labels, pool in pools:
                family.add_metric(labels, _known(figure(pool)))
            yield family


def _durations(sources: Sequence[Source], statuses: Sequence[DatabaseStatus]) -> Iterator[Metric]:
    named = list(zip(sources, statuses, strict=True))
    for name, meaning, durations in _DURATIONS:
        family = HistogramMetricFamily(
            f"db_client_connection_{name}_seconds", meaning, labels=_POOL
        )
        for source, status in named:
            for pool, view in source.pools.items():
                _add(family, (status.name, pool), durations(view))
        yield family
    operations = HistogramMetricFamily(
        "db_client_operation_duration_seconds",
        "How long statements ran.",
        labels=("db_system_name", "db_namespace"),
    )
    checks = HistogramMetricFamily(
        "database_health_check_seconds", "How long health checks took.", labels=("database",)
    )
    for source, status in named:
        _add(operations, ("postgresql", status.name), source.operations)
        _add(checks, (status.name,), source.checks)
    yield from (operations, checks)


def _databases(sources: Sequence[Source], statuses: Sequence[DatabaseStatus]) -> Iterator[Metric]:
    health = GaugeMetricFamily(
        "database_health", "1 for what the last checks add up to.", labels=("database", "state")
    )
    budget = GaugeMetricFamily(
        "database_connection_budget",
        "Most connections this process may open, as the server allows.",
        labels=("database",),
    )
    slow = CounterMetricFamily(
        "database_slow_queries", "Statements that took too long.", labels=("database",)
    )
    for source, status in zip(sources, statuses, strict=True):
        _add_state(health, (status.name,), Health, status.health)
        budget.add_metric((status.name,), _known(status.budget))
        slow.add_metric((status.name,), source.slow.total)
    yield from (health, budget, slow)


def _breakers(statuses: Sequence[DatabaseStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "database_breaker_state",
        "1 for the state a breaker is in.",
        labels=("database", "access", "state"),
    )
    openings = CounterMetricFamily(
        "database_breaker_openings", "How often a breaker opened.", labels=("database", "access")
    )
    for status in statuses:
        for breaker in status.breakers:
            labels = (status.name, breaker.access.value)
            _add_state(state, labels, BreakerState, breaker.state)
            openings.add_metric(labels, breaker.opened_total)
    yield from (state, openings)


def _hosts(statuses: Sequence[DatabaseStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "database_host_state",
        "1 for what a host last said of itself.",
        labels=("database", "host", "state"),
    )
    lag = GaugeMetricFamily(
        "database_replication_lag_seconds",
        "How far a standby is behind; of a primary, its slowest standby.",
        labels=("database", "host"),
    )
    for status in statuses:
        for host in status.hosts:
            _add_state(state, (status.name, host.host), HostState, host.state)
            lag.add_metric((status.name, host.host), _known(host.lag_s))
    yield from (state, lag)


def _add_state(
    family: GaugeMetricFamily, labels: tuple[str, ...], kinds: type[StrEnum], state: StrEnum
) -> None:
    """Add one series for each state there is: 1 for the one that holds."""
    for kind in kinds:
        family.add_metric((*labels, kind.value), float(kind is state))


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    """Add a histogram, whose buckets are cumulative in the exposition."""
    below, buckets = 0, []
    edges = [*(str(edge) for edge in histogram.edges), "+Inf"]
    for edge, count in zip(edges, histogram.counts, strict=True):
        below += count
        buckets.append((edge, float(below)))
    family.add_metric(labels, buckets, sum_value=histogram.sum_s)


def _known(figure: float | None) -> float:
    return math.nan if figure is None else figure
