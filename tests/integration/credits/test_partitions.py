"""Partitions: made ahead by the worker, by the service if there is none, dropped when expired."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import pytest
from tests.ledger import Ledger, consume, opening, running_ledger, topup, words_of

from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.worker import maintain_partitions

PARTITIONS = (
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = $1::text::regclass AND NOT i.inhdetachpending ORDER BY 1"
)
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^idempotency_keys_'"


@pytest.fixture
async def worker_pool(credits_dsn: str) -> AsyncIterator[Pool]:
    pool = Pool(connector(credits_dsn), size=1, clock=SystemClock())
    yield pool
    await pool.close()


async def drop_partitions(owner: Connection, *tables: str) -> None:
    for table in tables:
        for row in await owner.fetch(PARTITIONS, table):
            await owner.execute(f"DROP TABLE {row['relname']}")


async def make_day(owner: Connection, day: date) -> str:
    """Make the key partition of a day, as an earlier worker did; return its name."""
    name = f"idempotency_keys_{day:%Y%m%d}"
    await owner.execute(
        f"CREATE TABLE {name} PARTITION OF idempotency_keys"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
    )
    return name


async def key_tables(owner: Connection) -> set[str]:
    return {row["relname"] for row in await owner.fetch(TABLES)}


async def today(owner: Connection) -> date:
    now: datetime = await owner.fetchval("SELECT now()")
    return now.astimezone(UTC).date()


@pytest.mark.parametrize("tables", [("credit_transactions",), ("idempotency_keys",)])
async def test_a_service_without_partitions_makes_them_and_goes_on(
    ledger: Ledger, owner: Connection, tables: tuple[str, ...]
) -> None:
    await drop_partitions(owner, *tables)

    assert ["opened", "posted"] == words_of(await ledger.execute(opening("ann"), topup("ann", 5)))
    assert [] != await owner.fetch(PARTITIONS, tables[0])


async def test_two_engines_and_all_their_lanes_without_partitions_go_on(
    credits_dsn: str, owner: Connection
) -> None:
    """Only one of them makes the partitions; the others must notice that they are there."""
    names = [f"account-{number}" for number in range(8)]
    async with (
        running_ledger(credits_dsn, lanes=4) as one,
        running_ledger(credits_dsn, lanes=4) as two,
    ):
        await one.open_with(100, *names)
        await drop_partitions(owner, "credit_transactions", "idempotency_keys")
        answers = await asyncio.gather(
            *(ledger.execute(consume(name, 1)) for name in names for ledger in (one, two))
        )

    assert ["posted"] * 16 == words_of([result for (result,) in answers])


async def test_the_worker_makes_partitions_ahead(worker_pool: Pool, owner: Connection) -> None:
    await drop_partitions(owner, "credit_transactions", "idempotency_keys")
    await maintain_partitions(worker_pool, LedgerStore())
    first = await today(owner)
    days = [f"idempotency_keys_{first + timedelta(days=ahead):%Y%m%d}" for ahead in range(2)]

    assert days == [row["relname"] for row in await owner.fetch(PARTITIONS, "idempotency_keys")]
    assert 5 == len(await owner.fetch(PARTITIONS, "credit_transactions"))


async def test_the_worker_drops_expired_keys_and_no_others(
    worker_pool: Pool, owner: Connection
) -> None:
    first = await today(owner)
    expired = {await make_day(owner, first - timedelta(days=ago)) for ago in (400, 30, 3)}
    kept = await make_day(owner, first - timedelta(days=1))
    before = await key_tables(owner)
    await maintain_partitions(worker_pool, LedgerStore())

    assert before - expired == await key_tables(owner)
    assert kept in await key_tables(owner)


async def test_dropping_waits_for_no_reader_and_a_detach_cut_short_is_finished(
    worker_pool: Pool, owner: Connection, credits_dsn: str
) -> None:
    """A snapshot that may still need the partition holds the detach up; then the worker ends."""
    name = await make_day(owner, await today(owner) - timedelta(days=5))
    reader = await connector(credits_dsn)()
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("SELECT count(*) FROM idempotency_keys")
        cut_short = asyncio.ensure_future(maintain_partitions(worker_pool, LedgerStore()))
        async with asyncio.timeout(10):
            while name in {
                row["relname"] for row in await owner.fetch(PARTITIONS, "idempotency_keys")
            }:
                await asyncio.sleep(0.005)
        cut_short.cancel()
        await asyncio.gather(cut_short, return_exceptions=True)
        assert name in await key_tables(owner)
    await reader.close()
    await maintain_partitions(worker_pool, LedgerStore())

    assert name not in await key_tables(owner)


async def test_a_partition_that_was_detached_but_not_dropped_is_dropped(
    worker_pool: Pool, owner: Connection
) -> None:
    name = await make_day(owner, await today(owner) - timedelta(days=5))
    await owner.execute(f"ALTER TABLE idempotency_keys DETACH PARTITION {name}")
    await maintain_partitions(worker_pool, LedgerStore())

    assert name not in await key_tables(owner)


async def test_two_workers_at_once_do_the_work_once(
    worker_pool: Pool, owner: Connection, credits_dsn: str
) -> None:
    expired = await make_day(owner, await today(owner) - timedelta(days=5))
    await drop_partitions(owner, "credit_transactions")
    other = Pool(connector(credits_dsn), size=1, clock=SystemClock())
    await asyncio.gather(
        *(maintain_partitions(pool, LedgerStore()) for pool in (worker_pool, other) for _ in "ab")
    )
    await other.close()

    assert expired not in await key_tables(owner)
    assert 5 == len(await owner.fetch(PARTITIONS, "credit_transactions"))


async def test_one_round_of_the_worker_as_a_process(credits_dsn: str, owner: Connection) -> None:
    expired = await make_day(owner, await today(owner) - timedelta(days=5))
    program = (
        "import os\n"
        "from tollkeeper.config import read_settings\n"
        "from tollkeeper.worker import run_worker\n"
        "run_worker(read_settings(os.environ), once=True)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env={**os.environ, "TOLLKEEPER_CREDITS_DSN": credits_dsn},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert 0 == done.returncode, done.stderr.decode()
    assert expired not in await key_tables(owner)
