"""The summary of balances: what the accounts said a moment ago, read without waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from tests.ledger import Ledger, consume, opening, running_ledger, topup, words, words_of

from tollkeeper.credits import requests
from tollkeeper.credits.life_metrics import SummaryMetrics
from tollkeeper.credits.summarizer import Summarizer
from tollkeeper.credits.summary_store import SummaryStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.wiring import CREDITS_ROLE

SUMMARY = (
    "SELECT tenant_id, accounts, balance::bigint, reserved::bigint, available::bigint, frozen"
    " FROM credit_balances_summary ORDER BY tenant_id"
)
# Rows that were written have new places.
PLACES = "SELECT tenant_id, ctid::text FROM credit_balances_summary ORDER BY tenant_id"


class Worker:
    """What keeps the summary, and how its rounds ended."""

    def __init__(self, summarizer: Summarizer, registry: CollectorRegistry) -> None:
        self._summarizer = summarizer
        self._registry = registry

    async def round(self) -> str:
        """Do a round; return how it ended."""
        before = self.results()
        await self._summarizer.round()
        return next(result for result, count in self.results().items() if count > before[result])

    def results(self) -> dict[str, float]:
        return {
            sample.labels["result"]: sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
            if sample.name == "credits_summary_rounds_total"
        }

    @property
    def as_of(self) -> float:
        value = self._registry.get_sample_value("credits_summary_as_of_timestamp_seconds")
        assert value is not None
        return value


@asynccontextmanager
async def running_worker(dsn: str, *, period_s: float = 0.0) -> AsyncIterator[Worker]:
    registry = CollectorRegistry()
    pool = Pool(connector(dsn), size=1, clock=SystemClock())
    try:
        summarizer = Summarizer(
            pool, SummaryStore(), metrics=SummaryMetrics(registry), period_s=period_s
        )
        yield Worker(summarizer, registry)
    finally:
        await pool.close()


@pytest.fixture
async def worker(credits_dsn: str) -> AsyncIterator[Worker]:
    async with running_worker(credits_dsn) as worker:
        yield worker


async def summary(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(SUMMARY)]


async def test_the_summary_says_what_the_accounts_say(other_credits_dsn: str) -> None:
    reader = await connector(other_credits_dsn, role=CREDITS_ROLE)()
    async with (
        running_ledger(other_credits_dsn) as ledger,
        running_worker(other_credits_dsn) as worker,
    ):
        empty = await summary(reader)
        await ledger.open_with(100, "ann", "bob")
        await ledger.execute(opening("cleo", "umbra"))
        await ledger.execute(requests.reserve(words("ann"), amount=30))
        result = await worker.round()

        assert [] == empty
        assert "refreshed" == result
        assert [("acme", 2, 200, 30, 170, 0), ("umbra", 1, 0, 0, 0, 0)] == await summary(reader)
    await reader.close()


async def test_what_did_not_change_is_not_written(
    ledger: Ledger, owner: Connection, worker: Worker
) -> None:
    await ledger.open_with(100, "ann")
    await ledger.execute(opening("cleo", "umbra"))
    await worker.round()
    first, as_of = await owner.fetch(PLACES), worker.as_of
    unchanged = await worker.round()
    same = await owner.fetch(PLACES)
    await ledger.execute(consume("ann", 1))
    changed = await worker.round()
    acme, umbra = await owner.fetch(PLACES)

    assert "unchanged" == unchanged
    assert first == same
    assert as_of < worker.as_of
    assert "refreshed" == changed
    assert first[0] != acme
    assert first[1] == umbra


async def test_a_freeze_alone_is_seen(ledger: Ledger, owner: Connection, worker: Worker) -> None:
    await ledger.open_with(100, "ann", "bob")
    await worker.round()
    await owner.execute("UPDATE accounts SET frozen_at = now() WHERE account_id = 'ann'")

    assert "refreshed" == await worker.round()
    assert [("acme", 2, 200, 0, 200, 1)] == await summary(owner)


async def test_an_unpopulated_summary_is_filled(
    ledger: Ledger, owner: Connection, worker: Worker
) -> None:
    """As it is left by a migration on a ledger of millions of accounts."""
    await ledger.open_with(100, "ann")
    await owner.execute("REFRESH MATERIALIZED VIEW credit_balances_summary WITH NO DATA")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await summary(owner)

    assert "refreshed" == await worker.round()
    assert [("acme", 1, 100, 0, 100, 0)] == await summary(owner)


async def test_another_workers_refresh_is_left_as_it_is(
    ledger: Ledger, worker: Worker, credits_dsn: str
) -> None:
    await ledger.open_with(100, "ann")
    await worker.round()
    async with running_worker(credits_dsn, period_s=3_600.0) as other:
        assert "fresh" == await other.round()
        assert worker.as_of == other.as_of


async def test_while_one_worker_is_at_it_the_others_are_not(
    ledger: Ledger, owner: Connection, worker: Worker
) -> None:
    await ledger.open_with(100, "ann")
    store = SummaryStore()
    async with store.summary_lock(owner) as held:
        busy = await worker.round()

    assert held
    assert "busy" == busy
    assert "refreshed" == await worker.round()


async def test_readers_and_writers_go_on_during_a_refresh(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    """The refresh stands still for as long as they take, with all its locks held."""
    await ledger.open_with(100, "ann")
    reader = await connector(credits_dsn, settings={"lock_timeout": "1ms"})()
    async with owner.transaction():
        await owner.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY credit_balances_summary")
        before = await summary(reader)
        booked = await ledger.execute(*(topup("ann", 1) for _ in range(50)))
    await reader.close()

    assert [] == before
    assert {"posted"} == set(words_of(booked))
    assert 0 == ledger.retries("database")


async def test_a_refresh_beside_writers_never_shows_half_a_commit(
    owner: Connection, credits_dsn: str
) -> None:
    """Each commit moves a credit from one account to the other: the tenant's sum stands still."""
    async with running_ledger(credits_dsn, lanes=1) as ledger:
        await ledger.open_with(1_000, "ann", "bob")
        moved, seen = await _moved_and_seen(ledger, owner, credits_dsn)

    assert moved > 0
    assert [[("acme", 2, 2_000, 0, 2_000, 0)]] * 20 == seen


async def _moved_and_seen(
    ledger: Ledger, owner: Connection, dsn: str
) -> tuple[int, list[list[tuple[object, ...]]]]:
    is_over = asyncio.Event()

    async def write() -> int:
        count = 0
        while not is_over.is_set():
            await ledger.execute(consume("ann", 1), topup("bob", 1))
            count += 1
        return count

    async def refresh() -> list[list[tuple[object, ...]]]:
        seen = []
        async with running_worker(dsn) as worker:
            for _ in range(20):
                await worker.round()
                seen.append(await summary(owner))
        is_over.set()
        return seen

    return await asyncio.gather(write(), refresh())
