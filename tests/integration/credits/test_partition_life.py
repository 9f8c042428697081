"""How partitions are attached: under which locks, beside whom, and what strange tables do."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from tests.archive import PARTITIONS_OF
from tests.ledger import consume, running_ledger, topup, words, words_of

from tollkeeper.credits import requests
from tollkeeper.credits.life_metrics import PartitionMetrics
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.worker import show_partitions

PARENTS = ("credit_transactions", "holds", "idempotency_keys")
LOCKS = (
    "SELECT l.relation::regclass::text AS name, l.mode FROM pg_locks AS l"
    " WHERE l.pid = pg_backend_pid() AND l.relation = ANY($1::text[]::regclass[]::oid[])"
)
MAKE = "SELECT create_partitions(now(), 4, 1)"
ENDS = (
    "SELECT date_trunc('quarter', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    " + interval '15 months' AS quarters,"
    " date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '2 days' AS days"
)


@pytest.fixture
async def other_owner(other_credits_dsn: str) -> AsyncIterator[Connection]:
    connection = await connector(other_credits_dsn)()
    yield connection
    await connection.close()


async def partitions_of(owner: Connection, parent: str) -> list[str]:
    return [row["relname"] for row in await owner.fetch(PARTITIONS_OF, parent)]


async def drop_last(owner: Connection, *, parents: tuple[str, ...] = PARENTS) -> None:
    for parent in parents:
        name = (await partitions_of(owner, parent))[-1]
        await owner.execute(f"DROP TABLE {name}")


async def test_attaching_keeps_nobody_from_reading_and_writing(other_owner: Connection) -> None:
    await drop_last(other_owner)
    async with other_owner.transaction():
        made = await other_owner.fetchval(MAKE)
        held = {(row["name"], row["mode"]) for row in await other_owner.fetch(LOCKS, PARENTS)}

    assert 3 == made
    assert {
        (parent, mode)
        for parent in PARENTS
        for mode in ("AccessShareLock", "ShareUpdateExclusiveLock")
    } == held


async def test_a_partition_has_no_constraint_but_its_tables(other_owner: Connection) -> None:
    """The one that spares a scan is gone: every row would be checked against it."""
    differing = await other_owner.fetch(
        "SELECT c.conrelid::regclass::text FROM pg_constraint AS c"
        " JOIN pg_inherits AS i ON i.inhrelid = c.conrelid"
        " WHERE c.contype = 'c' AND c.coninhcount = 0"
    )

    assert [] == differing


async def test_attaching_beside_writers_lets_them_write(other_credits_dsn: str) -> None:
    """The creator stands still with its locks held until fifty batches are booked."""
    owner = await connector(other_credits_dsn)()
    async with running_ledger(other_credits_dsn) as ledger:
        await ledger.open_with(1_000, "ann", "bob")
        await drop_last(owner)
        async with owner.transaction():
            await owner.fetchval(MAKE)
            answers = [
                answer
                for _ in range(50)
                for answer in await ledger.execute(
                    consume("ann", 1), requests.reserve(words("bob"), amount=1)
                )
            ]
            await ledger.assert_sound()

        assert {"posted"} == set(words_of(answers))
        assert 950 == await ledger.balance("ann")
        assert 0 == ledger.retries("database")
    await owner.close()


async def test_a_partition_detached_by_hand_comes_back_with_its_rows(
    credits_dsn: str, owner: Connection
) -> None:
    async with running_ledger(credits_dsn) as ledger:
        await ledger.open_with(5, "ann")
        current = await owner.fetchval("SELECT tableoid::regclass::text FROM credit_transactions")
        await owner.execute(f"ALTER TABLE credit_transactions DETACH PARTITION {current}")
        booked = await ledger.execute(topup("ann", 1))

        assert ["posted"] == words_of(booked)
        await ledger.assert_sound()


@pytest.mark.parametrize("strange", ["TABLE {} (a integer)", "VIEW {} AS SELECT 1", "SEQUENCE {}"])
async def test_something_strange_of_that_name_keeps_no_other_from_being_made(
    owner: Connection, strange: str
) -> None:
    names = {parent: (await partitions_of(owner, parent))[-1] for parent in PARENTS}
    await drop_last(owner)
    await owner.execute("CREATE " + strange.format(names["credit_transactions"]))
    made = await owner.fetchval(MAKE)

    assert 2 == made
    assert names["credit_transactions"] not in await partitions_of(owner, "credit_transactions")
    assert names["holds"] == (await partitions_of(owner, "holds"))[-1]


async def test_the_ends_of_the_partitions_are_shown_up_to_the_first_gap(
    credits_dsn: str, owner: Connection
) -> None:
    pool = Pool(connector(credits_dsn), size=1, clock=SystemClock())
    registry = CollectorRegistry()
    metrics = PartitionMetrics(registry)

    async def shown() -> dict[str, float | None]:
        await show_partitions(pool, LedgerStore(), metrics)
        name = "credits_partitions_end_timestamp_seconds"
        return {each: registry.get_sample_value(name, {"table": each}) for each in PARENTS}

    ends = await owner.fetchrow(ENDS)
    assert ends is not None
    quarters, days = ends["quarters"].timestamp(), ends["days"].timestamp()
    whole = await shown()
    second = (await partitions_of(owner, "holds"))[1]
    await owner.execute(f"DROP TABLE {second}")
    for name in await partitions_of(owner, "credit_transactions"):
        await owner.execute(f"DROP TABLE {name}")
    broken = await shown()
    await pool.close()

    assert {"credit_transactions": quarters, "holds": quarters, "idempotency_keys": days} == whole
    assert 0 == broken["credit_transactions"]
    assert quarters - 300 * 86_400 > (broken["holds"] or 0) > 0


async def test_two_creators_at_once_make_each_once(credits_dsn: str, owner: Connection) -> None:
    await drop_last(owner)
    others = [await connector(credits_dsn)() for _ in range(4)]
    made = await asyncio.gather(*(each.fetchval(MAKE) for each in others))
    for each in others:
        await each.close()

    assert [0, 0, 0, 3] == sorted(made)
