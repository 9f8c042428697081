"""What goes over the wire about databases: how they stand, and their slow statements.

Made from the database layer's values by the names of their fields; what they mean is said here, for
callers. No view has a place for a value of a statement. Durations are seconds. Pure.
"""

import heapq
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from tollkeeper.database.slow import SlowQueries, SlowQuery, SlowStatement
from tollkeeper.database.status import Access, DatabaseStatus, Health, HostState, Probe
from tollkeeper.kernel.breaker import BreakerState

STATEMENTS_SHOWN = 20
"""Statements whose totals are answered: those that took most time."""

Seconds = Annotated[float, Meta(description="seconds")]
Moment = Annotated[datetime, Meta(description="UTC, RFC 3339")]
Answered = Annotated[Moment, Meta(description="when this was answered")]
Pid = Annotated[int, Meta(description="which process answered: each has its own connections")]
DatabaseName = Annotated[str, Meta(description="whose database it is", examples=["credits"])]
Ratio = Annotated[float, Meta(ge=0, le=1)]


class HostView(msgspec.Struct):
    """One host of a database, as its last check found it."""

    host: str
    state: HostState
    is_writes: Annotated[bool, Meta(description="connections for writes are opened here")]
    is_reads: Annotated[bool, Meta(description="connections for reads are opened here")]
    latency_s: Annotated[Seconds | None, Meta(description="response time of the last check")]
    lag_s: Annotated[
        Seconds | None,
        Meta(description="how far a standby is behind; of a primary, its slowest standby"),
    ]
    probe: Annotated[Probe, Meta(description="what came of writing a row")]
    version: Annotated[str | None, Meta(description="of PostgreSQL")]
    timeline: Annotated[int | None, Meta(description="grows with each promotion")]
    checked_at: Moment | None
    fault: Annotated[str | None, Meta(description="what was wrong, for people")]


class BreakerView(msgspec.Struct):
    """Whether connections are asked for at all: reads and writes have a breaker each."""

    access: Access
    state: BreakerState
    retry_after_s: Annotated[Seconds, Meta(description="until it is tried again; 0 when closed")]
    opened_total: int


class PoolView(msgspec.Struct):
    """A pool of connections; what ends in `_total` only grows."""

    name: str
    access: Access
    size: Annotated[int, Meta(description="most connections")]
    minimum: Annotated[int, Meta(description="so many are kept open")]
    open: int
    idle: int
    in_use: int
    opening: int
    waiting: Annotated[int, Meta(description="callers that wait for a connection")]
    max_waiting: int
    generation: Annotated[int, Meta(description="grows when all connections are changed")]
    acquired_total: int
    waited_total: Annotated[int, Meta(description="acquires that had to wait")]
    timeouts_total: Annotated[int, Meta(description="acquires that gave up")]
    refused_total: Annotated[int, Meta(description="acquires refused at once")]
    opened_total: int
    failed_opens_total: int
    lost_total: Annotated[int, Meta(description="ended by the server or the network")]
    retired_total: Annotated[int, Meta(description="ended by us")]
    nested_total: Annotated[int, Meta(description="acquires by who held a connection")]
    held_long_total: int
    reuse_ratio: Annotated[
        Ratio | None, Meta(description="share of acquires that needed no new connection")
    ]
    efficiency_ratio: Annotated[
        Ratio | None, Meta(description="share of acquires that did not wait")
    ]


class DatabaseView(msgspec.Struct):
    """One database as this process sees it."""

    name: DatabaseName
    health: Annotated[Health, Meta(description="what the last checks add up to")]
    checked_at: Moment | None
    budget: Annotated[
        int | None,
        Meta(description="most connections the tuned pool may have, as the server allows"),
    ]
    tuning: Annotated[
        str | None, Meta(description="why the tuned pool has its size, as the last window showed")
    ]
    hosts: list[HostView]
    breakers: list[BreakerView]
    pools: list[PoolView]


class DatabasesView(msgspec.Struct):
    """The databases of the process that answered."""

    pid: Pid
    at: Answered
    databases: list[DatabaseView]


class SlowQueryView(msgspec.Struct):
    """A statement that was slow."""

    database: DatabaseName
    at: Annotated[Moment, Meta(description="when it ended")]
    statement: Annotated[str, Meta(description="without values")]
    fingerprint: Annotated[str, Meta(description="of the statement; the same in the log")]
    types: Annotated[list[str], Meta(description="of its parameters, never their values")]
    duration_s: Annotated[Seconds, Meta(description="wait and run")]
    wait_s: Annotated[Seconds, Meta(description="for a connection")]
    run_s: Annotated[Seconds, Meta(description="on the server and the way there and back")]
    failed: Annotated[str | None, Meta(description="SQLSTATE, or the kind of error")]
    request_id: Annotated[str | None, Meta(description="of the request it ran for")]


class SlowStatementView(msgspec.Struct):
    """How often a statement was slow."""

    database: DatabaseName
    statement: str
    fingerprint: str
    count: int
    failed: int
    sum_s: Seconds
    longest_s: Seconds
    last_at: Moment


class SlowQueriesView(msgspec.Struct):
    """The last slow statements of the process that answered, newest first."""

    pid: Pid
    at: Answered
    threshold_s: Annotated[
        Seconds | None, Meta(description="above this a statement is slow; null: none is")
    ]
    total: Annotated[int, Meta(description="slow statements since the process started")]
    items: list[SlowQueryView]
    statements: Annotated[
        list[SlowStatementView], Meta(description="those that took most time, the costly first")
    ]


def databases_view(statuses: Sequence[DatabaseStatus], *, pid: int, now: datetime) -> DatabasesView:
    """Return how databases stand, as the API shows it."""
    views = [msgspec.convert(status, DatabaseView, from_attributes=True) for status in statuses]
    return DatabasesView(pid=pid, at=now, databases=views)


def slow_queries_view(
    databases: Sequence[SlowQueries], *, limit: int, pid: int, now: datetime
) -> SlowQueriesView:
    """Return the newest slow statements of several databases, as the API shows them."""
    queries = heapq.nlargest(
        limit,
        ((slow.name, query) for slow in databases for query in slow.latest(limit)),
        key=lambda item: item[1].at,
    )
    statements = heapq.nlargest(
        STATEMENTS_SHOWN,
        ((slow.name, each) for slow in databases for each in slow.statements(STATEMENTS_SHOWN)),
        key=lambda item: item[1].sum_s,
    )
    thresholds = [slow.threshold_s for slow in databases if slow.threshold_s is not None]
    return SlowQueriesView(
        pid=pid,
        at=now,
        threshold_s=min(thresholds, default=None),
        total=sum(slow.total for slow in databases),
        items=[_query_view(name, query) for name, query in queries],
        statements=[_statement_view(name, each) for name, each in statements],
    )


def _query_view(database: str, query: SlowQuery) -> SlowQueryView:
    return SlowQueryView(
        database=database, at=query.at, statement=query.statement, fingerprint=query.fingerprint,
        types=list(query.types), duration_s=query.duration_s, wait_s=query.wait_s,
        run_s=query.run_s, failed=query.failed, request_id=query.request_id,
    )  # fmt: skip


def _statement_view(database: str, each: SlowStatement) -> SlowStatementView:
    return SlowStatementView(
        database=database, statement=each.statement, fingerprint=each.fingerprint,
        count=each.count, failed=each.failed, sum_s=each.sum_s, longest_s=each.longest_s,
        last_at=each.last_at,
    )  # fmt: skip
