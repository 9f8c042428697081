"""Backups of a ledger of a million transactions: how long, how large, and what each level costs.

A backup is taken, read to its end, and restored beside the ledger and compared, chains included.
"""

import time
from collections.abc import Awaitable
from typing import TypeVar

import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.engine import MANY_ACCOUNTS, running_engine
from benchmarks.credits.growth import fill
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure
from tollkeeper.backups import backup_equipment
from tollkeeper.config import Settings
from tollkeeper.migrate.backup import Occasion, take_backup
from tollkeeper.migrate.backup_errors import sized
from tollkeeper.migrate.backup_model import Level
from tollkeeper.migrate.progress import Silent, unlogged
from tollkeeper.migrate.verify import verify_backup

TRANSACTIONS = 1_000_000
"""Of the ledger (issue 5)."""

_Result = TypeVar("_Result")


def measure(bench: Bench) -> list[Figure]:
    """Return the durations of a backup and its verifications, and its size."""
    return uvloop.run(_measure(bench, bench.migrated_database("credits")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    size = TRANSACTIONS // 20 if bench.quick else TRANSACTIONS
    names = account_names(MANY_ACCOUNTS)
    async with running_engine(dsn) as under_test:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
        await fill(bench, under_test, names, size)
    equipment = backup_equipment(
        Settings(), bench.fresh_directory("backups"), log=unlogged, progress=Silent()
    )
    backup, taken_s = await _timed(
        take_backup(dsn, Occasion(service="credits", reason="measured"), equipment)
    )
    bench.say(f"backup: {taken_s:.1f} s, {sized(backup.dump.size_bytes)}")
    _, read_s = await _timed(verify_backup(backup.id, Level.READ, equipment))
    _, deep_s = await _timed(verify_backup(backup.id, Level.DEEP, equipment, dsn=dsn))
    bench.say(f"read: {read_s:.1f} s, deep: {deep_s:.1f} s")
    what = f"{size:,} transactions of {len(names):,} accounts"
    return [
        Figure(
            what="backup", value=taken_s, unit="s",
            note=f"{what}: {sized(backup.database_bytes)} become "
            f"{sized(backup.dump.size_bytes)} ({backup.compression})",
        ),
        Figure(what="verification by reading", value=read_s, unit="s", note="every byte"),
        Figure(
            what="deep verification", value=deep_s, unit="s",
            note="restored beside it; rows, sums, heads and every chain compared",
        ),
    ]  # fmt: skip


async def _timed(work: Awaitable[_Result]) -> tuple[_Result, float]:
    began = time.perf_counter()
    result = await work
    return result, time.perf_counter() - began
