"""The engine's promises: bounds, drain, callers who leave, poison, a database that goes away."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence

import asyncpg
import msgspec
import pytest
from tests.conftest import Databases, temporary_server
from tests.ledger import Ledger, consume, opening, running_ledger, topup, words, words_of

from tollkeeper.credits import requests
from tollkeeper.credits.engine import Result
from tollkeeper.credits.errors import Draining, LedgerUnavailable, OperationFailed, QueueFull
from tollkeeper.credits.model import Loaded, Operation
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.backoff import Backoff

DEADLINE_S = 20.0
QUICK = Backoff(first_ms=1, ceiling_ms=4, retries=2)


class GatedStore(LedgerStore):
    """A store that loads only while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()

    async def load(
        self, connection: Connection, operations: Sequence[Operation], *, locked: bool = False
    ) -> Loaded:
        self.arrived.set()
        await self.gate.wait()
        return await super().load(connection, operations, locked=locked)


@pytest.fixture
async def gated(credits_dsn: str, ledger: Ledger) -> AsyncIterator[tuple[Ledger, GatedStore]]:
    """An engine on an account `ann` with 100, stopped before its first load."""
    await ledger.open_with(100, "ann")
    store = GatedStore()
    async with running_ledger(credits_dsn, store=store, lanes=1, queue=10) as gated:
        yield gated, store


async def test_past_the_bound_nothing_is_accepted_and_nothing_accepted_is_lost(
    gated: tuple[Ledger, GatedStore],
) -> None:
    ledger, store = gated
    accepted = [asyncio.ensure_future(ledger.execute(consume("ann", 1))) for _ in range(10)]
    await store.arrived.wait()
    with pytest.raises(QueueFull) as refused:
        await ledger.execute(consume("ann", 1))
    waiting = ledger.engine.waiting
    store.gate.set()
    answers = await asyncio.gather(*accepted)

    assert (10, 10, 1) == (waiting, refused.value.limit, refused.value.retry_after_s)
    assert ["posted"] * 10 == words_of([result for (result,) in answers])
    assert 90 == await ledger.balance("ann")
    assert 0 == ledger.engine.waiting


async def test_a_batch_that_does_not_fit_is_refused_whole(
    gated: tuple[Ledger, GatedStore],
) -> None:
    ledger, store = gated
    store.gate.set()
    with pytest.raises(QueueFull):
        await ledger.execute(*(consume("ann", 1) for _ in range(11)))

    assert 0 == ledger.engine.waiting
    assert 100 == await ledger.balance("ann")


async def test_draining_finishes_what_was_accepted_and_accepts_nothing_new(
    gated: tuple[Ledger, GatedStore],
) -> None:
    ledger, store = gated
    accepted = [asyncio.ensure_future(ledger.execute(consume("ann", 1))) for _ in range(5)]
    await store.arrived.wait()
    draining = asyncio.ensure_future(ledger.engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await ledger.execute(consume("ann", 1))
    assert not draining.done()
    store.gate.set()
    await draining

    assert ["posted"] * 5 == words_of([r for (r,) in await asyncio.gather(*accepted)])
    assert 95 == await ledger.balance("ann")


async def test_an_engine_that_is_closed_undrained_says_that_the_outcome_is_open(
    gated: tuple[Ledger, GatedStore],
) -> None:
    ledger, store = gated
    waiting = [asyncio.ensure_future(ledger.execute(consume("ann", 1))) for _ in range(5)]
    await store.arrived.wait()
    await ledger.engine.close()
    found = await asyncio.gather(*waiting)

    assert [LedgerUnavailable] * 5 == [type(each) for (each,) in found]
    assert 0 == ledger.engine.waiting


async def test_callers_who_leave_change_nothing_about_what_was_accepted(
    gated: tuple[Ledger, GatedStore],
) -> None:
    ledger, store = gated
    calls = [asyncio.ensure_future(ledger.execute(consume("ann", 1))) for _ in range(8)]
    await store.arrived.wait()
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls[::2], return_exceptions=True)
    store.gate.set()
    stayed = await asyncio.gather(*calls[1::2])
    await ledger.engine.drain()

    assert [True, False] * 4 == [call.cancelled() for call in calls]
    assert ["posted"] * 4 == words_of([result for (result,) in stayed])
    assert 92 == await ledger.balance("ann")


async def test_a_call_with_no_operations_has_no_results(ledger: Ledger) -> None:
    assert [] == await ledger.execute()


async def test_batches_larger_than_one_commit_are_decided_in_order(credits_dsn: str) -> None:
    async with running_ledger(credits_dsn, batch=7) as ledger:
        operations: list[Operation] = [opening("ann"), topup("ann", 50)]
        operations += [consume("ann", 1, f"key-{number % 60}") for number in range(100)]
        results = await ledger.execute(*operations)

        expected = ["posted"] * 50 + ["insufficient_credits"] * 10 + ["replayed"] * 40
        assert ["opened", "posted", *expected] == words_of(results)


