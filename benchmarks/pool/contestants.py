"""The pools that are measured side by side, each used as its documentation says.

Ours twice: as the services use it (health monitor, breaker, connect limit, timing, slow queries,
timeouts), and bare. asyncpg's own pool twice: as it is, and without the statement that it sends at
every release to reset the session, because we and psycopg's pool send none. psycopg's pool is in
autocommit, so that nobody pays for a BEGIN; the SQL is the same for all.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from random import Random
from typing import Any, Protocol

import asyncpg
import psycopg
import psycopg_pool
import structlog
from psycopg.rows import TupleRow

from tollkeeper.credits.store import TIMEOUTS
from tollkeeper.database.connect import connector
from tollkeeper.database.database import Database
from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.errors import PoolFull, PoolTimeout
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.database.slow import SlowQueries
from tollkeeper.database.status import Access
from tollkeeper.kernel.clock import SystemClock

SIZE = 8
"""Connections of each pool, unless a benchmark says otherwise: as many as a service has."""

QUERIES = load_queries("benchmarks.pool")

ACQUIRE_TIMEOUT_S = 30.0
"""Where the time of waiting is not what is measured."""

Got = Callable[[], None]
"""Told the moment a connection was handed out."""


class Contestant(Protocol):
    """One pool; `timeout_s` is the time in which a connection is to be had."""

    name: str
    refusals: tuple[type[Exception], ...]
    """Raised at once: there is no hope."""
    timeouts: tuple[type[Exception], ...]
    """Raised at the end of the time."""

    async def turn(self) -> None:
        """Acquire and release, nothing else."""
        ...

    async def ask(self) -> None:
        """Send the least statement there is."""
        ...

    async def sleep(self, seconds: float, timeout_s: float, got: Got) -> None:
        """Keep a connection busy for so long."""
        ...

    async def write(self, timeout_s: float) -> float:
        """Write a row; return since when the server runs, in seconds since 1970."""
        ...

    async def work(self, got: Got) -> None:
        """Do a unit of work that changes a setting and a table, and takes a moment."""
        ...

    async def inspect(self) -> tuple[int, str, int]:
        """Return pid, statement timeout and locks of a session."""
        ...

    def held(self) -> int:
        """Return how many connections the pool believes to be in use."""
        ...

    def open(self) -> int:
        """Return how many connections the pool believes to have."""
        ...


class Ours:
    """`tollkeeper.database.pool`."""

    refusals: tuple[type[Exception], ...] = (PoolFull,)
    timeouts: tuple[type[Exception], ...] = (PoolTimeout,)

    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self.pool = pool

    async def turn(self) -> None:
        """Acquire and release, nothing else."""
        async with self.pool.connection():
            pass

    async def ask(self) -> None:
        """Send the least statement there is."""
        async with self.pool.connection() as connection:
            await connection.fetchval(QUERIES["one"])

    async def sleep(self, seconds: float, timeout_s: float, got: Got) -> None:
        """Keep a connection busy for so long."""
        async with self.pool.connection(timeout_s) as connection:
            got()
            await connection.fetchval(QUERIES["sleep"], seconds)

    async def write(self, timeout_s: float) -> float:
        """Write a row; return since when the server runs."""
        async with self.pool.connection(timeout_s) as connection:
            return float(await connection.fetchval(QUERIES["write"]))

    async def work(self, got: Got) -> None:
        """Do a unit of work that changes a setting and a table, and takes a moment."""
        async with (
            self.pool.connection(ACQUIRE_TIMEOUT_S) as connection,
            connection.transaction(),
        ):
            got()
            await connection.execute(QUERIES["local_setting"])
            await connection.fetchval(QUERIES["write"])
            await connection.fetchval(QUERIES["sleep"], 0.001)

    async def inspect(self) -> tuple[int, str, int]:
        """Return pid, statement timeout and locks of a session."""
        async with self.pool.connection() as connection:
            row = await connection.fetchrow(QUERIES["inspect"])
            assert row is not None
            return row["pid"], row["statement_timeout"], row["locks"]

    def held(self) -> int:
        """Return how many connections the pool believes to be in use."""
        return self.pool.status().in_use

    def open(self) -> int:
        """Return how many connections the pool believes to have."""
        return self.pool.status().open


class AsyncpgPool:
    """`asyncpg.Pool`."""

    refusals: tuple[type[Exception], ...] = ()
    timeouts: tuple[type[Exception], ...] = (TimeoutError,)

    def __init__(self, name: str, pool: Any) -> None:
        self.name = name
        self.pool = pool

    async def turn(self) -> None:
        """Acquire and release, nothing else."""
        async with self.pool.acquire():
            pass

    async def ask(self) -> None:
        """Send the least statement there is."""
        async with self.pool.acquire() as connection:
            await connection.fetchval(QUERIES["one"])

    async def sleep(self, seconds: float, timeout_s: float, got: Got) -> None:
        """Keep a connection busy for so long."""
        async with self.pool.acquire(timeout=timeout_s) as connection:
            got()
            await connection.fetchval(QUERIES["sleep"], seconds)

    async def write(self, timeout_s: float) -> float:
        """Write a row; return since when the server runs."""
        async with self.pool.acquire(timeout=timeout_s) as connection:
            return float(await connection.fetchval(QUERIES["write"]))

    async def work(self, got: Got) -> None:
        """Do a unit of work that changes a setting and a table, and takes a moment."""
        async with (
            self.pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
            connection.transaction(),
        ):
            got()
            await connection.execute(QUERIES["local_setting"])
            await connection.fetchval(QUERIES["write"])
            await connection.fetchval(QUERIES["sleep"], 0.001)

    async def inspect(self) -> tuple[int, str, int]:
        """Return pid, statement timeout and locks of a session."""
        async with self.pool.acquire() as connection:
            row = await connection.fetchrow(QUERIES["inspect"])
            return row["pid"], row["statement_timeout"], row["locks"]

    def held(self) -> int:
        """Return how many connections the pool believes to be in use."""
        return int(self.pool.get_size() - self.pool.get_idle_size())

    def open(self) -> int:
        """Return how many connections the pool believes to have."""
        return int(self.pool.get_size())


PsycopgConnection = psycopg.AsyncConnection[TupleRow]


class PsycopgPool:
    """`psycopg_pool.AsyncConnectionPool`."""

    refusals: tuple[type[Exception], ...] = (psycopg_pool.TooManyRequests,)
    timeouts: tuple[type[Exception], ...] = (psycopg_pool.PoolTimeout,)

    def __init__(
        self, name: str, pool: psycopg_pool.AsyncConnectionPool[PsycopgConnection]
    ) -> None:
        self.name = name
        self.pool = pool

    async def turn(self) -> None:
        """Acquire and release, nothing else."""
        async with self.pool.connection():
            pass

    async def ask(self) -> None:
        """Send the least statement there is."""
        async with self.pool.connection() as connection:
            await _first(connection, "one")

    async def sleep(self, seconds: float, timeout_s: float, got: Got) -> None:
        """Keep a connection busy for so long."""
        async with self.pool.connection(timeout_s) as connection:
            got()
            await _first(connection, "sleep", seconds)

    async def write(self, timeout_s: float) -> float:
        """Write a row; return since when the server runs."""
        async with self.pool.connection(timeout_s) as connection:
            (started_s,) = await _first(connection, "write")
            return float(started_s)

    async def work(self, got: Got) -> None:
        """Do a unit of work that changes a setting and a table, and takes a moment."""
        async with (
            self.pool.connection(ACQUIRE_TIMEOUT_S) as connection,
            connection.transaction(),
        ):
            got()
            await connection.execute(QUERIES["local_setting"].encode())
            await _first(connection, "write")
            await _first(connection, "sleep", 0.001)

    async def inspect(self) -> tuple[int, str, int]:
        """Return pid, statement timeout and locks of a session."""
        async with self.pool.connection() as connection:
            pid, statement_timeout, locks = await _first(connection, "inspect")
            return pid, statement_timeout, locks

    def held(self) -> int:
        """Return how many connections the pool believes to be in use."""
        stats = self.pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    def open(self) -> int:
        """Return how many connections the pool believes to have."""
        return self.pool.get_stats()["pool_size"]


async def _first(connection: PsycopgConnection, query: str, *args: object) -> TupleRow:
    cursor = await connection.execute(QUERIES[query].encode(), args or None)
    row = await cursor.fetchone()
    assert row is not None
    return row


# Opening and closing them ------------------------------------------------------------------------


@asynccontextmanager
async def services_pool(
    dsn: str, *, size: int = SIZE, max_waiting: int | None = None
) -> AsyncIterator[tuple[Ours, Database]]:
    """Open a database as the services do, with one pool for writes that is kept warm."""
    name = "ours" if max_waiting is None else f"ours, {max_waiting} may wait"
    limits = PoolLimits() if max_waiting is None else PoolLimits(max_waiting=max_waiting)
    clock = SystemClock()
    database = Database(
        "credits",
        parse_dsn(dsn),
        clock=clock,
        jitter=Random(0).random,
        slow=SlowQueries(clock=clock, name="credits"),
    )
    pool = database.pool(
        "writes",
        access=Access.WRITE,
        size=size,
        minimum=size,
        settings=TIMEOUTS.settings(),
        command_timeout_s=TIMEOUTS.command_s,
        limits=limits,
    )
    async with database:
        yield Ours(name, pool), database


@asynccontextmanager
async def bare_pool(dsn: str, *, size: int = SIZE) -> AsyncIterator[Ours]:
    """Open our pool with nothing around it."""
    pool = Pool(connector(dsn), size=size, minimum=size, clock=SystemClock())
    pool.warm()
    try:
        yield Ours("ours, bare", pool)
    finally:
        await pool.close()


@asynccontextmanager
async def asyncpg_pool(
    dsn: str, *, size: int = SIZE, resets: bool = True
) -> AsyncIterator[AsyncpgPool]:
    """Open asyncpg's pool; without `resets` it sends nothing at a release."""
    name = "asyncpg.Pool" if resets else "asyncpg.Pool, no reset"
    options = {} if resets else {"reset": _no_reset}
    pool = await asyncpg.create_pool(
        dsn, min_size=size, max_size=size, server_settings={"application_name": name}, **options
    )
    try:
        yield AsyncpgPool(name, pool)
    finally:
        pool.terminate()


