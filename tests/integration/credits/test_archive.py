"""Old partitions are archived, sealed and checked; nobody finds a row missing, ever."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from tests.archive import EVERY_SEAL, QUARTER, Aged, aged_ledger, running_archivist
from tests.checkpoints import KEY, running_maker
from tests.database_clock import set_ahead
from tests.forging import faults_of
from tests.ledger import Ledger, consume, running_ledger, topup, words, words_of
from tests.reconciliation import look_at_all, running_reconciler, unfreeze
from tests.usage import running_roller

from tollkeeper.credits import requests
from tollkeeper.credits.archive_store import SESSION_SETTINGS, ArchiveStore
from tollkeeper.credits.auditor import Auditor
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.model import Posted, Transaction
from tollkeeper.credits.note import make_key, open_note
from tollkeeper.credits.usage import SLOT, START, Bucket, By, Question, Usage, slot_of
from tollkeeper.credits.usage_reader import UsageReader
from tollkeeper.credits.usage_store import UsageStore
from tollkeeper.database.binaries import all_binaries
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId

ANN = AccountId("ann")
LINKED = (
    "SELECT count(*) FROM audit_log_chain AS c JOIN audit_log_chain AS p"
    " ON p.account_id = c.account_id AND p.sequence = c.sequence - 1"
    " AND p.current_hash = c.previous_hash WHERE c.account_id = 'ann'"
)


@pytest.fixture
async def aged(credits_dsn: str) -> AsyncIterator[Aged]:
    async with aged_ledger(credits_dsn) as aged:
        yield aged


async def history_of(aged: Aged, *, after: int = 0, limit: int = 1_000) -> list[Transaction]:
    return list(await aged.ledger.service.history(ANN, None, after=after, limit=limit))


async def archive(dsn: str, *, registry: CollectorRegistry | None = None) -> None:
    async with running_archivist(dsn, registry=registry) as archivist:
        await archivist.round(EVERY_SEAL)


async def frozen(aged: Aged) -> list[str]:
    found = await aged.ledger.service.frozen(None, after=0, limit=100)
    return [freeze.account_id for freeze in found]


async def seals_of(aged: Aged) -> dict[str, str]:
    rows = await aged.owner.fetch("SELECT partition, note FROM partition_seals")
    return {row["partition"]: row["note"] for row in rows}


async def test_an_archived_ledger_answers_as_before(other_credits_dsn: str) -> None:
    """On every PostgreSQL: pages, one transaction, refund, capture, proof; and it is verified."""
    dsn = other_credits_dsn
    async with aged_ledger(dsn) as aged, running_maker(dsn) as maker:
        ledger, before = aged.ledger, await history_of(aged)
        await maker.make()
        await archive(dsn)
        archived = await aged.partitions("archived_transactions")
        linked = await aged.owner.fetchval(LINKED)
        pages = [await history_of(aged, after=after, limit=3) for after in range(len(before))]
        refunded, captured = await ledger.execute(
            requests.refund(words("ann"), transaction_id=aged.consumption_id),
            requests.capture(words("ann"), hold_id=aged.hold_id, amount=15),
        )
        auditor = Auditor(ledger.pool, CheckpointStore(), ledger.store)
        proof = await auditor.prove(aged.consumption_id, None)

        assert len(archived) >= 3
        assert set(archived) == set(await seals_of(aged))
        assert [before[after : after + 3] for after in range(len(before))] == pages
        assert ["posted", "posted"] == words_of([refunded, captured])
        assert str(aged.consumption_id) == proof.transaction_id
        assert len(before) - 1 == linked
        await ledger.assert_sound()


async def step_bound(connection: Connection, store: ArchiveStore) -> None:
    for each in await store.archivable(connection, 2, datetime.now(UTC)):
        if each.bound is not None:
            await store.prepare(connection, each.bound)


async def step_validate(connection: Connection, store: ArchiveStore) -> None:
    for each in await store.archivable(connection, 2, datetime.now(UTC)):
        if each.validate is not None:
            await store.prepare(connection, each.validate)


async def step_archive(connection: Connection, store: ArchiveStore) -> None:
    for each in await store.archivable(connection, 2, datetime.now(UTC)):
        await store.archive(connection, each.partition)


STEPS: list[Callable[[Connection, ArchiveStore], Awaitable[None]]] = [
    step_bound,
    step_validate,
    step_archive,
]


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
async def test_a_round_goes_on_where_one_was_cut(aged: Aged, credits_dsn: str, done: int) -> None:
    """Whatever a worker did before it died, the ledger is whole, and the next round ends it."""
    connection = await connector(credits_dsn, settings=SESSION_SETTINGS)()
    for step in STEPS[:done]:
        await step(connection, ArchiveStore())
    await connection.close()
    await aged.ledger.assert_sound()
    await archive(credits_dsn)
    checks = await aged.owner.fetch(
        "SELECT conname FROM pg_constraint WHERE conname = 'archive_bounds'"
    )

    assert [] == checks
    assert set(await aged.partitions("archived_transactions")) == set(await seals_of(aged))
    assert {"credit_transactions_"} == {
        name[:20] for name in await aged.partitions("archived_transactions")
    }
    await aged.ledger.assert_sound()


async def test_a_move_that_is_killed_leaves_the_partition_where_it_was(
    aged: Aged, credits_dsn: str
) -> None:
    connection = await connector(credits_dsn, settings=SESSION_SETTINGS)()
    for step in STEPS[:2]:
        await step(connection, ArchiveStore())
    live = await aged.partitions("credit_transactions")
    await connection.execute("BEGIN")
    await step_archive(connection, ArchiveStore())
    ended = asyncio.ensure_future(connection.execute("SELECT pg_sleep(600)"))
    await aged.owner.fetch("SELECT pg_terminate_backend($1, 10000)", connection.get_server_pid())
    await asyncio.gather(ended, return_exceptions=True)

    assert live == await aged.partitions("credit_transactions")
    assert [] == await aged.partitions("archived_transactions")
    await aged.ledger.assert_sound()


async def test_moving_asks_for_no_lock_of_the_table_while_somebody_reads_the_partition(
    aged: Aged, credits_dsn: str
) -> None:
    """A long reader postpones the archive; writers do not queue behind who waits for it."""
    registry = CollectorRegistry()
    reader = await connector(credits_dsn, settings={"application_name": "reader"})()
    live = await aged.partitions("credit_transactions")
    connection = await connector(credits_dsn, settings=SESSION_SETTINGS)()
    for step in STEPS[:2]:
        await step(connection, ArchiveStore())
    async with reader.transaction(isolation="repeatable_read"):
        count = await reader.fetchval("SELECT count(*) FROM ledger_transactions")
        await archive(credits_dsn, registry=registry)
        await connection.execute("BEGIN")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await step_archive(connection, ArchiveStore())
        await connection.execute("ROLLBACK")

        assert live == await aged.partitions("credit_transactions")
        assert count == await reader.fetchval("SELECT count(*) FROM ledger_transactions")
        # Nor once for every partition: each attempt may cost commits 0.2 s.
        assert 1 == registry.get_sample_value("credits_archive_postponements_total")
    await reader.close()
    await connection.close()
    await archive(credits_dsn)

    assert [] != await aged.partitions("archived_transactions")


WAITING = (
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def test_readers_that_follow_each_other_do_not_keep_a_partition(
    aged: Aged, credits_dsn: str
) -> None:
    """Whoever queues behind the move holds the table: it must not need it while they wait."""
    settings = {"application_name": "reader"}
    first, second = [await connector(credits_dsn, settings=settings)() for _ in range(2)]
    connection = await connector(credits_dsn, settings=SESSION_SETTINGS)()
    for step in STEPS[:2]:
        await step(connection, ArchiveStore())
    (oldest, *_) = await ArchiveStore().archivable(connection, 2, datetime.now(UTC))

    async def moved_between_readers() -> bool:
        await first.execute("BEGIN")
        await first.fetch("SELECT FROM credit_transactions")
        moving = asyncio.ensure_future(ArchiveStore().archive(connection, oldest.partition))
        following = None
        while not moving.done():
            waiting = await aged.owner.fetchval(WAITING)
            if waiting == 1 and following is None:
                following = asyncio.ensure_future(second.fetch("SELECT FROM credit_transactions"))
            if waiting == 2:
                break
        await first.execute("COMMIT")
        results = await asyncio.gather(moving, *filter(None, [following]), return_exceptions=True)
        return results[0] is None

    attempts = 0  # a slow machine may not queue anybody within 0.2 s
    while attempts < 20 and not await moved_between_readers():
        attempts += 1
    for each in (first, second, connection):
        await each.close()

    assert attempts < 20


async def test_archiving_beside_writers_and_readers_accuses_nobody_and_loses_nothing(
    other_credits_dsn: str, tmp_path: Path
) -> None:
    """Quarters go, one after the other, while two processes book, and others read and verify.

    No statement of the writers waits for 2 s: that is their limit, and would be a retry.
    """
    dsn = other_credits_dsn
    async with aged_ledger(dsn) as aged, running_ledger(dsn) as other:
        ledger, is_over = aged.ledger, asyncio.Event()
        start = await ledger.balance("ann")

        async def write(each: Ledger, name: str) -> int:
            count = 0
            while not is_over.is_set():
                results = await each.execute(consume(name, 1), topup("ann", 2))
                assert ["posted", "posted"] == words_of(results)
                count += 1
            return count

        async def read() -> int:
            count, whole = 0, len(await history_of(aged))
            while not is_over.is_set():
                page = await history_of(aged, limit=whole)
                assert list(range(1, whole + 1)) == [each.sequence for each in page]
                assert [] == await faults_of(ledger)
                count += 1
            return count

        async def move() -> None:
            for quarters in (6, 5, 4, 3, 2):
                while True:
                    async with running_archivist(dsn, after_quarters=quarters) as archivist:
                        await archivist.round(EVERY_SEAL)
                    await asyncio.sleep(0)
                    if not await _archivable(aged, quarters):
                        break
            is_over.set()

        async with running_reconciler(ledger, dsn, tmp_path) as reconciler:
            booked, also, seen, _ = await asyncio.gather(
                write(ledger, "ann"), write(other, "bob"), read(), move()
            )
            await look_at_all(reconciler)

        assert [] == await frozen(aged)
        assert min(booked, also, seen) > 0
        assert start + 2 * (booked + also) - booked == await ledger.balance("ann")
        assert 0 == ledger.retries("database") == other.retries("database")
        await ledger.assert_sound()


async def _archivable(aged: Aged, quarters: int) -> bool:
    return bool(await ArchiveStore().archivable(aged.owner, quarters, datetime.now(UTC)))


async def test_an_edited_archived_row_is_found_by_its_chain_and_by_its_seal(
    aged: Aged, credits_dsn: str, forger: Connection
) -> None:
    registry = CollectorRegistry()
    await archive(credits_dsn)
    await forger.execute(
        "UPDATE archived_transactions SET amount = 9 WHERE account_id = 'ann' AND sequence = 3"
    )
    by_chain = await faults_of(aged.ledger)
    await archive(credits_dsn, registry=registry)
    by_both = await faults_of(aged.ledger)

    assert ("ann", "hash", 3) in {(f.account_id, f.fault.value, f.sequence) for f in by_chain}
    assert {None} == {f.account_id for f in by_both} - {f.account_id for f in by_chain}
    assert 1 == registry.get_sample_value("credits_broken_seals")
    assert 1 == registry.get_sample_value("credits_seal_checks_total", {"result": "broken"})


EDITS = {
    "metadata": "UPDATE archived_transactions SET metadata = '[]' WHERE sequence = 3",
    "hash": "UPDATE archived_transactions SET hash = sha256('x') WHERE sequence = 3",
    "row": "DELETE FROM archived_transactions WHERE sequence = 3",
    "seal": "UPDATE partition_seals SET note = replace(note, 'topup 2', 'topup 3')",
    "numbers": "UPDATE partition_seals SET root = sha256('x') WHERE transactions = 5",
    "table": (
        "DO $$ DECLARE part regclass; BEGIN SELECT tableoid::regclass INTO part"
        " FROM archived_transactions WHERE account_id = 'ann' AND sequence = 3;"
        " EXECUTE format('DROP TABLE %s', part); END $$"
    ),
}


@pytest.mark.parametrize("edit", EDITS)
async def test_a_signed_seal_finds_what_was_done_to_it_or_to_its_rows(
    aged: Aged, credits_dsn: str, forger: Connection, edit: str
) -> None:
    registry = CollectorRegistry()
    async with running_archivist(credits_dsn, key=KEY, registry=registry) as archivist:
        await archivist.round()
        notes = await seals_of(aged)
        await archivist.round(EVERY_SEAL)
        intact = registry.get_sample_value("credits_broken_seals")
        await forger.execute(EDITS[edit])
        await archivist.round(EVERY_SEAL)

    assert all(
        open_note(note, [KEY.verifying]).startswith(f"{KEY.name}/seal\n") for note in notes.values()
    )
    assert 0 == intact
    assert 1 == registry.get_sample_value("credits_broken_seals")
    assert None in {fault.account_id for fault in await faults_of(aged.ledger)}


async def test_another_key_of_the_same_name_doubts_no_seal(aged: Aged, credits_dsn: str) -> None:
    """The guide says that a worker may be started with a new key."""
    registry = CollectorRegistry()
    async with running_archivist(credits_dsn, key=KEY) as archivist:
        await archivist.round()
    another = make_key(KEY.name, bytes(32))
    async with running_archivist(credits_dsn, key=another, registry=registry) as archivist:
        await archivist.round(EVERY_SEAL)

    assert 0 == registry.get_sample_value("credits_broken_seals")
    assert 0 < (registry.get_sample_value("credits_archive_partitions") or 0)


async def test_a_seal_without_a_key_says_so(aged: Aged, credits_dsn: str) -> None:
    await archive(credits_dsn)

    assert {"unsigned/seal"} == {note.splitlines()[0] for note in (await seals_of(aged)).values()}


async def test_an_archived_row_that_was_edited_freezes_its_account_and_can_be_answered_for(
    aged: Aged, credits_dsn: str, forger: Connection, tmp_path: Path
) -> None:
    """Also of an account all of whose rows are in the archive."""
    await archive(credits_dsn)
    async with running_reconciler(aged.ledger, credits_dsn, tmp_path) as reconciler:
        await look_at_all(reconciler)
        sound = await frozen(aged)
        await forger.execute(
            "UPDATE archived_transactions SET description = 'x'"
            " WHERE account_id = 'bob' AND sequence = 2"
        )
        await look_at_all(reconciler)
        suspected = await frozen(aged)
        (lifted,) = await aged.ledger.execute(unfreeze("bob"))
        await look_at_all(reconciler)

    assert [] == sound
    assert ["bob"] == suspected
    assert isinstance(lifted, Posted)
    assert 3 == lifted.transaction.sequence
    assert [] == await frozen(aged)


CHANGES = (
    "UPDATE archived_transactions SET amount = 1",
    "DELETE FROM archived_transactions",
    "INSERT INTO archived_transactions SELECT * FROM archived_transactions",
    "TRUNCATE archived_transactions",
    "UPDATE partition_seals SET transactions = 1",
    "DELETE FROM partition_seals",
    "TRUNCATE partition_seals",
)


async def test_not_even_the_owner_changes_what_is_archived(aged: Aged, credits_dsn: str) -> None:
    await archive(credits_dsn)
    for change in CHANGES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await aged.owner.execute(change)


async def test_a_dump_brings_the_archive_back_as_it_was(
    aged: Aged, credits_dsn: str, empty_dsn: str, tmp_path: Path
) -> None:
    await archive(credits_dsn)
    programs, file = all_binaries()[0], tmp_path / "dump"
    for command in (
        [programs / "pg_dump", "-Fc", "-f", file, credits_dsn],
        [programs / "pg_restore", "--exit-on-error", "-d", empty_dsn, file],
    ):
        process = await asyncio.create_subprocess_exec(*map(str, command))
        assert 0 == await process.wait()
    registry = CollectorRegistry()
    await archive(empty_dsn, registry=registry)
    restored = await connector(empty_dsn)()
    kept = await restored.fetchval("SELECT count(*) FROM partition_seals")
    async with running_ledger(empty_dsn) as ledger:
        await ledger.assert_sound()
    await restored.close()

    assert kept == len(await seals_of(aged))
    assert 0 == registry.get_sample_value("credits_broken_seals")
    assert kept == registry.get_sample_value("credits_seal_checks_total", {"result": "intact"})


async def test_usage_counts_what_is_archived_whether_it_is_rolled_up_or_not(
    aged: Aged, credits_dsn: str
) -> None:
    end = slot_of(datetime.now(UTC)) + 2 * SLOT
    question = Question(
        account_id=ANN, start=end - 8 * QUARTER, end=end, by=By.DAY, zone_name="UTC", zone=UTC
    )
    reader = UsageReader(aged.ledger.pool, UsageStore(), aged.ledger.store)

    async def usage() -> tuple[Question, Usage, tuple[Bucket, ...]]:
        return await reader.page(question, None, after=START, limit=100)

    before = await usage()
    await archive(credits_dsn)
    archived = await usage()
    async with running_roller(credits_dsn) as roller:
        await roller.round()
    kept = await aged.owner.fetchval("SELECT max(sequence) FROM rolled_accounts")

    assert before == archived == await usage()
    assert before[1].transactions == kept


DETACH = "ALTER TABLE archived_transactions DETACH PARTITION {}"
ATTACH = "ALTER TABLE credit_transactions ATTACH PARTITION {} FOR VALUES FROM ('{}') TO ('{}')"


async def test_a_partition_that_was_taken_back_accuses_nobody_and_goes_again(
    aged: Aged, credits_dsn: str
) -> None:
    """Also when somebody looked while it was in neither table."""
    idle, registry = CollectorRegistry(), CollectorRegistry()
    broken = partial(idle.get_sample_value, "credits_broken_seals")
    await archive(credits_dsn)
    ((partition, since, until),) = await aged.owner.fetch(
        "SELECT partition, from_time::text, to_time::text FROM partition_seals LIMIT 1"
    )
    await aged.owner.execute(DETACH.format(partition))
    async with running_archivist(credits_dsn, after_quarters=0, registry=idle) as archivist:
        await archivist.round()
        lost = broken()
        await aged.owner.execute(ATTACH.format(partition, since, until))
        await archivist.round()
    await aged.ledger.assert_sound()
    async with running_archivist(credits_dsn, registry=registry) as archivist:
        await archivist.round()

    assert (1, 0) == (lost, broken())
    assert 0 == registry.get_sample_value("credits_broken_seals")
    assert partition in await aged.partitions("archived_transactions")
    await aged.ledger.assert_sound()


async def test_two_archivists_at_once_do_the_work_once(aged: Aged, credits_dsn: str) -> None:
    await asyncio.gather(*(archive(credits_dsn) for _ in range(3)))
    await archive(credits_dsn)

    assert set(await aged.partitions("archived_transactions")) == set(await seals_of(aged))


async def test_without_the_setting_nothing_is_archived(aged: Aged, credits_dsn: str) -> None:
    async with running_archivist(credits_dsn, after_quarters=0) as archivist:
        await archivist.round()

    assert [] == await aged.partitions("archived_transactions")


async def test_nothing_is_written_to_an_archived_quarter(aged: Aged, credits_dsn: str) -> None:
    """A clock set back by years writes nothing; set right, the ledger goes on."""
    await archive(credits_dsn)
    await set_ahead(aged.owner, -7 * QUARTER)
    refused = await aged.ledger.execute(topup("bob", 5))
    await set_ahead(aged.owner, 0 * QUARTER)

    assert ["failed"] == words_of(refused)
    assert ["posted"] == words_of(await aged.ledger.execute(topup("bob", 5)))
    await aged.ledger.assert_sound()
