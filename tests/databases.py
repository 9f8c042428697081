"""Databases as their process would state them, built from values."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

import uvicorn
from litestar import Litestar
from litestar.types import ASGIApp
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
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import TenantId
from tollkeeper.kernel.principal import Principal
from tollkeeper.web.auth import Authentication, AuthenticationTally
from tollkeeper.web.database_api import DatabaseApi
from tollkeeper.web.problem import SHARED_PROBLEMS, exception_handlers

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
    hosts=(PRIMARY,), pools=(LANES,),
    breakers=(WRITES, replace(WRITES, access=Access.READ, opened_total=1)),
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


KEYS = {
    "operator": Principal(key_id=UUID(int=1), scopes=frozenset({"admin"}), tenant_id=None),
    "tenant": Principal(
        key_id=UUID(int=2), scopes=frozenset({"admin"}), tenant_id=TenantId("acme")
    ),
    "reader": Principal(key_id=UUID(int=3), scopes=frozenset({"credits:read"}), tenant_id=None),
}
"""Who asks, by token."""


def routes_of(databases: Sequence[StatedDatabase], clock: SetClock) -> ASGIApp:
    """Return the routes of databases behind authentication, as the process 4711."""
    api = DatabaseApi(databases, pid=4_711, clock=clock, problems=SHARED_PROBLEMS)
    application = Litestar(
        api.routes(),
        exception_handlers=exception_handlers(SHARED_PROBLEMS),
        logging_config=None,
        openapi_config=None,
    )
    return Authentication(
        application,
        principal_of=KEYS.__getitem__,
        problems=SHARED_PROBLEMS,
        clock=SystemClock(),
        tally=AuthenticationTally(),
    )


@asynccontextmanager
async def served(application: ASGIApp) -> AsyncIterator[str]:
    """Serve an application on a free loopback port while the block runs; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(application, log_config=None, access_log=False, lifespan="off")
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(10):
                while not server.started:
                    await asyncio.sleep(0.005)
            host, port = listener.getsockname()
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            await serving
