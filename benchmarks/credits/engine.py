"""The engine against row locks: 100 callers, on 10,000 accounts and on one.

Both ledgers run in this process, on one server, in databases of their own, and take turns. Beside
the ratios: the absolute figures of SPEC C9, and that nothing was lost and no balance was negative.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.bench import Bench
from benchmarks.credits.rowlock import POOL_SIZE, RowLockLedger
from benchmarks.credits.workload import (
    FIRST_BALANCE_MINOR,
    Workload,
    account_names,
    open_accounts,
)
from benchmarks.figures import Figure, load_note
from benchmarks.measure import (
    Load,
    Sample,
    closed_loop,
    in_pairs,
    median_of,
    median_percentiles,
    median_rate,
    median_ratio,
)
from tollkeeper.app import quiet_collector
from tollkeeper.credits.engine import Engine
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.credits.model import Kind, Posted
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.clock import SystemClock

CALLERS = 100
MANY_ACCOUNTS = 10_000
ROLE = "tollkeeper_credits"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUnderTest:
    """A running engine with its instruments."""

    engine: Engine
    pool: Pool
    registry: CollectorRegistry

    def batches(self) -> tuple[float, float]:
        """Return how many operations were committed in how many batches so far."""
        operations = self.registry.get_sample_value("credits_batch_size_sum")
        count = self.registry.get_sample_value("credits_batch_size_count")
        return operations or 0.0, count or 0.0

    def posted(self) -> int:
        """Return how many movements were answered as standing in the ledger."""
        counts = (
            self.registry.get_sample_value(
                "credits_operations_total", {"kind": kind.value, "result": "ok"}
            )
            for kind in Kind
        )
        return int(sum(count or 0 for count in counts))


@asynccontextmanager
async def running_engine(
    dsn: str, limits: EngineLimits | None = None
) -> AsyncIterator[EngineUnderTest]:
    """Run an engine as the service wires it, without HTTP."""
    limits = limits or EngineLimits()
    clock, registry = SystemClock(), CollectorRegistry()
    pool = Pool(
        connector(dsn, role=ROLE, settings=SESSION_SETTINGS), size=limits.lanes, clock=clock
    )
    engine = Engine(
        pool, LedgerStore(), clock=clock, jitter=Random(0).random,
        metrics=CreditsMetrics(registry), limits=limits,
    )  # fmt: skip
    engine.start()
    try:
        yield EngineUnderTest(engine=engine, pool=pool, registry=registry)
    finally:
        await engine.drain()
        await engine.close()
        await pool.close()


async def measure_engine(
    under_test: EngineUnderTest, accounts: list[str], load: Load, *, seed: int = 0
) -> Sample:
    """Measure single operations of `load.callers` callers."""
    engine = under_test.engine
    workload = Workload(accounts, seed=seed)

    async def step() -> None:
        (result,) = await engine.execute((workload.movement(),))
        assert type(result) is Posted, result

    operations, batches = under_test.batches()
    sample = await closed_loop([step] * load.callers, load)
    operations_after, batches_after = under_test.batches()
    mean = (operations_after - operations) / (batches_after - batches)
    return replace(sample, batch_mean=mean)


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of the engine."""
    return [
        *_against_row_locks(bench, MANY_ACCOUNTS, target=6.0),
        *_against_row_locks(bench, 1, target=25.0),
    ]


def _against_row_locks(bench: Bench, accounts: int, *, target: float) -> list[Figure]:
    return uvloop.run(
        _compare(
            bench,
            accounts,
            target,
            ours_dsn=bench.migrated_database("credits"),
            theirs_dsn=bench.empty_database("rowlock"),
        )
    )


async def _compare(
    bench: Bench, accounts: int, target: float, *, ours_dsn: str, theirs_dsn: str
) -> list[Figure]:
    quiet_collector()  # as the service does; both ledgers gain
    names, load = account_names(accounts), bench.load(CALLERS)
    what = f"engine, {CALLERS} callers, " + (f"{accounts:,} accounts" if accounts > 1 else "hot")
    theirs_pool = Pool(connector(theirs_dsn), size=POOL_SIZE, clock=SystemClock())
    rowlock = RowLockLedger(theirs_pool)
    try:
        async with running_engine(ours_dsn) as under_test:
            await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
            await rowlock.create(names, FIRST_BALANCE_MINOR)
            pairs = await in_pairs(
                bench.rounds,
                bench.reported(what, lambda: measure_engine(under_test, names, load)),
                bench.reported("row locks", lambda: _measure_rowlock(rowlock, names, load)),
            )
            exact = await prove_exact(ours_dsn, under_test.posted())
    finally:
        await theirs_pool.close()
    ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    ratio = Figure(
        what=f"{what}, against row locks",
        value=median_ratio(pairs),
        unit="x",
        target=target,
        samples=ours,
        compared=theirs,
        note=f"{median_rate(ours):,.0f}/s : {median_rate(theirs):,.0f}/s "
        f"(P99 {median_of(theirs, lambda s: s.p99_ms):.0f} ms), {load_note(ours)}",
    )
    return [ratio, *absolute_figures(what, ours), exact]


async def _measure_rowlock(rowlock: RowLockLedger, accounts: list[str], load: Load) -> Sample:
    workload = Workload(accounts, seed=0)

    async def step() -> None:
        await rowlock.execute(workload.movement(), time.time_ns() // 1_000_000)

    return await closed_loop([step] * load.callers, load)


def absolute_figures(
    what: str, samples: tuple[Sample, ...], *, least_rate: float = 1_500
) -> list[Figure]:
    """Return the absolute figures of SPEC C9: rate, P50, P95 and P99."""
    rate = Figure(
        what=f"{what}, absolute", value=median_rate(samples), unit="/s", target=least_rate,
        samples=samples, note=load_note(samples),
    )  # fmt: skip
    p50, p95, p99 = median_percentiles(samples)
    return [
        rate,
        Figure(what=f"{what}, P50", value=p50, unit="ms", target=12, at_most=True),
        Figure(what=f"{what}, P95", value=p95, unit="ms", target=45, at_most=True),
        Figure(what=f"{what}, P99", value=p99, unit="ms", target=80, at_most=True),
    ]


async def prove_exact(dsn: str, posted: int) -> Figure:
    """Check a ledger that rests: no balance below zero, all money accounted for, nothing lost.

    `posted` is how many movements the callers were told stand in the ledger.
    """
    connection = await connector(dsn)()
    try:
        sums = await connection.fetchrow(load_queries("benchmarks.credits")["sums"])
    finally:
        await connection.close()
    assert sums is not None
    if sums["balance"] != sums["moved"] or sums["transactions"] != posted:
        raise RuntimeError(f"the ledger is not exact: {dict(sums)}, answered {posted}")
    return Figure(
        what="negative balances after it", value=sums["negative"], unit="", target=0, at_most=True,
        note=f"{posted:,} operations, exact to the unit",
    )  # fmt: skip
