"""Ten thousand callers that are cancelled at random: what is left behind?

Each waits for a connection, begins a unit of work, changes a setting, writes a row, keeps the
server busy for a millisecond; and is cancelled at any moment of it, or before, or when it is done.
A connection is leaked when the pool counts it as in use after everybody has left, or the server has
another number of sessions than the pool. It is dirty when its next holder finds a setting or a
lock of an earlier one, or the server sees it at work or inside a unit of work.

Our pool is bare here: every statement that is cancelled costs its connection, and the connect
limit of a service would let ten through in a second.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random

import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.pool.contestants import (
    QUERIES,
    SIZE,
    Contestant,
    asyncpg_pool,
    bare_pool,
    psycopg_pool_of,
)
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection

CANCELS = 10_000
OTHERS_CANCELS = 2_000
"""Of the other pools: enough to see what becomes of them."""

AT_ONCE = 2 * SIZE
FIRST_SPAN_S = 0.02
"""A caller is cancelled somewhere in a span that follows what the pool takes: it grows with every
caller that was cancelled and shrinks with every one that was done, so about half of them are."""

SPAN_STEP = 1.01

SETTLED_S = 2.0
"""Sessions that were hung up on, and those that take their place, have settled by then."""

POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What the callers of one pool left behind."""

    cancelled: int
    holding: int
    """Of those cancelled: had a connection at the time."""
    completed: int
    leaked: int
    dirty: int
    duration_s: float


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of cancelled callers."""
    return uvloop.run(_measure(bench, bench.empty_database("cancels")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    share = 10 if bench.quick else 1
    figures: list[Figure] = []
    async with AsyncExitStack() as stack:
        observer = await connector(dsn, settings={"application_name": "observer"})()
        stack.push_async_callback(observer.close)
        await observer.execute(QUERIES["create_marks"])
        ours: Contestant = await stack.enter_async_context(bare_pool(dsn))
        others: list[Contestant] = [
            await stack.enter_async_context(asyncpg_pool(dsn)),
            await stack.enter_async_context(psycopg_pool_of(dsn)),
        ]
        pools = [
            (ours, "tollkeeper", CANCELS),
            *((other, other.name, OTHERS_CANCELS) for other in others),
        ]
        for pool, application, cancels in pools:
            left = await _left_behind(pool, cancels // share, observer, application)
            bench.say(
                f"{left.cancelled:,} cancels, {pool.name}: {left.leaked} leaked, "
                f"{left.dirty} dirty; {left.holding:,} held one, {left.completed:,} were done "
                f"before; {left.duration_s:.1f} s"
            )
            figures += _figures(left, pool.name)
    return figures


async def _left_behind(
    pool: Contestant, cancels: int, observer: Connection, application: str
) -> Left:
    began = time.perf_counter()
    cancelled, holding, completed = await _cancel(pool, cancels, Random(0))
    duration_s = time.perf_counter() - began
    leaked, busy = await _settle(pool, observer, application)
    found = await asyncio.gather(*(pool.inspect() for _ in range(SIZE)))
    marked = sum(timeout == "7s" or locks > 0 for _, timeout, locks in found)
    return Left(
        cancelled=cancelled,
        holding=holding,
        completed=completed,
        leaked=max(leaked, SIZE - len({pid for pid, _, _ in found})),
        dirty=busy + marked,
        duration_s=duration_s,
    )


async def _cancel(pool: Contestant, cancels: int, random: Random) -> tuple[int, int, int]:
    """Cancel so many; return how many were, while holding how many, and how many were done."""
    loop = asyncio.get_running_loop()
    cancelled = completed = held = 0
    span_s = FIRST_SPAN_S

    def got() -> None:
        nonlocal held
        held += 1

    async def caller() -> None:
        nonlocal cancelled, completed, span_s
        while cancelled < cancels:
            work = asyncio.create_task(pool.work(got))
            expiry = loop.call_later(random.random() * span_s, work.cancel)
            try:
                await work
                completed += 1
                span_s /= SPAN_STEP
            except asyncio.CancelledError:
                cancelled += 1
                span_s *= SPAN_STEP
            finally:
                expiry.cancel()

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return cancelled, held - completed, completed


async def _settle(pool: Contestant, observer: Connection, application: str) -> tuple[int, int]:
    """Return how many connections are leaked, and busy with nobody's work, once all is quiet."""
    until = time.perf_counter() + SETTLED_S
    while True:
        row = await observer.fetchrow(QUERIES["sessions"], application)
        assert row is not None
        leaked = max(pool.held(), abs(row["open"] - pool.open()))
        busy: int = row["busy"]
        if leaked == busy == 0 or time.perf_counter() > until:
            return leaked, busy
        await asyncio.sleep(POLL_S)


def _figures(left: Left, name: str) -> list[Figure]:
    wanted = 0.0 if name.startswith("ours") else None
    note = (
        f"of {SIZE} connections, after {left.cancelled:,} cancels, {left.holding:,} of them while "
        f"holding one; {left.completed:,} callers were done before; {left.duration_s:.0f} s"
    )
    return [
        Figure(
            what=f"pool: connections leaked by cancels, {name}", value=left.leaked, unit="",
            target=wanted, at_most=True, note=note,
        ),
        Figure(
            what=f"pool: connections left dirty by cancels, {name}", value=left.dirty, unit="",
            target=wanted, at_most=True,
        ),
    ]  # fmt: skip
