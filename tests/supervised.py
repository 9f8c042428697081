"""A `Database` with a pool for writes and one for reads, and clients that never stop."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tollkeeper.database.database import Database
from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.errors import DatabaseError
from tollkeeper.database.health import Pace
from tollkeeper.database.pool import Pool
from tollkeeper.database.pooler import Pooler
from tollkeeper.database.slow import SlowQueries
from tollkeeper.database.status import Access
from tollkeeper.kernel.clock import SystemClock

CLOCK = SystemClock()
DEADLINE_S = 30.0
QUICK = Pace(check_timeout_s=0.5, stall_s=0.5, failing_period_s=0.1, suspect_period_s=0.3)
"""For what takes as long as a server may be silent: a test need not wait so long."""


@dataclass(frozen=True)
class Supervised:
    """What a service would have."""

    database: Database
    writes: Pool
    reads: Pool


@asynccontextmanager
async def supervised(
    dsn: str,
    *,
    size: int = 4,
    command_timeout_s: float | None = 20.0,
    pace: Pace | None = None,
    pooler: Pooler = Pooler.NONE,
) -> AsyncIterator[Supervised]:
    """Open a database and close it at the end."""
    database = Database(
        "credits",
        parse_dsn(dsn),
        clock=CLOCK,
        jitter=random.Random(1).random,
        slow=SlowQueries(clock=CLOCK, name="credits"),
        pace=pace,
        pooler=pooler,
    )
    async with database:
        pools = [
            database.pool(
                name,
                access=access,
                size=size,
                minimum=1,
                command_timeout_s=command_timeout_s,
            )
            for name, access in (("writes", Access.WRITE), ("reads", Access.READ))
        ]
        async with asyncio.timeout(DEADLINE_S):
            await database.monitor.looked.wait()
        yield Supervised(database, *pools)


@dataclass
class Client:
    """Does one thing again and again until it is stopped, and counts how it ended."""

    pool: Pool
    statement: str
    done: int = 0
    failures: list[DatabaseError] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            try:
                async with self.pool.connection() as connection:
                    await connection.execute(self.statement)
                self.done += 1
            except DatabaseError as error:
                self.failures.append(error)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(*clients: Client) -> AsyncIterator[None]:
    """Let clients run during the block."""
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def eventually(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def more(client: Client, count: int = 5) -> None:
    """Return when the client has succeeded so many times more."""
    until = client.done + count
    await eventually(lambda: client.done >= until)
