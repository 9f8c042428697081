"""Bad days of one server: it restarts, dies, falls silent, is cut off, is full; clients go on."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest
from tests.conftest import temporary_server
from tests.replication import ask
from tests.stopping import stopped
from tests.supervised import (
    DEADLINE_S,
    QUICK,
    Client,
    Supervised,
    eventually,
    more,
    running,
    supervised,
)
from tests.valve import Valve

from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.errors import (
    DatabaseBusy,
    DatabaseDown,
    DatabaseUnavailable,
    PoolTimeout,
    SchemaMissing,
    TooManyConnections,
)
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.roles import HostCheck
from tollkeeper.database.status import Access, Health, HostState
from tollkeeper.kernel.breaker import BreakerState

WRITE = "INSERT INTO marks DEFAULT VALUES"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tollkeeper'"
READ = "SELECT count(*) FROM marks"
END_CHECKS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'tollkeeper health'
"""


@pytest.fixture
def mortal() -> Iterator[EmbeddedServer]:
    """A server of this test's own, with the table that clients write to."""
    with temporary_server() as server:
        asyncio.run(_prepare(server))
        yield server


async def _prepare(server: EmbeddedServer) -> None:
    await ask(server, "CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY)")


def clients_of(it: Supervised) -> tuple[Client, Client]:
    return Client(it.writes, WRITE), Client(it.reads, READ)


async def assert_as_before(it: Supervised, server: EmbeddedServer) -> None:
    """Breakers are closed, the host is a primary again, and no more is open than should be."""
    await eventually(
        lambda: {BreakerState.CLOSED} == {each.state for each in it.database.status().breakers}
    )
    await eventually(
        lambda: [HostState.PRIMARY] == [host.state for host in it.database.status().hosts]
    )
    assert all(pool.waiting == 0 for pool in it.database.status().pools)
    async with asyncio.timeout(DEADLINE_S):  # sessions that were hung up on take a moment to end
        while await ask(server, SESSIONS) != sum(each.open for each in it.database.status().pools):
            await asyncio.sleep(0.01)


async def test_restart_is_survived_without_a_storm(mortal: EmbeddedServer) -> None:
    async with supervised(mortal.dsn("postgres")) as it:
        writers, (writer, reader) = [Client(it.writes, WRITE) for _ in range(20)], clients_of(it)
        async with running(*writers, writer, reader):
            await more(writer)
            await more(reader)
            before = sum(pool.opened_total for pool in it.database.status().pools)
            await asyncio.to_thread(mortal.restart)
            await more(writer)
            await more(reader)
        pools = it.database.status().pools
        await assert_as_before(it, mortal)

    # 4 connections a pool; some of the new ones may have met the last moments of the old server.
    assert sum(pool.opened_total for pool in pools) - before <= 4 * 8
    assert all(isinstance(each, DatabaseUnavailable) for each in writer.failures)


async def test_server_that_is_killed_is_found_again(mortal: EmbeddedServer) -> None:
    async with supervised(mortal.dsn("postgres")) as it:
        writer, reader = clients_of(it)
        async with running(writer, reader):
            await more(writer)
            os.kill(mortal.pid, signal.SIGKILL)
            await eventually(lambda: isinstance(_last(writer), DatabaseDown))
            await eventually(lambda: isinstance(_last(reader), DatabaseDown))
            down = it.database.status()
            await asyncio.to_thread(mortal.restart)
            await more(writer)
            await more(reader)
        await assert_as_before(it, mortal)

    assert Health.DOWN is down.health
    assert [HostState.OFFLINE] == [host.state for host in down.hosts]
    assert 0 == sum(pool.waiting for pool in down.pools)


async def test_server_that_accepts_and_never_answers_is_given_up(mortal: EmbeddedServer) -> None:
    """Statement timeouts are the server's: one that is stopped keeps none."""
    async with supervised(mortal.dsn("postgres"), pace=QUICK) as it:
        writer, reader = clients_of(it)
        async with running(writer, reader):
            await more(writer)
            with stopped(mortal):
                await eventually(lambda: isinstance(_last(writer), DatabaseDown))
                await eventually(lambda: isinstance(_last(reader), DatabaseDown))
                in_use = [pool.in_use for pool in it.database.status().pools]
            await more(writer)
            await more(reader)
        await assert_as_before(it, mortal)

    assert [0, 0] == in_use


