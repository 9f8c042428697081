"""Partitions: what they spare a query over one quarter, and what attaching and moving them costs.

The rows are of the real tables with all their indexes, written in the order of time; the query is
run in turns on them and on one table that holds the same rows, by one process of the server. Then
the engine's rounds take turns with rounds during which a partition is attached and another one
moved to the archive every second: in service that is once in three months.
"""

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.bench import Bench
from benchmarks.credits.engine import CALLERS, MANY_ACCOUNTS, measure_engine, running_engine
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, in_pairs, median_rate, median_ratio
from tollkeeper.credits.archive_store import SESSION_SETTINGS, TIMEOUTS, ArchiveStore
from tollkeeper.credits.archivist import Archivist
from tollkeeper.credits.life_metrics import ArchiveMetrics
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.serving import quiet_collector
from tollkeeper.telemetry.logging import configure_logging

WANTED_RATIO = 10.0
"""A quarter of 10 million transactions in 12 partitions, against all in one table (issue 5)."""

WANTED_SHARE = 0.9
"""Of the undisturbed throughput, at least (issue 5)."""

TRANSACTIONS = 10_000_000
QUICK_TRANSACTIONS = 500_000
QUARTERS = 12
QUARTER_ASKED = 6
FILL_ROWS = 250_000

REPEATS = 5

CHANGE_EVERY_S = 1.0

FIRST_OLD_QUARTER = 20
"""Partitions that are made in order to be moved are older than all others."""


def measure(bench: Bench) -> list[Figure]:
    """Return the ratio of the queries, the throughput's share and the longest wait."""
    return [
        uvloop.run(_query(bench, bench.migrated_database("credits"))),
        *uvloop.run(_live(bench, bench.migrated_database("credits"))),
    ]


async def _query(bench: Bench, dsn: str) -> Figure:
    size = QUICK_TRANSACTIONS if bench.quick else TRANSACTIONS
    sql = load_queries("benchmarks.credits")
    connection = await connector(dsn)()
    try:
        await _fill(bench, connection, size)
        await connection.execute(sql["one_core"])
        bounds = await connection.fetchrow(sql["quarter"], QUARTER_ASKED)
        assert bounds is not None
        pairs = []
        for number in range(2 * REPEATS):
            names = ("quarter_partitioned", "quarter_unpartitioned")
            order = names if number % 2 else tuple(reversed(names))
            times = {name: await _timed(connection, sql[name], *bounds) for name in order}
            assert times[names[0]][1] == times[names[1]][1]
            pairs.append((times[names[0]][0], times[names[1]][0]))
    finally:
        await connection.close()
    ours_s, theirs_s = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    return Figure(
        what=f"counting one quarter of {size:,} transactions in {QUARTERS} partitions, "
        "against one table",
        value=statistics.median(theirs / ours for ours, theirs in pairs[1:]),
        unit="x",
        target=WANTED_RATIO,
        note=f"{ours_s * 1_000:,.1f} ms : {theirs_s * 1_000:,.1f} ms, one core, from the cache as "
        "far as it goes",
    )


async def _fill(bench: Bench, connection: Connection, size: int) -> None:
    sql = load_queries("benchmarks.credits")
    await connection.execute(sql["make_quarters"], QUARTERS)
    for first in range(0, size, FILL_ROWS):
        upto = min(first + FILL_ROWS, size)
        await connection.execute(sql["fill_quarters"], first, upto, size, QUARTERS)
        if first % (10 * FILL_ROWS) == 0:
            bench.say(f"{upto:,} of {size:,} transactions")
    await connection.execute(sql["make_unpartitioned"])
    for quarter in reversed(range(QUARTERS)):
        await connection.execute(sql["fill_unpartitioned"], quarter)
    await connection.execute(sql["settle_tables"])


async def _timed(connection: Connection, query: str, *bounds: object) -> tuple[float, object]:
    began = time.perf_counter()
    rows = await connection.fetch(query, *bounds)
    return time.perf_counter() - began, rows


async def _live(bench: Bench, dsn: str) -> list[Figure]:
    configure_logging("warning", "console")
    quiet_collector()
    names, load = account_names(MANY_ACCOUNTS), bench.load(CALLERS)
    what = f"engine, {CALLERS} callers, {MANY_ACCOUNTS:,} accounts"
    changes: list[int] = []
    quarters = itertools.count(FIRST_OLD_QUARTER)
    async with running_engine(dsn) as under_test, _archivist(dsn) as archivist:
        owner = await connector(dsn)()
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)

        async def round_of(seed: int) -> Sample:
            return await measure_engine(under_test, names, load, seed=seed)

        async def disturbed() -> Sample:
            is_over = asyncio.Event()
            changing = asyncio.ensure_future(_change(owner, archivist, quarters, is_over))
            sample = await round_of(1)
            is_over.set()
            changes.append(await changing)
            return sample

        pairs = await in_pairs(
            bench.rounds,
            bench.reported(f"{what}, partitions on the move", disturbed),
            bench.reported(what, lambda: round_of(1)),
        )
        await owner.close()
    ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    longest = max(sample.max_ms for sample in ours)
    return [
        Figure(
            what="throughput while partitions are attached and moved, of undisturbed",
            value=median_ratio(pairs),
            unit="x",
            target=WANTED_SHARE,
            samples=ours,
            compared=theirs,
            note=f"{median_rate(ours):,.0f}/s : {median_rate(theirs):,.0f}/s, "
            f"{sum(changes)} partitions, {load_note(ours)}",
        ),
        Figure(
            what="longest wait of a caller meanwhile",
            value=longest,
            unit="ms",
            target=TIMEOUTS.lock_s * 1_000,
            at_most=True,
            note=f"undisturbed {max(sample.max_ms for sample in theirs):,.0f} ms",
        ),
    ]


async def _change(
    owner: Connection, archivist: Archivist, quarters: Iterator[int], is_over: asyncio.Event
) -> int:
    """Attach a partition and move it, again and again until it is over; return how often."""
    sql, count = load_queries("benchmarks.credits"), 0
    while not is_over.is_set():
        await owner.execute(sql["make_old_quarter"], next(quarters))
        await archivist.round()
        count += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), CHANGE_EVERY_S)
    return count


@asynccontextmanager
async def _archivist(dsn: str) -> AsyncIterator[Archivist]:
    clock = SystemClock()
    pool = Pool(connector(dsn, settings=SESSION_SETTINGS), size=1, clock=clock)
    try:
        yield Archivist(
            pool, ArchiveStore(), key=None, clock=clock, jitter=Random(0).random,
            metrics=ArchiveMetrics(CollectorRegistry()), after_quarters=2,
        )  # fmt: skip
    finally:
        await pool.close()
