"""How a database stands as one process sees it: values for metrics, `/v1/database` and people.

Nothing here decides anything. Durations are seconds; what has not happened yet is None.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tollkeeper.kernel.breaker import BreakerState


class Access(StrEnum):
    """What a pool is for: reads go on where writes cannot."""

    READ = "read"
    WRITE = "write"


class HostState(StrEnum):
    """What a host last said of itself."""

    UNKNOWN = "unknown"
    OFFLINE = "offline"
    PRIMARY = "primary"
    READ_ONLY = "read_only"
    """Not in recovery, but it refuses to write: `default_transaction_read_only`, a full disk."""
    STANDBY = "standby"


class Health(StrEnum):
    """What the last checks add up to."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    """Something went wrong since the last good check: looked at more often."""
    DOWN = "down"
    """Nothing that may be written to answers."""


class Probe(StrEnum):
    """What came of writing to the one-row table."""

    WRITTEN = "written"
    SKIPPED = "skipped"
    """Another process was writing it at this moment, so the check wrote to the log alone; or the
    host is a standby."""
    MISSING = "missing"
    """The table is not there yet: not migrated."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One host of a DSN."""

    host: str
    state: HostState
    is_writes: bool
    """Write pools connect here."""
    is_reads: bool
    """Read pools connect here."""
    latency_s: float | None
    """The last check's response time: roles, lag and write probe."""
    lag_s: float | None
    """Of a standby, how far it is behind; of a primary, its slowest standby, if it may be seen."""
    probe: Probe
    version: str | None
    timeline: int | None
    checked_at: datetime | None
    fault: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """One breaker: reads and writes have their own."""

    access: Access
    state: BreakerState
    retry_after_s: float
    opened_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """The state of a pool; fields that end in `_total` only grow."""

    name: str
    access: Access
    size: int
    """Most connections."""
    minimum: int
    """So many are kept open."""
    open: int
    idle: int
    in_use: int
    opening: int
    waiting: int
    max_waiting: int
    generation: int
    acquired_total: int
    waited_total: int
    """Acquires that were served, or gave up, after waiting."""
    timeouts_total: int
    refused_total: int
    """Acquires refused at once: too many wait, or it would take too long."""
    opened_total: int
    failed_opens_total: int
    lost_total: int
    """Connections that the server or the network ended."""
    retired_total: int
    """Connections that we ended: age, surplus, doubtful state, an expired generation."""
    nested_total: int
    held_long_total: int

    @property
    def reuse_ratio(self) -> float | None:
        """Share of acquires served by a connection that had served before; None before any."""
        if not self.acquired_total:
            return None
        return max(0.0, 1.0 - self.opened_total / self.acquired_total)

    @property
    def efficiency_ratio(self) -> float | None:
        """Share of acquires that did not wait; None before any."""
        asked = self.acquired_total + self.timeouts_total
        return 1.0 - min(self.waited_total, asked) / asked if asked else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """Everything about one database."""

    name: str
    health: Health
    checked_at: datetime | None
    budget: int | None
    """Most connections the tuned pool may have, as the server's settings allow."""
    tuning: str | None = None
    """Why the tuned pool has its size: what the last window showed."""
    hosts: tuple[HostStatus, ...]
    breakers: tuple[BreakerStatus, ...]
    pools: tuple[PoolStatus, ...]
