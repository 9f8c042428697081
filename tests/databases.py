"""Databases as their process would state them, built from values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tests.clocks import SetClock

from tollkeeper.database.histogram import Histogram
from tollkeeper.database.slow import SlowQueries
from tollkeeper.database.status import (
    Access,
    BreakerStatus,
    DatabaseStatus,
    Health,
    HostState,
    HostStatus,
    PoolStatus,
    Probe,
)
from tollkeeper.kernel.breaker import BreakerState

CHECKED_AT = datetime(2026, 3, 1, 11, 59, 57, tzinfo=UTC)
"""Three seconds before a `SetClock` begins."""

PRIMARY = HostStatus(
    host="db1:5432", state=HostState.PRIMARY, is_writes=True, is_reads=False, latency_s=0.0012,
    lag_s=0.5, probe=Probe.WRITTEN, version="18.1", timeline=2, checked_at=CHECKED_AT, fault=None,
)  # fmt: skip
OFFLINE = HostStatus(
    host="db2:5432", state=HostState.OFFLINE, is_writes=False, is_reads=True, latency_s=None,
    lag_s=None, probe=Probe.SKIPPED, version=None, timeline=None, checked_at=None,
    fault="connection refused",
)  # fmt: skip
WRITES = BreakerStatus(
    access=Access.WRITE, state=BreakerState.CLOSED, retry_after_s=0.0, opened_total=0
)
READS = BreakerStatus(
    access=Access.READ, state=BreakerState.OPEN, retry_after_s=12.3, opened_total=4
)
LANES = PoolStatus(
    name="lanes", access=Access.WRITE, size=10, minimum=1, open=3, idle=2, in_use=1, opening=1,
    waiting=4, max_waiting=100, generation=5, acquired_total=1_000, waited_total=50,
    timeouts_total=7, refused_total=8, opened_total=10, failed_opens_total=11, lost_total=12,
    retired_total=13, nested_total=14, held_long_total=15,
)  # fmt: skip
FRESH = PoolStatus(
    name="reads", access=Access.READ, size=4, minimum=0, open=0, idle=0, in_use=0, opening=0,
    waiting=0, max_waiting=100, generation=0, acquired_total=0, waited_total=0, timeouts_total=0,
    refused_total=0, opened_total=0, failed_opens_total=0, lost_total=0, retired_total=0,
    nested_total=0, held_long_total=0,
)  # fmt: skip
HEALTHY = DatabaseStatus(
    name="credits", health=Health.HEALTHY, checked_at=CHECKED_AT, budget=24,
    hosts=(PRIMARY,), breakers=(WRITES, replace(READS, state=BreakerState.CLOSED)), pools=(LANES,),
)  # fmt: skip
DOWN = DatabaseStatus(
    name="access", health=Health.DOWN, checked_at=None, budget=None, hosts=(OFFLINE,),
    breakers=(WRITES, READS), pools=(FRESH,),
)  # fmt: skip


@dataclass(frozen=True)
class PoolTimes:
    """The durations of a pool."""

    wait_times: Histogram = field(default_factory=Histogram)
    use_times: Histogram = field(default_factory=Histogram)
    create_times: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class StatedDatabase:
    """A database that stands as it was said to."""

    stated: DatabaseStatus
    pools: Mapping[str, PoolTimes]
    slow: SlowQueries
    operations: Histogram = field(default_factory=Histogram)
    checks: Histogram = field(default_factory=Histogram)

    def status(self) -> DatabaseStatus:
        return self.stated


def stated(status: DatabaseStatus, clock: SetClock, *, threshold_s: float = 0.1) -> StatedDatabase:
    """Return a database that stands like this, and whose statements were quick so far."""
    return StatedDatabase(
        stated=status,
        pools={pool.name: PoolTimes() for pool in status.pools},
        slow=SlowQueries(threshold_s=threshold_s, clock=clock, name=status.name),
    )
