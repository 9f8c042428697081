"""Verification of a whole ledger: of consumptions, and of holds; the verifier alone, without HTTP.

Where the system lets a process choose its cores, the verifier and the database's process for it
share one: the figure is what one core does for both sides.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.engine import MANY_ACCOUNTS, ROLE, EngineUnderTest, running_engine
from benchmarks.credits.growth import fill
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure
from tollkeeper.credits import requests
from tollkeeper.credits.model import Posted
from tollkeeper.credits.requests import WriteWords
from tollkeeper.credits.store import SESSION_SETTINGS
from tollkeeper.credits.verifier import LedgerVerifier
from tollkeeper.database.connect import connector
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import entropy_in_blocks

TARGET = 100_000
"""Transactions a second on one core (issue 3)."""

TRANSACTIONS = 300_000
HOLDS_BATCH = 1_000

_Grow = Callable[[Bench, EngineUnderTest, list[str], int], Awaitable[None]]


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of verification."""
    return [
        uvloop.run(_measure(bench, bench.migrated_database("credits"), what, grow))
        for what, grow in (("consumptions", _consume), ("holds, captured and released", _hold))
    ]


async def _measure(bench: Bench, dsn: str, what: str, grow: _Grow) -> Figure:
    size = TRANSACTIONS // 5 if bench.quick else TRANSACTIONS
    names = account_names(MANY_ACCOUNTS // 10)
    async with running_engine(dsn) as under_test:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
        await grow(bench, under_test, names, size)
    rates = [await _verified(bench, dsn) for _ in range(bench.rounds)]
    return Figure(
        what=f"verification, {len(names):,} accounts with {what}",
        value=sorted(rates)[len(rates) // 2],
        unit=" transactions/s",
        target=TARGET,
        note=f"{size:,} transactions; verifier and its database process on "
        f"{'one core' if _can_pin() else 'different cores'}",
    )


async def _consume(bench: Bench, under_test: EngineUnderTest, names: list[str], size: int) -> None:
    await fill(bench, under_test, names, size)


async def _hold(bench: Bench, under_test: EngineUnderTest, names: list[str], size: int) -> None:
    entropy, engine = entropy_in_blocks(), under_test.engine
    bench.say(f"{size:,} transactions of holds")

    def words(name: str) -> WriteWords:
        drawn = entropy()
        return WriteWords(account_id=name, key=str(UUID(int=drawn)), entropy=drawn)

    for first in range(0, size // 3, HOLDS_BATCH):
        batch = [names[(first + number) % len(names)] for number in range(HOLDS_BATCH)]
        made = await engine.execute([requests.reserve(words(name), amount=100) for name in batch])
        holds = [each.transaction.transaction_id for each in made if isinstance(each, Posted)]
        for settled in (
            [
                requests.capture(words(name), hold_id=hold_id, amount=60)
                for name, hold_id in zip(batch, holds, strict=True)
            ],
            [
                requests.release(words(name), hold_id=hold_id)
                for name, hold_id in zip(batch, holds, strict=True)
            ],
        ):
            results = await engine.execute(settled)
            assert all(isinstance(each, Posted) for each in results)


async def _verified(bench: Bench, dsn: str) -> float:
    """Verify the whole ledger; return transactions a second."""
    connect = connector(dsn, role=ROLE, settings=SESSION_SETTINGS)
    pool = Pool(connect, size=1, clock=SystemClock())
    verifier = LedgerVerifier(pool)
    async with pool.connection() as connection:
        server = connection.get_server_pid()
    with _on_one_core(server):
        began, count, after = time.perf_counter(), 0, None
        while True:
            found = await verifier.verify(None, None, after=after)
            assert found.faults == (), found.faults[:3]
            count, after = count + found.transactions, found.next
            if after is None:
                break
        rate = count / (time.perf_counter() - began)
    await pool.close()
    bench.say(f"verification of {count:,} transactions: {rate:,.0f}/s")
    return rate


def _can_pin() -> bool:
    return hasattr(os, "sched_setaffinity")


@contextmanager
def _on_one_core(server_pid: int) -> Iterator[None]:
    """Keep this process and the server's on one core."""
    if not _can_pin():
        yield
        return
    cores = os.sched_getaffinity(0)
    try:
        for pid in (0, server_pid):
            os.sched_setaffinity(pid, {min(cores)})
        yield
    finally:
        for pid in (0, server_pid):
            os.sched_setaffinity(pid, cores)