@asynccontextmanager
async def psycopg_pool_of(dsn: str, *, size: int = SIZE) -> AsyncIterator[PsycopgPool]:
    """Open psycopg's pool."""
    name = "psycopg_pool"
    pool: psycopg_pool.AsyncConnectionPool[PsycopgConnection] = psycopg_pool.AsyncConnectionPool(
        dsn,
        min_size=size,
        max_size=size,
        open=False,
        kwargs={
            "autocommit": True,
            "application_name": name,
            "cursor_factory": psycopg.AsyncRawCursor,
        },
    )
    await pool.open(wait=True)
    try:
        yield PsycopgPool(name, pool)
    finally:
        await pool.close(timeout=1.0)


async def _no_reset(_connection: object) -> None:
    pass


@asynccontextmanager
async def all_pools(dsn: str, *, size: int = SIZE) -> AsyncIterator[tuple[Contestant, ...]]:
    """Open those that a comparison under load is between: ours as the services use it."""
    async with AsyncExitStack() as stack:
        ours, _ = await stack.enter_async_context(services_pool(dsn, size=size))
        yield (
            ours,
            await stack.enter_async_context(asyncpg_pool(dsn, size=size)),
            await stack.enter_async_context(psycopg_pool_of(dsn, size=size)),
        )


@contextmanager
def silence() -> Iterator[None]:
    """Keep what pools log of the outages and the waits that we cause off the table."""
    loggers = [logging.getLogger(name) for name in ("psycopg.pool", "asyncpg.pool")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        structlog.reset_defaults()
