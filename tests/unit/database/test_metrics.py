"""What the exposition says of databases."""

import math

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tests.clocks import SetClock
from tests.databases import DOWN, HEALTHY, StatedDatabase, stated
from tests.exposition import undocumented

from tollkeeper.database.metrics import DatabaseCollector
from tollkeeper.telemetry.metrics import exposition

Series = dict[str, float]
POOL, NAMESPACE = 'db_client_connection_pool_name="lanes"', 'db_namespace="credits"'
LANES = f"{POOL},{NAMESPACE}"
STATE = "db_client_connection_state"


def series_of(*databases: StatedDatabase) -> Series:
    """Return every series of the exposition, its labels in order of their names."""
    registry = CollectorRegistry(auto_describe=True)
    DatabaseCollector(databases, registry)
    text, _ = exposition(registry)
    found: Series = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{sample.labels[name]}"' for name in sorted(sample.labels))
            name = f"{sample.name}{{{labels}}}"
            assert name not in found, "Prometheus refuses a series that is given twice"
            found[name] = sample.value
    return found


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (2, f"db_client_connection_count{{{POOL},{STATE}='idle',{NAMESPACE}}}"),
        (1, f"db_client_connection_count{{{POOL},{STATE}='used',{NAMESPACE}}}"),
        (10, f"db_client_connection_max{{{LANES}}}"),
        (1, f"db_client_connection_idle_min{{{LANES}}}"),
        (4, f"db_client_connection_pending_requests{{{LANES}}}"),
        (7, f"db_client_connection_timeouts_total{{{LANES}}}"),
        (10, 'database_pool_connects_total{database="credits",pool="lanes",result="opened"}'),
        (11, 'database_pool_connects_total{database="credits",pool="lanes",result="failed"}'),
        (12, 'database_pool_connections_lost_total{database="credits",pool="lanes"}'),
        (13, 'database_pool_connections_retired_total{database="credits",pool="lanes"}'),
        (14, 'database_pool_acquires_nested_total{database="credits",pool="lanes"}'),
        (15, 'database_pool_connections_held_long_total{database="credits",pool="lanes"}'),
        (1_000, 'database_pool_acquires_total{database="credits",pool="lanes"}'),
        (50, 'database_pool_acquires_waited_total{database="credits",pool="lanes"}'),
        (8, 'database_pool_acquires_refused_total{database="credits",pool="lanes"}'),
        (0.99, 'database_pool_reuse_ratio{database="credits",pool="lanes"}'),
        (1 - 50 / 1_007, 'database_pool_efficiency_ratio{database="credits",pool="lanes"}'),
        (1, 'database_pool_opening{database="credits",pool="lanes"}'),
        (100, 'database_pool_waiting_limit{database="credits",pool="lanes"}'),
        (5, 'database_pool_generation{database="credits",pool="lanes"}'),
        (24, 'database_connection_budget{database="credits"}'),
        (0.5, 'database_replication_lag_seconds{database="credits",host="db1:5432"}'),
        (4, 'database_breaker_openings_total{access="read",database="access"}'),
        (0, 'database_slow_queries_total{database="credits"}'),
    ],
)  # fmt: skip
def test_each_figure_has_its_name(clock: SetClock, expected: float, name: str) -> None:
    found = series_of(stated(HEALTHY, clock), stated(DOWN, clock))

    assert expected == pytest.approx(found[name.replace("'", '"')])


def test_a_state_is_one_of_series_that_are_all_there(clock: SetClock) -> None:
    found = series_of(stated(HEALTHY, clock), stated(DOWN, clock))

    def states(name: str, **labels: str) -> dict[str, float]:
        given = [f'{label}="{value}"' for label, value in labels.items()]
        return {
            series.rpartition('state="')[2].partition('"')[0]: value
            for series, value in found.items()
            if series.startswith(f"{name}{{") and all(each in series for each in given)
        }

    assert {"unknown": 0, "healthy": 0, "suspect": 0, "down": 1} == states(
        "database_health", database="access"
    )
    assert {"closed": 0, "open": 1, "half_open": 0} == states(
        "database_breaker_state", database="access", access="read"
    )
    assert {"closed": 1, "open": 0, "half_open": 0} == states(
        "database_breaker_state", database="access", access="write"
    )
    assert {"unknown": 0, "offline": 0, "primary": 1, "read_only": 0, "standby": 0} == states(
        "database_host_state", host="db1:5432"
    )


def test_what_is_not_known_is_no_number(clock: SetClock) -> None:
    found = series_of(stated(DOWN, clock))

    assert [True] * 4 == [
        math.isnan(found[name])
        for name in (
            'database_connection_budget{database="access"}',
            'database_replication_lag_seconds{database="access",host="db2:5432"}',
            'database_pool_reuse_ratio{database="access",pool="reads"}',
            'database_pool_efficiency_ratio{database="access",pool="reads"}',
        )
    ]


def test_durations_are_cumulative_buckets_in_seconds(clock: SetClock) -> None:
    database = stated(HEALTHY, clock)
    for duration_s in (0.0005, 0.001, 0.003, 20.0):
        database.pools["lanes"].wait_times.observe(duration_s)
    database.pools["lanes"].use_times.observe(0.2)
    database.pools["lanes"].create_times.observe(0.3)
    database.operations.observe(0.4)
    database.checks.observe(0.6)
    database.slow.note("SELECT 1", wait_s=0, run_s=1)

    found = series_of(database)

    def bucket(edge: str) -> float:
        return found[f'db_client_connection_wait_time_seconds_bucket{{{LANES},le="{edge}"}}']

    assert [2, 3, 3, 4] == [bucket(edge) for edge in ("0.001", "0.005", "10.0", "+Inf")]
    assert 4 == found[f"db_client_connection_wait_time_seconds_count{{{LANES}}}"]
    assert 20.0045 == pytest.approx(found[f"db_client_connection_wait_time_seconds_sum{{{LANES}}}"])
    assert 0.2 == found[f"db_client_connection_use_time_seconds_sum{{{LANES}}}"]
    assert 0.3 == found[f"db_client_connection_create_time_seconds_sum{{{LANES}}}"]
    assert (
        0.4
        == found[
            'db_client_operation_duration_seconds_sum{db_namespace="credits",db_system_name="postgresql"}'
        ]
    )
    assert 0.6 == found['database_health_check_seconds_sum{database="credits"}']
    assert 1 == found['database_slow_queries_total{database="credits"}']


def test_no_series_appears_on_first_use(clock: SetClock) -> None:
    database = stated(HEALTHY, clock)
    before = series_of(database)
    for histogram in (database.operations, database.checks):
        histogram.observe(1)
    database.slow.note("SELECT 1", wait_s=0, run_s=1)

    assert set(before) == set(series_of(database))
    assert before != series_of(database)


def test_every_metric_is_in_the_guide(clock: SetClock) -> None:
    found = set(series_of(stated(HEALTHY, clock)))

    assert len(found) > 90
    assert [] == undocumented(found)
    assert ["database_nowhere_total"] == undocumented({*found, 'database_nowhere_total{a="b"}'})
