"""A primary is demoted, killed or doubled while clients write; nobody restarts anything."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from tests.pgbouncer import running_pgbouncer
from tests.replication import Pair, ask, folder_of, replicated_pair
from tests.stopping import stopped
from tests.supervised import QUICK, Client, eventually, more, running, supervised

from tollkeeper.database.errors import (
    DatabaseDown,
    DatabaseError,
    DatabaseUnavailable,
    ReadOnlyServer,
)
from tollkeeper.database.pooler import Pooler
from tollkeeper.database.status import Health, HostState, Probe
from tollkeeper.kernel.breaker import BreakerState

WRITE = "INSERT INTO marks DEFAULT VALUES"
READ = "SELECT count(*) FROM marks"
PROBE = """
CREATE TABLE health_probe (only_row boolean PRIMARY KEY, probed_at timestamptz);
INSERT INTO health_probe VALUES (true, now())
"""


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicated_pair() as pair:
        asyncio.run(_prepare(pair))
        yield pair


async def _prepare(pair: Pair) -> None:
    await ask(pair.first, "CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY)")
    await pair.caught_up()


async def test_writes_follow_a_demotion_that_no_ping_would_notice(pair: Pair) -> None:
    """The former primary keeps every connection and answers `SELECT 1` (gpustack #6105)."""
    async with supervised(pair.dsn("postgres")) as it:
        writer, reader = Client(it.writes, WRITE), Client(it.reads, READ)
        async with running(writer, writer, reader):
            await more(writer)
            await pair.caught_up()
            await ask(pair.first, "ALTER SYSTEM SET default_transaction_read_only = on")
            await ask(pair.first, "SELECT pg_reload_conf()")
            await eventually(lambda: bool(writer.failures))
            await pair.promote_second()
            await more(writer)
            await more(reader)
        status = it.database.status()

    assert await ask(pair.first, "SELECT 1") == 1
    assert {ReadOnlyServer, DatabaseDown} >= {type(failure) for failure in writer.failures}
    assert [] == reader.failures
    assert [HostState.READ_ONLY, HostState.PRIMARY] == [host.state for host in status.hosts]
    assert [(False, False), (True, True)] == [(h.is_writes, h.is_reads) for h in status.hosts]
    assert 2 == status.hosts[1].timeline
    written = await ask(pair.second, READ)
    assert isinstance(written, int)
    assert written >= writer.done


async def test_one_demotion_expires_one_generation_however_many_write(pair: Pair) -> None:
    async with supervised(pair.dsn("postgres"), size=8) as it:
        writers = [Client(it.writes, WRITE) for _ in range(8)]
        async with running(*writers):
            for writer in writers:
                await more(writer)
            await pair.caught_up()
            before = it.writes.status().generation
            await ask(pair.first, "ALTER SYSTEM SET default_transaction_read_only = on")
            await ask(pair.first, "SELECT pg_reload_conf()")
            await eventually(lambda: all(writer.failures for writer in writers))
        after = it.writes.status()

    # One by the first 25006, one by the breaker: never one for each of the writers.
    assert 1 <= after.generation - before <= 2


async def test_writes_follow_a_promotion_and_a_former_primary_that_comes_back_gets_none(
    pair: Pair,
) -> None:
    async with supervised(pair.dsn("postgres")) as it:
        writer, reader = Client(it.writes, WRITE), Client(it.reads, READ)
        async with running(writer, reader):
            await more(writer)
            await pair.caught_up()
            os.kill(pair.first.pid, signal.SIGKILL)
            await eventually(lambda: bool(writer.failures))
            await pair.promote_second()
            await more(writer)
            await more(reader)
            await asyncio.to_thread(pair.first.restart)  # nobody fenced it: it takes writes
            it.database.monitor.suspect()
            await eventually(lambda: it.database.status().hosts[0].state is HostState.PRIMARY)
            before = await ask(pair.first, READ)
            await more(writer)
        hosts = it.database.status().hosts

    assert before == await ask(pair.first, READ)
    assert all(isinstance(failure, DatabaseUnavailable) for failure in writer.failures)
    assert [(1, False), (2, True)] == [(host.timeline, host.is_writes) for host in hosts]


async def test_writes_leave_a_primary_of_which_a_standby_was_promoted_beside(pair: Pair) -> None:
    """Both take writes, both answer: the one with the higher timeline is right."""
    async with supervised(pair.dsn("postgres")) as it:
        writer = Client(it.writes, WRITE)
        async with running(writer):
            await more(writer)
            await pair.promote_second()
            it.database.monitor.suspect()
            await eventually(lambda: it.database.status().hosts[1].is_writes)
            await eventually(lambda: it.writes.status().in_use == 0)
            before = await ask(pair.first, READ)
            await more(writer)

    assert before == await ask(pair.first, READ)


async def test_without_a_primary_reads_go_on_at_the_standby_and_writes_are_refused_at_once(
    pair: Pair,
) -> None:
    async with supervised(pair.dsn("postgres")) as it:
        writer, reader = Client(it.writes, WRITE), Client(it.reads, READ)
        async with running(writer, reader):
            await more(writer)
            os.kill(pair.first.pid, signal.SIGKILL)
            await eventually(lambda: isinstance(_last(writer), DatabaseDown))
            await more(reader)
        status = it.database.status()

    refusal = _last(writer)
    assert isinstance(refusal, DatabaseDown)
    assert "write" == refusal.access
    assert 0 <= refusal.retry_after_s <= 10.0
    states = {breaker.access.value: breaker.state for breaker in status.breakers}
    assert BreakerState.CLOSED is states["read"]
    assert BreakerState.CLOSED is not states["write"]
    assert Health.DOWN is status.health
    assert [HostState.OFFLINE, HostState.STANDBY] == [host.state for host in status.hosts]
    assert status.hosts[1].is_reads
    assert folder_of(pair.first) in (status.hosts[0].fault or "")


async def test_commits_that_wait_for_a_standby_that_is_gone_stop_the_writes_alone(
    pair: Pair,
) -> None:
    """Reads are answered as ever: only what writes can tell that writes hang."""
    await ask(pair.first, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await ask(pair.first, "SELECT pg_reload_conf()")
    await ask(pair.first, PROBE)
    async with supervised(pair.first.dsn("postgres"), pace=QUICK) as it:
        writer, reader = Client(it.writes, WRITE), Client(it.reads, READ)
        async with running(writer, reader):
            await more(writer)
            os.kill(pair.second.pid, signal.SIGKILL)
            await eventually(lambda: isinstance(_last(writer), DatabaseDown))
            await more(reader)
            fault = it.database.status().hosts[0].fault
            await asyncio.to_thread(pair.second.restart)
            await more(writer)

    assert "a write was not finished in 0.5 s" == fault
    assert [] == reader.failures


async def test_hosts_say_their_role_version_and_lag(pair: Pair) -> None:
    async with supervised(pair.dsn("postgres")) as it:
        first, second = it.database.status().hosts

    assert (HostState.PRIMARY, Probe.MISSING, 1) == (first.state, first.probe, first.timeline)
    assert (HostState.STANDBY, Probe.SKIPPED, None) == (second.state, second.probe, second.timeline)
    assert second.lag_s is not None
    assert second.lag_s >= 0
    assert f"{pair.first.major}." == (first.version or "")[: len(f"{pair.first.major}.")]


async def test_database_whose_only_host_is_a_standby_is_read(pair: Pair) -> None:
    async with supervised(pair.second.dsn("postgres")) as it:
        async with it.reads.connection() as connection:
            assert 0 == await connection.fetchval(READ)
        with pytest.raises(DatabaseUnavailable):
            async with it.writes.connection() as connection:
                await connection.execute(WRITE)


def _last(client: Client) -> DatabaseError | None:
    return client.failures[-1] if client.failures else None


async def test_writes_begin_at_the_right_primary_though_a_former_one_is_named_first(
    pair: Pair,
) -> None:
    await pair.promote_second()  # nobody ended the first
    async with supervised(pair.dsn("postgres")) as it:
        writer = Client(it.writes, WRITE)
        async with running(writer):
            await more(writer, 20)

    assert 0 == await ask(pair.first, READ)
    assert [] == writer.failures


async def test_right_primary_that_is_silent_for_a_while_loses_nothing_to_the_former_one(
    pair: Pair,
) -> None:
    await pair.promote_second()
    async with supervised(pair.dsn("postgres"), pace=QUICK, command_timeout_s=None) as it:
        writer = Client(it.writes, WRITE)
        async with running(writer):
            await more(writer)
            with stopped(pair.second):
                await eventually(lambda: isinstance(_last(writer), DatabaseDown))
                assert HostState.PRIMARY is it.database.status().hosts[0].state
            await more(writer)

    assert 0 == await ask(pair.first, READ)


async def test_writes_leave_a_primary_that_never_answers_for_its_promoted_standby(
    pair: Pair,
) -> None:
    """The standby says that it is one; nothing waits for the silent primary for ever."""
    async with supervised(pair.dsn("postgres"), pace=QUICK, command_timeout_s=None) as it:
        writer, reader = Client(it.writes, WRITE), Client(it.reads, READ)
        async with running(writer, reader):
            await more(writer)
            await pair.caught_up()
            with stopped(pair.first):
                await eventually(lambda: isinstance(_last(writer), DatabaseDown))
                await more(reader)  # at the standby
                await pair.promote_second()
                await more(writer)
                await more(reader)


async def test_reads_see_what_was_written_though_a_standby_is_named_first(pair: Pair) -> None:
    await ask(pair.second, "SELECT pg_wal_replay_pause()::text")
    first, second = pair.dsn("postgres").split("host=")[1].split("&")[0].split(",")
    dsn = pair.dsn("postgres").replace(f"{first},{second}", f"{second},{first}")
    async with supervised(dsn) as it:
        async with it.writes.connection() as connection:
            await connection.execute(WRITE)
        async with it.reads.connection() as connection:
            assert 1 == await connection.fetchval(READ)


async def test_reads_on_connections_for_writes_do_not_hide_that_writes_hang(pair: Pair) -> None:
    await ask(pair.first, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await ask(pair.first, "SELECT pg_reload_conf()")
    await ask(pair.first, PROBE)
    async with supervised(pair.first.dsn("postgres"), pace=QUICK, command_timeout_s=None) as it:
        writer, asker = Client(it.writes, WRITE), Client(it.writes, "SELECT 1")
        async with running(writer, asker):
            await more(writer)
            os.kill(pair.second.pid, signal.SIGKILL)
            await eventually(lambda: isinstance(_last(writer), DatabaseDown))


async def test_promotion_behind_pgbouncer_is_seen(pair: Pair) -> None:
    """PgBouncer repeats the greeting of the standby that it met first."""
    with running_pgbouncer(pair.second.dsn("postgres"), server_connections=4) as dsn:
        async with supervised(dsn, pace=QUICK, pooler=Pooler.PGBOUNCER) as it:
            with pytest.raises(DatabaseUnavailable):
                await it.writes.acquire()
            await pair.promote_second()
            writer = Client(it.writes, WRITE)
            async with running(writer):
                await more(writer)


async def test_commits_at_a_former_primary_do_not_wait_for_their_standby_for_ever(
    pair: Pair,
) -> None:
    """It was promoted; the former primary lives, and waits for it with every commit."""
    await ask(pair.first, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await ask(pair.first, "SELECT pg_reload_conf()")
    await ask(pair.first, PROBE)
    await pair.caught_up()
    async with supervised(pair.dsn("postgres"), pace=QUICK, command_timeout_s=None) as it:
        writers = [Client(it.writes, WRITE) for _ in range(8)]
        async with running(*writers):
            for writer in writers:
                await more(writer)
            await pair.promote_second()
            for writer in writers:
                await more(writer)

        assert it.database.status().hosts[1].is_writes