async def test_what_the_database_will_not_take_fails_alone(ledger: Ledger) -> None:
    """The API lets no such text through; if it ever does, the neighbours must not pay."""
    await ledger.open_with(100, "ann", "bob")
    poison = msgspec.structs.replace(consume("ann", 1), description="NUL \0")
    calls = [
        ledger.execute(consume("ann", 1)),
        ledger.execute(consume("bob", 1)),
        ledger.execute(poison),
        ledger.execute(consume("ann", 1)),
        ledger.execute(msgspec.structs.replace(consume("bob", 1), metadata="not JSON")),
        ledger.execute(consume("bob", 1)),
    ]
    found = [result for (result,) in await asyncio.gather(*calls)]
    causes = [type(each.__cause__) for each in found if isinstance(each, OperationFailed)]

    assert ["posted", "posted", "failed", "posted", "failed", "posted"] == words_of(found)
    assert [
        asyncpg.CharacterNotInRepertoireError, asyncpg.InvalidTextRepresentationError
    ] == causes  # fmt: skip
    assert (98, 98) == (await ledger.balance("ann"), await ledger.balance("bob"))
    assert 0 == ledger.engine.waiting
    await ledger.assert_sound()


async def test_a_database_that_went_away_is_named_and_used_again_when_it_is_back() -> None:
    with temporary_server() as server, Databases(server).fresh("credits") as dsn:
        async with running_ledger(dsn, backoff=QUICK) as ledger:
            await ledger.open_with(1_000, "ann")
            os.kill(server.pid, signal.SIGKILL)
            sent: list[Operation] = []
            results: list[Result] = []
            words: list[str] = []
            # The backends outlive the postmaster by a moment.
            async with asyncio.timeout(DEADLINE_S):
                while words[-1:] != ["unavailable"]:
                    sent.append(consume("ann", 1))
                    results = await ledger.execute(sent[-1])
                    words += words_of(results)
            server.restart()
            again = words_of(await ledger.execute(*sent))

            assert isinstance(results[0], LedgerUnavailable)
            assert 3 == results[0].attempts
            assert {"posted"} >= set(words[:-1])
            # Its own id tells an operation that was committed after all: it is no replay.
            assert ["posted"] * len(sent) == again
            assert 1_000 - len(sent) == await ledger.balance("ann")
            await ledger.assert_sound()


async def test_a_database_that_is_back_before_the_retries_are_used_up_goes_unnoticed() -> None:
    with temporary_server() as server, Databases(server).fresh("credits") as dsn:
        patient = Backoff(first_ms=100, ceiling_ms=2_000, retries=10)
        async with running_ledger(dsn, backoff=patient) as ledger:
            await ledger.open_with(10_000, "ann")
            os.kill(server.pid, signal.SIGKILL)
            calls: list[asyncio.Future[list[Result]]] = []
            async with asyncio.timeout(DEADLINE_S):
                while ledger.retries("database") == 0:
                    calls.append(asyncio.ensure_future(ledger.execute(consume("ann", 1))))
                    await asyncio.sleep(0.001)
            server.restart()
            answers = await asyncio.gather(*calls)

            assert ["posted"] * len(calls) == words_of([result for (result,) in answers])
            assert 10_000 - len(calls) == await ledger.balance("ann")
            await ledger.assert_sound()


async def test_a_database_that_never_answers_is_unavailable(credits_dsn: str) -> None:
    """A network that swallows everything: not even the greeting comes back."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        dsn = f"postgresql://tollkeeper@127.0.0.1:{silent.getsockname()[1]}/nowhere"
        async with running_ledger(dsn, backoff=QUICK, lanes=1, acquire_timeout_s=0.05) as ledger:
            results = await ledger.execute(*(consume("ann", 1) for _ in range(20)))

            assert ["unavailable"] * 20 == words_of(results)


async def test_a_full_disk_is_no_fault_of_an_operation(ledger: Ledger, owner: Connection) -> None:
    """PostgreSQL says `disk_full`; tests/acceptance/test_full_disk.py fills one."""
    await ledger.open_with(100, "ann")
    await owner.execute(
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'no room' USING ERRCODE = 'disk_full'; END $$;"
        "CREATE TRIGGER no_room BEFORE INSERT ON holds FOR EACH ROW EXECUTE FUNCTION no_room()"
    )
    (refused,) = await ledger.execute(requests.reserve(words("ann", "k"), amount=10))
    await owner.execute("DROP TRIGGER no_room ON holds")
    (made,) = await ledger.execute(requests.reserve(words("ann", "k"), amount=10))

    assert ["unavailable", "posted"] == words_of([refused, made])
    await ledger.assert_sound()


async def test_an_account_that_cannot_be_read_fails_alone(
    ledger: Ledger, owner: Connection
) -> None:
    """Its row holds a time that no calendar has; the others of the same call are booked."""
    await ledger.open_with(100, "ann", "bob", "cleo")
    await owner.execute("UPDATE accounts SET created_at = '0044-03-15 BC' WHERE account_id = 'bob'")
    results = await ledger.execute(
        consume("ann", 1), consume("bob", 1), consume("cleo", 1), topup("bob", 1), opening("dan")
    )
    failed = results[1]
    with pytest.raises(OperationFailed, match="account bob failed"):
        await ledger.service.execute_one(consume("bob", 1))

    assert ["posted", "failed", "posted", "failed", "opened"] == words_of(results)
    assert isinstance(failed, OperationFailed)
    assert isinstance(failed.__cause__, Exception)
    assert 0 == ledger.engine.waiting
    assert 2 == ledger.registry.get_sample_value(
        "credits_operations_total", {"kind": "consume", "result": "failed"}
    )
