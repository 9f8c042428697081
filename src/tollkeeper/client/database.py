"""Typed calls about the databases of a service; they need a key with the scope `admin`.

A service may be several processes on one port: the one that answers speaks for itself, and `pid`
says which it was. Durations are seconds; what has not happened yet is None.
"""

from datetime import datetime

import msgspec

from tollkeeper.client.caller import Caller

SLOW_LIMIT = 1_000
"""Most slow statements in an answer."""


class Host(msgspec.Struct, frozen=True):
    """One host of a database, as its last check found it."""

    host: str
    state: str
    is_writes: bool
    is_reads: bool
    latency_s: float | None
    lag_s: float | None
    probe: str
    version: str | None
    timeline: int | None
    checked_at: datetime | None
    fault: str | None


class Breaker(msgspec.Struct, frozen=True):
    """Whether connections for `access` are asked for at all."""

    access: str
    state: str
    retry_after_s: float
    opened_total: int


class Pool(msgspec.Struct, frozen=True):
    """A pool of connections; what ends in `_total` only grows."""

    name: str
    access: str
    size: int
    minimum: int
    open: int
    idle: int
    in_use: int
    opening: int
    waiting: int
    max_waiting: int
    generation: int
    acquired_total: int
    waited_total: int
    timeouts_total: int
    refused_total: int
    opened_total: int
    failed_opens_total: int
    lost_total: int
    retired_total: int
    nested_total: int
    held_long_total: int
    reuse_ratio: float | None
    efficiency_ratio: float | None


class Database(msgspec.Struct, frozen=True):
    """One database as a process sees it."""

    name: str
    health: str
    checked_at: datetime | None
    budget: int | None
    tuning: str | None
    hosts: tuple[Host, ...]
    breakers: tuple[Breaker, ...]
    pools: tuple[Pool, ...]


class Databases(msgspec.Struct, frozen=True):
    """The databases of the process that answered, when it answered."""

    pid: int
    at: datetime
    databases: tuple[Database, ...]


class SlowQuery(msgspec.Struct, frozen=True):
    """A statement that was slow; `duration_s` is wait and run."""

    database: str
    at: datetime
    statement: str
    fingerprint: str
    types: tuple[str, ...]
    duration_s: float
    wait_s: float
    run_s: float
    failed: str | None = None
    request_id: str | None = None


class SlowStatement(msgspec.Struct, frozen=True):
    """How often a statement was slow."""

    database: str
    statement: str
    fingerprint: str
    count: int
    failed: int
    sum_s: float
    longest_s: float
    last_at: datetime


class SlowQueries(msgspec.Struct, frozen=True):
    """The last slow statements, newest first, and those that took most time."""

    pid: int
    at: datetime
    threshold_s: float | None
    total: int
    items: tuple[SlowQuery, ...]
    statements: tuple[SlowStatement, ...]


class DatabaseClient(Caller):
    """The databases of the service at a URL: see `Caller` for connections, clock and retries."""

    async def databases(self) -> Databases:
        """Return how each database stands."""
        return self._decode(await self._call("GET", "/v1/database"), Databases)

    async def slow_queries(self, *, limit: int = SLOW_LIMIT) -> SlowQueries:
        """Return the last slow statements, newest first, at most `limit` of them."""
        path = f"/v1/database/slow-queries?limit={limit}"
        return self._decode(await self._call("GET", path), SlowQueries)
