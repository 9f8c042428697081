"""What checkpoints cost the ledger: its rate with them against its rate without, in pairs.

At the period they have in service, one falls into twelve rounds, and its cost is far below what two
rounds differ by. So they are made without a pause while a round is measured, each over all accounts
at work, as if all had moved since the one before; that share is then divided by how many fit into
a period. Also measured: how long it takes to find that none of many accounts moved.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.bench import Bench
from benchmarks.credits.engine import CALLERS, MANY_ACCOUNTS, measure_engine, running_engine
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, in_pairs, median_rate, median_ratio
from tollkeeper.config import Settings
from tollkeeper.credits.checkpoint_metrics import CheckpointMetrics
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.checkpointer import SESSION_SETTINGS, Checkpointer
from tollkeeper.credits.note import make_key
from tollkeeper.database.connect import connector
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import system_token
from tollkeeper.serving import quiet_collector
from tollkeeper.telemetry.logging import configure_logging

STILL_ACCOUNTS = 300_000
"""Accounts that stand still beside those at work; every checkpoint compares them too."""

WANTED_SHARE = 0.02
"""Of the throughput, at the period of a default installation (issue 3)."""


def measure(bench: Bench) -> list[Figure]:
    """Return the share of the throughput, and how long a checkpoint takes."""
    return uvloop.run(_measure(bench, bench.migrated_database("credits")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    configure_logging("warning", "console")
    quiet_collector()
    names, load = account_names(MANY_ACCOUNTS), bench.load(CALLERS)
    what = f"engine, {CALLERS} callers, {MANY_ACCOUNTS:,} accounts"
    made: list[tuple[float, int]] = []
    async with running_engine(dsn) as under_test, _maker(dsn) as maker:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
        await open_still_accounts(dsn)
        await maker.make()

        async def round_of(seed: int) -> Sample:
            return await measure_engine(under_test, names, load, seed=seed)

        async def with_checkpoints() -> Sample:
            making = asyncio.create_task(_make_on_and_on(dsn, maker, made))
            try:
                return await round_of(1)
            finally:
                making.cancel()
                await asyncio.wait([making])

        pairs = await in_pairs(
            bench.rounds,
            bench.reported(f"{what}, checkpoints without a pause", with_checkpoints),
            bench.reported(what, lambda: round_of(0)),
        )
        await maker.make()
        still_s = [await _timed(maker.make) for _ in range(bench.rounds)]
    seconds = statistics.median(seconds for seconds, _ in made)
    leaves = round(statistics.median(leaves for _, leaves in made))
    lost, period_s = 1 - median_ratio(pairs), Settings().checkpoint_period_s
    ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    return [
        Figure(
            what="checkpoints, share of the throughput",
            value=100 * max(0.0, lost) * seconds / period_s,
            unit="%",
            target=100 * WANTED_SHARE,
            at_most=True,
            samples=ours,
            compared=theirs,
            note=f"one of {seconds:.2f} s every {period_s:g} s; made without a pause they take "
            f"{lost:.0%}: {median_rate(ours):,.0f}/s : {median_rate(theirs):,.0f}/s, "
            f"{load_note(ours)}",
        ),
        Figure(
            what=f"a checkpoint under that load, {leaves:,} leaves",
            value=1_000 * seconds,
            unit="ms",
            note=f"{STILL_ACCOUNTS:,} more accounts are compared, {len(made)} made",
        ),
        Figure(
            what=f"finding that none of {STILL_ACCOUNTS + MANY_ACCOUNTS:,} accounts changed",
            value=1_000 * statistics.median(still_s),
            unit="ms",
            note="alone on the machine",
        ),
    ]


@asynccontextmanager
async def _maker(dsn: str) -> AsyncIterator[Checkpointer]:
    """Lend a maker as the worker has it."""
    clock = SystemClock()
    pool = Pool(connector(dsn, settings=SESSION_SETTINGS), size=1, clock=clock)
    try:
        yield Checkpointer(
            pool, CheckpointStore(), key=make_key("benchmark", system_token()), clock=clock,
            metrics=CheckpointMetrics(CollectorRegistry()),
        )  # fmt: skip
    finally:
        await pool.close()


async def open_still_accounts(dsn: str) -> None:
    """Open accounts that nobody moves."""
    connection = await connector(dsn)()
    try:
        sql = load_queries("benchmarks.credits")
        await connection.execute(sql["open_still_accounts"], STILL_ACCOUNTS)
        await connection.execute(sql["analyze_accounts"])
    finally:
        await connection.close()


async def _make_on_and_on(dsn: str, maker: Checkpointer, made: list[tuple[float, int]]) -> None:
    forget = load_queries("benchmarks.credits")["forget_marks"]
    connection = await connector(dsn)()
    try:
        while True:
            await connection.execute(forget)
            began = time.perf_counter()
            checkpoint = await maker.make()
            if checkpoint is not None:
                made.append((time.perf_counter() - began, checkpoint.leaves))
    finally:
        connection.terminate()


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began
