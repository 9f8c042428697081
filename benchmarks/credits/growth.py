"""Growth: the engine's rate on a large ledger against its rate on a small one.

One database grows; the same load is measured on it at both sizes. The rounds cannot be interleaved,
so a machine that slows down on its way shows here too.
"""

import asyncio
import time

import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.engine import (
    CALLERS,
    MANY_ACCOUNTS,
    EngineUnderTest,
    measure_engine,
    prove_exact,
    running_engine,
)
from benchmarks.credits.workload import (
    FIRST_BALANCE_MINOR,
    Workload,
    account_names,
    open_accounts,
)
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, median_rate

SMALL = 100_000
"""Transactions of the small ledger."""

LARGE = 1_000_000
"""Transactions of the large ledger in `make bench`."""

SOAKED = 10_000_000
"""Transactions of the large ledger in `make soak` (DESIGN section 6)."""

FILL_BATCH = 500
FILL_CALLERS = 8
REPORT_EVERY_S = 10.0


def measure(bench: Bench) -> list[Figure]:
    """Return the ratio of the two rates."""
    large = SOAKED if bench.soak else LARGE
    if bench.quick:
        large = 3 * SMALL
    return uvloop.run(_grow(bench, bench.migrated_database("credits"), large))


async def _grow(bench: Bench, dsn: str, large: int) -> list[Figure]:
    names = account_names(MANY_ACCOUNTS)
    async with running_engine(dsn) as under_test:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
        await fill(bench, under_test, names, SMALL)
        before = await _rounds(bench, under_test, names, SMALL)
        await fill(bench, under_test, names, large)
        after = await _rounds(bench, under_test, names, large)
        exact = await prove_exact(dsn, under_test.posted())
    return [
        Figure(
            what=f"growth: rate at {large:,} transactions against {SMALL:,}",
            value=median_rate(after) / median_rate(before),
            unit="x",
            target=0.8,
            samples=after,
            compared=before,
            note=f"{median_rate(after):,.0f}/s : {median_rate(before):,.0f}/s, {load_note(after)}",
        ),
        exact,
    ]


async def _rounds(
    bench: Bench, under_test: EngineUnderTest, names: list[str], size: int
) -> tuple[Sample, ...]:
    measure_round = bench.reported(
        f"engine at {size:,} transactions",
        lambda: measure_engine(under_test, names, bench.load(CALLERS)),
    )
    return tuple([await measure_round() for _ in range(bench.rounds)])


async def fill(bench: Bench, under_test: EngineUnderTest, names: list[str], size: int) -> None:
    """Grow the ledger to `size` transactions, through the engine itself."""
    workload = Workload(names, seed=size)
    reported = time.perf_counter()

    async def fill() -> None:
        nonlocal reported
        while under_test.posted() < size:
            await under_test.engine.execute([workload.movement() for _ in range(FILL_BATCH)])
            if time.perf_counter() - reported > REPORT_EVERY_S:
                reported = time.perf_counter()
                bench.say(f"{under_test.posted():,} of {size:,} transactions")

    await asyncio.gather(*(fill() for _ in range(FILL_CALLERS)))
