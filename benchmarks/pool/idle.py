"""What a pool costs: one caller, warm connections, nothing to wait for.

First acquire and release without a statement; then the least statement, over a bare connection,
over our pool bare, and over our pool as the services use it. What the last two differ by is the
price of timing, breaker, slow-query log and the driver's time limit together. It is taken in the
client's processor time: how long a statement takes depends more on where the machine has put the
two processes than on what is added to it.
"""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure, load_note
from benchmarks.measure import (
    Load,
    Sample,
    closed_loop,
    in_turns,
    median_of,
    median_percentiles,
    sample_of,
)
from benchmarks.pool.contestants import (
    QUERIES,
    Contestant,
    asyncpg_pool,
    bare_pool,
    psycopg_pool_of,
    services_pool,
)
from tollkeeper.database.connect import connector

BLOCK = 50
"""Statements in a row over one of the ways: short, so that all ways see the same weather."""

OPENINGS = 8
"""Connections are opened anew so often: where the machine puts two processes costs more than all
that is measured here, and it leaves them there."""

WANTED_P99_US = 1_000.0
"""Acquire and release without a wait."""

OVERHEAD_US = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Statements in a row: what the caller saw, and what it cost."""

    seen: Sample
    cost_us: float
    """The client's processor time per statement."""


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of a pool nobody waits for."""
    return uvloop.run(_measure(bench, bench.migrated_database("credits")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    async with AsyncExitStack() as stack:
        ours, database = await stack.enter_async_context(services_pool(dsn))
        await database.monitor.looked.wait()
        pools: list[Contestant] = [
            ours,
            await stack.enter_async_context(bare_pool(dsn)),
            await stack.enter_async_context(asyncpg_pool(dsn)),
            await stack.enter_async_context(asyncpg_pool(dsn, resets=False)),
            await stack.enter_async_context(psycopg_pool_of(dsn)),
        ]
        for pool in pools:
            await pool.ask()
        turns = await _turns(bench, pools)
    blocks: dict[str, list[Block]] = {"connection": [], "bare": [], "ours": []}
    for _ in range(OPENINGS):
        for name, found in (await _opened_and_asked(bench, dsn)).items():
            blocks[name] += found
    return [*_turn_figures(turns), *_overhead_figures(blocks)]


async def _opened_and_asked(bench: Bench, dsn: str) -> dict[str, list[Block]]:
    async with (
        services_pool(dsn, size=1) as (ours, database),
        bare_pool(dsn, size=1) as bare,
    ):
        await database.monitor.looked.wait()
        connection = await connector(dsn)()

        async def ask_connection() -> None:
            await connection.fetchval(QUERIES["one"])

        ways = {"connection": ask_connection, "bare": bare.ask, "ours": ours.ask}
        try:
            for ask in ways.values():
                await ask()
            return await _asks(bench, ways)
        finally:
            await connection.close()


async def _turns(bench: Bench, pools: Sequence[Contestant]) -> dict[str, list[Sample]]:
    load = Load(callers=1, seconds=0.3 if bench.quick else 1.0, warm_up_s=0.05)

    def measured(pool: Contestant) -> Callable[[], Awaitable[Sample]]:
        return lambda: closed_loop([pool.turn], load)

    turns = await in_turns(bench.rounds, {pool.name: measured(pool) for pool in pools})
    for name, samples in turns.items():
        p50, _, p99 = median_percentiles(samples)
        bench.say(f"acquire and release, {name}: P50 {p50 * 1e3:.1f}, P99 {p99 * 1e3:.1f} µs")
    return turns


async def _asks(
    bench: Bench, ways: Mapping[str, Callable[[], Awaitable[None]]]
) -> dict[str, list[Block]]:
    async def block(ask: Callable[[], Awaitable[None]]) -> Block:
        latencies_s: list[float] = []
        began, began_cost_s = time.perf_counter(), time.thread_time()
        for _ in range(BLOCK):
            started = time.perf_counter()
            await ask()
            latencies_s.append(time.perf_counter() - started)
        duration_s, cost_s = time.perf_counter() - began, time.thread_time() - began_cost_s
        seen = sample_of(latencies_s, duration_s=duration_s, operations=BLOCK)
        return Block(seen=seen, cost_us=cost_s / BLOCK * 1e6)

    def measured(ask: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[Block]]:
        return lambda: block(ask)

    rounds = 25 if bench.quick else 75
    return await in_turns(rounds, {name: measured(ask) for name, ask in ways.items()})


def _turn_figures(turns: Mapping[str, Sequence[Sample]]) -> list[Figure]:
    ours = tuple(turns["ours"])
    p50, _, p99 = median_percentiles(ours)
    figures = [
        Figure(
            what="pool: acquire and release, idle, P50", value=p50 * 1_000, unit="µs",
            samples=ours, note=f"one caller, as the services use it, {load_note(ours)}",
        ),
        Figure(
            what="pool: acquire and release, idle, P99", value=p99 * 1_000, unit="µs",
            target=WANTED_P99_US, at_most=True,
        ),
    ]  # fmt: skip
    wanted = {"asyncpg.Pool": 1.0, "asyncpg.Pool, no reset": 1.0, "psycopg_pool": 1.0}
    for name, samples in turns.items():
        if name == "ours":
            continue
        pairs = zip(ours, samples, strict=True)
        figures.append(
            Figure(
                what=f"pool: the same, speed against {name}",
                value=statistics.median(theirs.p50_ms / our.p50_ms for our, theirs in pairs),
                unit="x",
                target=wanted.get(name),
                samples=tuple(samples),
                note="percentiles: theirs",
            )
        )
    return figures


def _overhead_figures(blocks: Mapping[str, Sequence[Block]]) -> list[Figure]:
    cost_us = {name: least_disturbed_us(each) for name, each in blocks.items()}
    note = "; ".join(
        f"{name} {cost_us[name]:.1f}, "
        f"seen {median_of([block.seen for block in each], lambda seen: seen.p50_ms) * 1_000:.0f}"
        for name, each in blocks.items()
    )
    return [
        Figure(
            what="pool: timing and breaker, processor time per query",
            value=cost_us["ours"] - cost_us["bare"], unit="µs", target=OVERHEAD_US, at_most=True,
            samples=tuple(block.seen for block in blocks["ours"]), note=f"SELECT 1, µs: {note}",
        ),
        Figure(
            what="pool: all that it adds to a bare connection, the same",
            value=cost_us["ours"] - cost_us["connection"], unit="µs",
            samples=tuple(block.seen for block in blocks["connection"]),
            note="percentiles: the bare connection's",
        ),
    ]  # fmt: skip


def least_disturbed_us(blocks: Sequence[Block]) -> float:
    """Return the least of the costs: the machine and its other users add to one, none takes."""
    return min(block.cost_us for block in blocks)