async def test_statement_to_a_silent_server_ends_by_the_drivers_limit(
    mortal: EmbeddedServer,
) -> None:
    async with supervised(mortal.dsn("postgres"), command_timeout_s=0.2) as it:
        async with it.writes.connection() as connection:
            await connection.execute(WRITE)
        with stopped(mortal), pytest.raises(DatabaseBusy):
            async with it.writes.connection() as connection:
                await connection.execute(WRITE)
        await eventually(lambda: it.writes.status().in_use == 0)
        async with asyncio.timeout(20):
            while not await _works(it):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("is_silent", [False, True], ids=["rejected", "dropped"])
async def test_network_that_is_cut_is_found_again(empty_dsn: str, is_silent: bool) -> None:
    """A firewall that rejects tells at once; one that drops looks like a server that thinks."""
    async with Valve(empty_dsn) as valve, supervised(valve.dsn, pace=QUICK) as it:
        async with it.writes.connection() as connection:
            await connection.execute("CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY)")
        writer, reader = clients_of(it)
        async with running(writer, reader):
            await more(writer)
            valve.shut(is_silent=is_silent)
            await eventually(lambda: isinstance(_last(writer), DatabaseDown))
            await eventually(lambda: isinstance(_last(reader), DatabaseDown))
            valve.open()
            await more(writer)
            await more(reader)


async def test_new_connections_that_fail_do_not_close_those_that_work(empty_dsn: str) -> None:
    """The name service is away, a firewall changed: what is connected serves on."""
    async with Valve(empty_dsn) as valve, supervised(valve.dsn, pace=QUICK) as it:
        async with it.reads.connection() as connection:
            await connection.execute("CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY)")
        writer, reader = clients_of(it)
        async with running(writer, reader):
            await more(writer)
            await more(reader)
            valve.refuse_new()
            async with running(*(Client(it.reads, "SELECT pg_sleep(0.01)") for _ in range(20))):
                await eventually(lambda: it.reads.status().failed_opens_total >= 3)
                await more(writer)
                await more(reader)
        states = [breaker.opened_total for breaker in it.database.status().breakers]

    assert [] == [*writer.failures, *reader.failures]
    assert [0, 0] == states


async def test_server_without_a_free_place_is_not_lost(mortal: EmbeddedServer) -> None:
    await ask(mortal, "CREATE ROLE few LOGIN CONNECTION LIMIT 4")
    await ask(mortal, "GRANT ALL ON marks TO few")
    dsn = mortal.dsn("postgres").replace("tollkeeper@", "few@")
    async with supervised(dsn, size=8) as it:
        writers, (_, reader) = [Client(it.writes, WRITE) for _ in range(16)], clients_of(it)
        async with running(*writers, reader):
            for writer in writers:
                await more(writer, 2)
            await more(reader)
        status = it.database.status()

    assert [] == [failure for each in (*writers, reader) for failure in each.failures]
    assert it.database.too_many_total > 0
    assert 0 == sum(breaker.opened_total for breaker in status.breakers)
    assert sum(pool.open for pool in status.pools) <= 4


async def test_who_finds_no_free_place_at_all_is_told(mortal: EmbeddedServer) -> None:
    await ask(mortal, "CREATE ROLE unwanted LOGIN CONNECTION LIMIT 0")
    dsn = mortal.dsn("postgres").replace("tollkeeper@", "unwanted@")
    async with supervised(dsn) as it:
        with pytest.raises(TooManyConnections):
            await it.writes.acquire()
        assert 0 == sum(breaker.opened_total for breaker in it.database.status().breakers)


async def test_statements_survive_a_change_of_the_tables_they_were_prepared_for(
    empty_dsn: str,
) -> None:
    async with supervised(empty_dsn, size=2) as it, owner(empty_dsn) as connection:
        await connection.execute("CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY)")
        reader = Client(it.reads, "SELECT * FROM marks")
        async with running(reader, reader):
            await more(reader)
            for number in range(5):
                await connection.execute(f"ALTER TABLE marks ADD COLUMN c{number} int")
                await more(reader, 4)
                await connection.execute(f"ALTER TABLE marks ALTER COLUMN c{number} TYPE text")
                await more(reader, 4)

    assert [] == reader.failures


