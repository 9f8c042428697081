"""Databases, pools and the check of keys from settings: what every composition begins with.

Which pools a service has, and what runs on them, is not known here.
"""

import asyncio
import random  # noqa: TID251  # a part of the composition root, where randomness comes from
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry

from tollkeeper.access.metrics import AccessCollector
from tollkeeper.access.service import AccessService
from tollkeeper.config import Settings, variable_of
from tollkeeper.database import preflight
from tollkeeper.database.database import Database
from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.limits import REPORT_HELD_S, PoolLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.slow import SlowQueries
from tollkeeper.database.status import Access
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.web.auth import AuthenticationTally
from tollkeeper.web.metrics import RequestCollector
from tollkeeper.web.request_log import RequestTally

ACCESS_ROLE = "tollkeeper_access"
"""What services check and administer API keys as."""

ACCESS_TIMEOUTS = Timeouts(statement_s=5, lock_s=2, idle_in_transaction_s=10)
"""Keys are checked while requests wait."""


SPARE_CONNECTIONS = 10
"""Of a server, left for the worker, migrations, psql and whoever looks after it."""


DECIDING = 2
"""Connections for decisions: one deployment and one look at a time, and others wait."""

BESIDE_EXPERIMENTS = DECIDING + 4
"""Connections of a service beside lanes and reads: changing experiments, decisions, checking keys,
two health checks."""

LAST_DECISIONS_S = 2.0
"""What was accepted is decided so long after the last caller has its answer or is gone."""

_log = structlog.get_logger(__name__)


class Deciding(Protocol):
    """An engine: what waits in it, and how it comes to its end."""

    @property
    def waiting(self) -> int:
        """How many items were accepted and are not decided."""
        ...

    async def drain(self) -> None:
        """Accept nothing new, and decide what was accepted."""
        ...

    async def close(self) -> None:
        """Stop at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What a request passes before any route: the check of its key, and what is counted."""

    access: AccessService
    tally: AuthenticationTally
    requests: RequestTally


@asynccontextmanager
async def opened_entrance(
    settings: Settings, registry: CollectorRegistry, keys: Database, *, clock: Clock
) -> AsyncIterator[Entrance]:
    """Lend what checks keys, with a connection of its own: a revocation is seen in time."""
    access = AccessService(keys_pool(keys, "access", settings, access=Access.READ), clock=clock)
    tally, requests = AuthenticationTally(), RequestTally()
    RequestCollector(requests, registry)
    AccessCollector(tally, registry, age_s=lambda: access.age_s, held=lambda: access.held)
    access.start()
    try:
        yield Entrance(access=access, tally=tally, requests=requests)
    finally:
        await access.close()


def open_database(settings: Settings, name: str, *, role: str | None) -> Database:
    """Return a database of the settings, to be entered; `role` is what its connections act as.

    Raises:
        ConfigurationError: its DSN is missing.
    """
    clock = SystemClock()
    dsn = dsn_of(settings, name)
    return Database(
        name,
        parse_dsn(dsn, name=variable_of(f"{name}_dsn")),
        clock=clock,
        jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
        role=role,
        pooler=settings.pooler,
        slow=SlowQueries(threshold_s=settings.slow_query_ms / 1_000, clock=clock, name=name),
    )


def keys_pool(database: Database, name: str, settings: Settings, *, access: Access) -> Pool:
    """Make a pool of one connection to the API keys."""
    return database.pool(
        name,
        access=access,
        size=1,
        role=ACCESS_ROLE,
        settings=ACCESS_TIMEOUTS.settings(),
        command_timeout_s=ACCESS_TIMEOUTS.command_s,
        limits=pool_limits(settings),
    )


def pool_limits(
    settings: Settings,
    *,
    report_held_s: float = REPORT_HELD_S,
    cut_held_s: float | None = None,
) -> PoolLimits:
    """Return the limits of a pool, as the settings have them."""
    return PoolLimits(
        acquire_timeout_s=settings.acquire_timeout_s,
        max_waiting=settings.pool_waiting,
        report_held_s=report_held_s,
        cut_held_s=cut_held_s,
    )


async def check_databases(settings: Settings, *databases: str) -> None:
    """Look once whether databases could ever be reached as configured; takes 2 s at most.

    Raises:
        ConfigurationError: a DSN is missing, or only a change of it or of its server would help.
    """
    dsns = {variable_of(f"{name}_dsn"): dsn_of(settings, name) for name in databases}
    await preflight.check(dsns, pooler=settings.pooler)


def dsn_of(settings: Settings, database: str) -> str:
    """Return the configured DSN of a database.

    Raises:
        ConfigurationError: it is not set.
    """
    dsn: str | None = getattr(settings, f"{database}_dsn")
    if dsn is None:
        raise ConfigurationError(
            problem=f"Set {variable_of(f'{database}_dsn')}, or run `tollkeeper up`."
        )
    return dsn


async def last_decisions(engine: Deciding, name: str) -> None:
    """Decide what was accepted, and stop; a database that does not answer cannot keep us.

    What stays undecided was not acknowledged, and a repeat of it is safe.
    """
    try:
        async with asyncio.timeout(LAST_DECISIONS_S):
            await engine.drain()
    except TimeoutError:
        _log.warning(f"{name}.left_undecided", operations=engine.waiting)
    await engine.close()
