"""Life behind a real PgBouncer in transaction mode, with fewer server connections than clients."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import asyncpg
import pytest
from tests.pgbouncer import running_pgbouncer

from tollkeeper.database.connect import (
    close_gently,
    connector,
    is_connection_lost,
    is_too_many,
)
from tollkeeper.database.copying import copy_rows
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import (
    DatabaseBusy,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    SchemaMissing,
    TooManyConnections,
)
from tollkeeper.database.locks import session_lock
from tollkeeper.database.pgbouncer import is_pooled
from tollkeeper.database.pool import Pool
from tollkeeper.database.pooler import Pooler
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import ConfigurationError

ROLE = "pg_monitor"
SETTINGS = {"statement_timeout": "12345ms", "enable_hashjoin": "off", "application_name": "ours"}
STATE = (
    "SELECT current_user, current_setting('statement_timeout'),"
    " current_setting('enable_hashjoin'), current_setting('application_name')"
)
OURS = (ROLE, "12345ms", "off", "ours")
NOBODYS = ("tollkeeper", "0", "on", "tollkeeper")

Connect = Callable[[], Awaitable[Connection]]


@pytest.fixture
def dsn(empty_dsn: str) -> Iterator[str]:
    """Through a PgBouncer that has one connection to the server."""
    with running_pgbouncer(empty_dsn, server_connections=1) as dsn:
        yield dsn


@pytest.fixture
async def connect(dsn: str) -> AsyncIterator[Connect]:
    """Opens connections that act as `ROLE` under `SETTINGS`."""
    opened: list[Connection] = []

    async def open_one() -> Connection:
        opened.append(await connector(dsn, role=ROLE, settings=SETTINGS, pooler=Pooler.PGBOUNCER)())
        return opened[-1]

    yield open_one
    for connection in opened:
        await close_gently(connection, 5)


@pytest.fixture
async def plain(dsn: str) -> AsyncIterator[Connection]:
    """A client beside: of no role, under no settings."""
    connection = await connector(dsn, pooler=Pooler.PGBOUNCER)()
    yield connection
    await close_gently(connection, 5)


async def state(connection: Connection) -> tuple[object, ...]:
    row = await connection.fetchrow(STATE)
    assert row is not None
    return tuple(row)


async def test_role_and_settings_hold_in_every_kind_of_statement(connect: Connect) -> None:
    ours = await connect()
    rows = await ours.fetch(STATE)
    copied = bytearray()
    await copy_rows(ours, "SELECT current_user, $1::int", 7, take=copied.extend)

    assert [OURS] == [tuple(row) for row in rows]
    assert OURS == await state(ours)
    assert ROLE == await ours.fetchval("SELECT current_user")
    assert 7 == await ours.fetchval("SELECT current_user, $1::int", 7, column=1)
    assert ROLE.encode() in copied
    await ours.execute("DO $$ BEGIN ASSERT current_user = 'pg_monitor'; END $$")


async def test_unit_of_work_has_cursors_nesting_isolation_and_its_role(connect: Connect) -> None:
    ours = await connect()
    async with ours.transaction(isolation="repeatable_read", readonly=True):
        count = "SELECT g, current_user FROM generate_series(1, $1) AS g"
        counted = [tuple(row) async for row in ours.cursor(count, 7, prefetch=2)]
        modes = (
            await ours.fetchval("SHOW transaction_isolation"),
            await ours.fetchval("SHOW transaction_read_only"),
        )
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with ours.transaction():
                await ours.fetchval("SELECT 1 / 0")
        after = await state(ours)

    assert [(number, ROLE) for number in range(1, 8)] == counted
    assert ("repeatable read", "on") == modes
    assert OURS == after


async def test_two_clients_never_see_each_others_settings(
    connect: Connect, plain: Connection
) -> None:
    """They share the one connection to the server, unit of work after unit of work."""
    ours = await connect()
    seen = []
    for _ in range(3):
        seen.append(await state(ours))
        async with ours.transaction():
            seen.append(await state(ours))
        with pytest.raises(asyncpg.DivisionByZeroError):
            await ours.fetchval("SELECT 1 / 0")
        assert NOBODYS == await state(plain)
        async with plain.transaction():
            assert NOBODYS == await state(plain)

    assert [OURS] * 6 == seen


async def test_nothing_is_left_on_the_server(dsn: str, connect: Connect, plain: Connection) -> None:
    """Types of arrays and composites are looked up, a cursor is read, and nothing stays."""
    await plain.execute("CREATE TYPE pair AS (a int, b text[])")
    ours = await connect()
    assert [["x"]] == [list(row[0]) for row in await ours.fetch("SELECT $1::name[]", ["x"])]
    async with ours.transaction():
        async for row in ours.cursor("SELECT $1::pair[]", [(1, ["x"])]):
            assert [(1, ["x"])] == [tuple(pair) for pair in row[0]]
    stranger = await asyncpg.connect(dsn, statement_cache_size=0)
    statements = await stranger.fetchval("SELECT count(*) FROM pg_prepared_statements")
    changed = await stranger.fetch("SELECT name::text FROM pg_settings WHERE source = 'session'")
    await stranger.close()

    assert 0 == statements
    # PgBouncer keeps these two for each client by itself.
    assert {"application_name", "client_encoding"} >= {row["name"] for row in changed}


async def test_many_rows_at_once_are_written_all_or_none(
    connect: Connect, plain: Connection
) -> None:
    await plain.execute(f"CREATE TABLE noted (n int PRIMARY KEY); GRANT ALL ON noted TO {ROLE}")
    ours = await connect()
    await ours.executemany("INSERT INTO noted VALUES ($1)", [(number,) for number in range(100)])
    with pytest.raises(asyncpg.UniqueViolationError):
        await ours.executemany("INSERT INTO noted VALUES ($1)", [(number,) for number in (200, 5)])

    assert 100 == await plain.fetchval("SELECT count(*) FROM noted")
    assert OURS == await state(ours)


async def test_refused_statement_leaves_nothing_and_the_connection_goes_on(
    connect: Connect, plain: Connection
) -> None:
    await plain.execute(f"CREATE TABLE noted (n int PRIMARY KEY); GRANT ALL ON noted TO {ROLE}")
    ours = await connect()
    with pytest.raises(asyncpg.UniqueViolationError):
        await ours.execute("INSERT INTO noted VALUES (1); INSERT INTO noted VALUES (1)")
    with pytest.raises(asyncpg.DataError):
        await ours.execute("INSERT INTO noted VALUES ($1)", "not a number")

    assert not ours.is_in_transaction()
    assert OURS == await state(ours)
    assert 0 == await plain.fetchval("SELECT count(*) FROM noted")


async def test_deferred_fault_of_a_lone_statement_is_told(plain: Connection) -> None:
    await plain.execute("CREATE TABLE noted (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await plain.execute("INSERT INTO noted VALUES ($1), ($1)", 1)

    assert 0 == await plain.fetchval("SELECT count(*) FROM noted")


async def test_role_that_went_away_is_told_and_the_connection_goes_on(
    dsn: str, plain: Connection
) -> None:
    role = f"passing_{os.getpid()}"
    await plain.execute(f"CREATE ROLE {role}")
    theirs = await connector(dsn, role=role, pooler=Pooler.PGBOUNCER)()
    await plain.execute(f"DROP ROLE {role}")
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await theirs.fetchval("SELECT 1")
    with pytest.raises(asyncpg.InvalidParameterValueError):
        async with theirs.transaction():
            pytest.fail("it began without its role")
    assert not theirs.is_in_transaction()
    await plain.execute(f"CREATE ROLE {role}")

    assert role == await theirs.fetchval("SELECT current_user")
    async with theirs.transaction():
        assert role == await theirs.fetchval("SELECT current_user")
    await close_gently(theirs, 5)
    await plain.execute(f"DROP ROLE {role}")
    with pytest.raises(SchemaMissing, match=role):
        await connector(dsn, role=role, pooler=Pooler.PGBOUNCER)()


async def test_cancelled_lone_statement_spoils_its_connection_and_no_other(
    dsn: str, connect: Connect, plain: Connection
) -> None:
    """The pool retires it, and PgBouncer the one to the server: the statement has no effect."""
    await plain.execute(f"CREATE TABLE noted (n int); GRANT ALL ON noted TO {ROLE}")
    ours = await connect()
    writing = asyncio.create_task(
        ours.execute("INSERT INTO noted SELECT 1 FROM pg_sleep(60)", timeout=60)
    )
    while not ours.is_in_transaction():
        await asyncio.sleep(0.002)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    with pytest.raises(asyncpg.InterfaceError, match="left open"):
        await ours.fetchval("SELECT 1")
    await close_gently(ours, 5)

    assert 0 == await plain.fetchval("SELECT count(*) FROM noted")


async def test_closed_connection_is_a_lost_one(connect: Connect) -> None:
    ours = await connect()
    async with ours.transaction():
        pass
    ours.terminate()
    with pytest.raises(asyncpg.InterfaceError) as inside:
        await ours.fetchval("SELECT 1")
    with pytest.raises(asyncpg.InterfaceError) as after:
        await ours.execute("SELECT 1")

    assert is_connection_lost(inside.value)
    assert is_connection_lost(after.value)


async def test_pool_goes_on_after_statements_that_took_too_long(dsn: str) -> None:
    make = connector(dsn, role=ROLE, settings=SETTINGS, pooler=Pooler.PGBOUNCER)
    pool = Pool(make, size=1, clock=SystemClock())
    try:
        for _ in range(2):
            with pytest.raises(DatabaseBusy):
                async with pool.connection() as connection:
                    await connection.fetchval("SELECT pg_sleep(60)", timeout=0.05)
        async with pool.connection() as connection:
            assert OURS == await state(connection)
    finally:
        await pool.close()


async def test_statements_of_many_clients_do_not_mix(empty_dsn: str) -> None:
    """Twelve clients, two server connections: the parts of a statement reach one server."""
    with running_pgbouncer(empty_dsn, server_connections=2) as dsn:
        connect = connector(dsn, role=ROLE, settings=SETTINGS, pooler=Pooler.PGBOUNCER)
        clients = await asyncio.gather(*(connect() for _ in range(12)))
        start = asyncio.Barrier(len(clients))

        async def work(number: int, client: Connection) -> set[object]:
            await start.wait()
            seen: set[object] = set()
            for turn in range(20):
                wanted = number * 100 + turn
                rows = await client.fetch(
                    f"SELECT $1::int AS n{number % 3}, $2::text[], pg_backend_pid()",
                    wanted,
                    [str(wanted)],
                )
                assert (wanted, [str(wanted)]) == tuple(rows[0])[:2]
                seen.add(rows[0][2])
            return seen

        servers = await asyncio.gather(*(work(*each) for each in enumerate(clients)))
        for client in clients:
            await close_gently(client, 5)

    assert 2 == len(set[object]().union(*servers))


async def test_what_needs_a_session_is_refused(plain: Connection) -> None:
    with pytest.raises(ConfigurationError, match="cannot be held through PgBouncer"):
        async with session_lock(
            plain, "SELECT pg_try_advisory_lock(1)", "SELECT pg_advisory_unlock(1)"
        ):
            pytest.fail("it was held by nobody")
    with pytest.raises(asyncpg.InterfaceError, match="outside of a unit of work"):
        await plain.prepare("SELECT 1")  # type: ignore[attr-defined]  # asyncpg's own


async def test_direct_connection_is_not_taken_for_a_pooled_one(empty_dsn: str) -> None:
    direct = await connector(empty_dsn)()
    try:
        assert not is_pooled(direct)
        async with session_lock(
            direct, "SELECT pg_try_advisory_lock(1)", "SELECT pg_advisory_unlock(1)"
        ) as held:
            assert held
    finally:
        await direct.close()


async def test_missing_flag_is_told_with_its_name(dsn: str) -> None:
    with pytest.raises(DatabaseMisconfigured, match="set TOLLKEEPER_POOLER=pgbouncer"):
        await connector(dsn, role=ROLE, settings=SETTINGS)()


async def test_full_pooler_is_a_server_without_connections(empty_dsn: str) -> None:
    with running_pgbouncer(empty_dsn, server_connections=1, max_client_conn="2") as dsn:
        connect = connector(dsn, pooler=Pooler.PGBOUNCER)
        # Three, because the knock that found it ready may have a place or not.
        found = await asyncio.gather(*(connect() for _ in range(3)), return_exceptions=True)
        refused = [each for each in found if isinstance(each, BaseException)]
        for each in found:
            if not isinstance(each, BaseException):
                await close_gently(each, 5)

    assert {TooManyConnections} == {type(each) for each in refused}
    assert all(is_too_many(each) for each in refused)


async def test_what_the_pooler_refuses_itself_is_misconfigured(empty_dsn: str) -> None:
    with running_pgbouncer(empty_dsn, server_connections=1, password="right") as dsn:
        right, wrong = (dsn.replace("tollkeeper@", f"ann:{word}@") for word in ("right", "WR0NG"))
        connection = await connector(right, pooler=Pooler.PGBOUNCER)()
        await close_gently(connection, 5)
        with pytest.raises(DatabaseMisconfigured) as password:
            await connector(wrong, pooler=Pooler.PGBOUNCER)()
        with pytest.raises(DatabaseMisconfigured) as database:
            await connector(right.replace("?", "_missing?"), pooler=Pooler.PGBOUNCER)()

    assert "the connection pooler says: SASL authentication failed." == str(password.value)
    assert "no such database" in str(database.value)


async def test_pooler_without_a_server_is_unavailable(empty_dsn: str) -> None:
    nowhere = empty_dsn.replace("port=5432", "port=5431")
    assert nowhere != empty_dsn
    with (
        running_pgbouncer(nowhere, server_connections=1, query_wait_timeout="1") as dsn,
        pytest.raises(DatabaseUnavailable) as caught,
    ):
        await connector(dsn, pooler=Pooler.PGBOUNCER)()

    assert DatabaseUnavailable is type(caught.value)