async def test_acquire_that_waits_for_a_silent_server_ends_at_its_deadline(
    mortal: EmbeddedServer,
) -> None:
    async with supervised(mortal.dsn("postgres"), size=1) as it, it.writes.connection():
        with pytest.raises(PoolTimeout):
            await asyncio.create_task(it.writes.acquire(0.05))


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def _works(it: Supervised) -> bool:
    try:
        async with it.writes.connection() as connection:
            await connection.execute(WRITE)
    except DatabaseUnavailable:
        return False
    return True


def _last(client: Client) -> Exception | None:
    return client.failures[-1] if client.failures else None


async def test_pool_that_pauses_after_a_failure_goes_on_when_another_one_gets_through(
    mortal: EmbeddedServer,
) -> None:
    """Migrated a moment ago: what reads already must not be told otherwise by what writes."""
    async with supervised(mortal.dsn("postgres")) as it:
        later = it.database.pool("later", access=Access.WRITE, size=1, role="made_later")
        for _ in range(6):  # the pause grows
            with pytest.raises(SchemaMissing):
                await later.acquire()
            later.wake()
        await ask(mortal, "CREATE ROLE made_later")
        async with it.reads.connection() as held, it.reads.connection():
            await held.fetchval("SELECT 1")
        async with later.connection() as connection:
            assert "made_later" == await connection.fetchval("SELECT current_user")


async def test_check_that_finds_no_place_does_not_end_what_works(mortal: EmbeddedServer) -> None:
    """The server is full, and the check's own connection was lost: the server was not."""
    await ask(mortal, "CREATE ROLE few LOGIN CONNECTION LIMIT 3")
    await ask(mortal, "GRANT ALL ON marks TO few")
    dsn = mortal.dsn("postgres").replace("tollkeeper@", "few@")
    async with supervised(dsn, pace=QUICK, size=1) as it:
        writer, reader = clients_of(it)
        async with running(writer, reader):
            await more(writer)
            await more(reader)
            await ask(mortal, END_CHECKS)
            others = await asyncpg.connect(dsn)  # its place is taken
            for _ in range(5):
                it.database.monitor.suspect()
                await eventually(lambda: it.database.status().hosts[0].fault is not None)
                await more(writer)
                await more(reader)
            status = it.database.status()
            await others.close()

    assert "too many connections" in (status.hosts[0].fault or "")
    assert [0, 0] == [breaker.opened_total for breaker in status.breakers]
    assert [] == [*writer.failures, *reader.failures]


async def test_checks_go_on_after_one_that_failed_in_an_unforeseen_way(
    mortal: EmbeddedServer,
) -> None:
    async with supervised(mortal.dsn("postgres"), pace=QUICK) as it:
        monitor, judge = it.database.monitor, it.database.monitor._judge
        failed = asyncio.Event()

        def broken(checks: Sequence[HostCheck]) -> float | None:
            failed.set()
            monitor._judge = judge
            raise KeyError("nobody thought of this")

        monitor._judge = broken
        monitor.suspect()
        await failed.wait()
        before = it.database.checks.total
        await eventually(lambda: it.database.checks.total > before + 1)


async def test_who_holds_a_connection_for_longer_than_anything_takes_is_cut_off(
    mortal: EmbeddedServer,
) -> None:
    """A network that swallows what flows keeps no lane, though new connections work."""
    async with supervised(mortal.dsn("postgres"), command_timeout_s=None) as it:
        limits = PoolLimits(cut_held_s=0.2, tick_s=0.01)
        lanes = it.database.pool("lanes", access=Access.WRITE, size=1, limits=limits)
        with pytest.raises(DatabaseUnavailable):
            async with lanes.connection() as connection:
                await connection.execute("SELECT pg_sleep(600)")
        async with lanes.connection() as connection:
            assert 1 == await connection.fetchval("SELECT 1")
        assert 1 == lanes.status().lost_total
