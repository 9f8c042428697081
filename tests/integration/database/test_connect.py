"""What the driver and the server really raise, and what we make of it."""

import asyncio
import socket
import traceback
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from tests.greetings import answering, old_postgresql, refusal_of
from tests.passwords import PASSWORD, ROLE, require_password, unknown_host
from tests.valve import Valve

from tollkeeper.database.connect import (
    close_gently,
    connector,
    is_connection_lost,
    is_generation_over,
    is_retryable,
    is_too_many,
)
from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.errors import (
    DatabaseBusy,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    SchemaMissing,
    TooManyConnections,
)
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import ConfigurationError


async def test_role_and_settings_hold_for_the_session(empty_dsn: str) -> None:
    settings = {"statement_timeout": "1234ms", "application_name": "a test"}
    connection = await connector(empty_dsn, role="pg_monitor", settings=settings)()
    try:
        await connection.execute("RESET ALL")
        row = await connection.fetchrow(
            "SELECT current_user, current_setting('statement_timeout'),"
            " current_setting('application_name')"
        )
    finally:
        await connection.close()

    assert row is not None
    assert ("pg_monitor", "1234ms", "a test") == tuple(row)


async def test_missing_socket_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await connector(f"postgresql://tollkeeper@/any?host={tmp_path}")()

    assert is_connection_lost(caught.value)
    assert is_retryable(caught.value)


async def test_missing_database_is_misconfigured_and_says_what_to_do(empty_dsn: str) -> None:
    dsn = empty_dsn.replace("?", "_missing?")

    with pytest.raises(DatabaseMisconfigured, match=r'_missing" does not exist: create it with'):
        await connector(dsn)()


async def test_missing_role_is_a_missing_schema_and_named(empty_dsn: str) -> None:
    with pytest.raises(SchemaMissing, match="nobody_here"):
        await connector(empty_dsn, role="nobody_here")()


async def test_refused_port_and_hang_up_are_unavailable() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    dsn = f"postgresql://tollkeeper@127.0.0.1:{port}/any?sslmode=disable"
    with pytest.raises(DatabaseUnavailable):
        await connector(dsn)()
    listener.close()
    await listener.wait_closed()
    with pytest.raises(DatabaseUnavailable):
        await connector(dsn)()


async def test_unknown_host_is_misconfigured_and_named() -> None:
    host = unknown_host()

    with pytest.raises(DatabaseMisconfigured) as caught:
        await connector(f"postgresql://ann:hidden@{host}/any")()

    assert f"the host {host}:5432 is not known." == str(caught.value)


async def test_wrong_password_is_misconfigured_and_no_password_is_shown(empty_dsn: str) -> None:
    right = await require_password(empty_dsn)
    connection = await connector(right)()
    await connection.close()
    wrong = right.replace(quote(PASSWORD, safe=""), "Wr0ngOne")

    with pytest.raises(DatabaseMisconfigured) as caught:
        await connector(wrong)()

    said = "".join(traceback.format_exception(caught.value))
    assert f'does not let us in: password authentication failed for user "{ROLE}".' in said
    assert "Wr0ngOne" not in said


@pytest.mark.parametrize(
    ("login", "said"),
    [("nobody_here", 'role "nobody_here" does not exist'), ("pg_monitor", "not permitted to log")],
)
async def test_user_that_may_not_log_in_is_misconfigured(
    empty_dsn: str, login: str, said: str
) -> None:
    with pytest.raises(DatabaseMisconfigured, match=said):
        await connector(empty_dsn.replace("tollkeeper@", f"{login}@"))()


async def test_server_without_a_free_connection_says_so(empty_dsn: str) -> None:
    owner = await connector(empty_dsn)()
    role = f"limited_{owner.get_server_pid()}"
    await owner.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
    try:
        with pytest.raises(TooManyConnections, match="too many connections") as caught:
            await connector(empty_dsn.replace("tollkeeper@", f"{role}@"))()
        assert is_too_many(caught.value)
        assert is_too_many(caught.value.__cause__)
        assert not is_too_many(DatabaseUnavailable(reason="away"))
    finally:
        await owner.execute(f"DROP ROLE {role}")
        await owner.close()


@pytest.mark.parametrize(
    ("answer", "mode", "kind", "said"),
    [
        (
            old_postgresql("14.9 (Debian 14.9-1)"), "prefer", DatabaseMisconfigured,
            "PostgreSQL 14.9 is too old: Tollkeeper needs 15 or newer.",
        ),
        (
            old_postgresql("14.9"), "require", DatabaseMisconfigured,
            "does not offer the TLS that is asked for, or is no PostgreSQL.",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n", "prefer", DatabaseMisconfigured,
            "does not offer the TLS that is asked for, or is no PostgreSQL.",
        ),
        (
            refusal_of("57P03", "the database system is starting up"), "disable",
            DatabaseUnavailable, "the database system is starting up",
        ),
        (
            refusal_of("57P01", "terminating connection"), "disable",
            DatabaseUnavailable, "terminating connection",
        ),
    ],
)  # fmt: skip
async def test_server_that_is_not_what_is_needed_is_told_in_a_sentence(
    answer: bytes, mode: str, kind: type[DatabaseUnavailable], said: str
) -> None:
    with answering(answer) as port, pytest.raises(DatabaseUnavailable) as caught:
        await connector(f"postgresql://ann@127.0.0.1:{port}/any?sslmode={mode}")()

    assert kind is type(caught.value)
    assert str(caught.value).endswith(said)


async def test_server_that_never_answers_is_unavailable() -> None:
    with answering(b"") as port:
        connect = connector(
            f"postgresql://ann@127.0.0.1:{port}/any?sslmode=disable", connect_timeout_s=0.05
        )
        with pytest.raises(DatabaseUnavailable, match=r"no answer from 127.0.0.1:\d+ in 0.05 s"):
            await connect()


async def test_host_of_our_choice_stands_for_those_of_the_dsn(empty_dsn: str) -> None:
    (here,) = parse_dsn(empty_dsn).hosts
    elsewhere = empty_dsn.replace(quote(here.name, safe="/"), "/nowhere,/else")
    connection = await connector(elsewhere, host=here)()
    await connection.close()

    with pytest.raises(DatabaseUnavailable, match="no server listens in /nowhere"):
        await connector(elsewhere)()


async def test_first_host_that_answers_is_taken(empty_dsn: str) -> None:
    (here,) = parse_dsn(empty_dsn).hosts
    several = empty_dsn.replace(quote(here.name, safe="/"), f"/nowhere,{here.name}")
    connection = await connector(several)()

    assert 1 == await connection.fetchval("SELECT 1")
    await connection.close()


async def test_statement_beyond_the_drivers_limit_is_given_up(empty_dsn: str) -> None:
    connection = await connector(empty_dsn, command_timeout_s=0.05)()
    try:
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT pg_sleep(60)")
    finally:
        await close_gently(connection, 5)


async def test_what_the_driver_remembered_of_a_changed_schema_may_be_tried_again(
    empty_dsn: str,
) -> None:
    ours, theirs = await connector(empty_dsn)(), await connector(empty_dsn)()
    try:
        await theirs.execute("CREATE TYPE pair AS (a int); CREATE TABLE kept (v pair, n int)")
        await theirs.execute("INSERT INTO kept VALUES (row(1), 1)")
        await ours.fetch("SELECT n FROM kept")
        await ours.fetch("SELECT v FROM kept")
        await theirs.execute("ALTER TABLE kept ALTER n TYPE bigint")
        with pytest.raises(asyncpg.InvalidCachedStatementError) as statement:
            async with ours.transaction():
                await ours.fetch("SELECT n FROM kept")
        await theirs.execute("ALTER TYPE pair ADD ATTRIBUTE b int")
        with pytest.raises(asyncpg.OutdatedSchemaCacheError) as types:
            await ours.fetch("SELECT v FROM kept")
        again = await ours.fetchval("SELECT v FROM kept"), await ours.fetchval("SELECT n FROM kept")
    finally:
        await ours.close()
        await theirs.close()

    assert ((1, None), 1) == (tuple(again[0]), again[1])
    for caught in (statement.value, types.value):
        assert is_retryable(caught)
        assert not is_connection_lost(caught)
        assert not is_generation_over(caught)


async def test_demoted_server_ends_the_generation(empty_dsn: str) -> None:
    """What a primary says to writes after it became a standby, it says under this setting too."""
    connection = await connector(empty_dsn, settings={"default_transaction_read_only": "on"})()
    try:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as caught:
            await connection.execute("CREATE TABLE refused ()")
    finally:
        await connection.close()

    assert is_generation_over(caught.value)
    assert is_retryable(caught.value)
    assert not is_connection_lost(caught.value)
    wrapped = DatabaseUnavailable(reason="lost")
    wrapped.__cause__ = caught.value
    assert is_generation_over(wrapped)


@pytest.mark.parametrize("dsn", ["mysql://host/db", "postgresql://user:pa/ss@host/db"])
async def test_dsn_nobody_understands_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await connector(dsn)()

    assert "pa" not in str(caught.value).replace("password", "")


async def test_parameter_that_the_driver_refuses_is_misconfigured_without_its_words() -> None:
    with pytest.raises(DatabaseMisconfigured, match="the DSN cannot be understood") as caught:
        await connector("postgresql://ann@host/db?sslmode=hidden")()

    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


async def test_killed_backend_is_a_lost_connection(empty_dsn: str) -> None:
    connect = connector(empty_dsn)
    victim, killer = await connect(), await connect()
    try:
        sleeping = asyncio.create_task(victim.fetchval("SELECT pg_sleep(60)"))
        pid = victim.get_server_pid()
        # Between preparing and executing, the goodbye would be another error of the driver's.
        async with asyncio.timeout(10):
            while "PgSleep" != await killer.fetchval(
                "SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid
            ):
                await asyncio.sleep(0.002)
        assert await killer.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
        with pytest.raises(asyncpg.PostgresError) as during:
            await sleeping
        with pytest.raises(asyncpg.InterfaceError) as after:
            await victim.fetchval("SELECT 1")
    finally:
        await close_gently(victim, 5)
        await close_gently(killer, 5)

    assert is_connection_lost(during.value)
    assert is_connection_lost(after.value)
    assert is_retryable(after.value)


async def test_two_statements_at_once_are_misuse_and_not_a_lost_connection(empty_dsn: str) -> None:
    connection = await connector(empty_dsn)()
    try:
        first = asyncio.create_task(connection.fetchval("SELECT pg_sleep(0.01)"))
        await asyncio.sleep(0)
        with pytest.raises(asyncpg.InterfaceError) as caught:
            await connection.fetchval("SELECT 1")
        await first
    finally:
        await connection.close()

    assert not is_connection_lost(caught.value)
    assert not is_retryable(caught.value)


@pytest.mark.parametrize(
    ("state", "retryable"),
    [
        ("40001", True),
        ("40P01", True),
        ("55P03", True),
        ("53300", True),
        ("57P01", True),
        ("57P02", True),
        ("57P03", True),
        ("08006", True),
        ("23505", False),
        ("23514", False),
        ("57014", False),
        ("42601", False),
    ],
)
async def test_retryable_by_state(empty_dsn: str, state: str, retryable: bool) -> None:
    connection = await connector(empty_dsn)()
    try:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$")
    finally:
        await connection.close()

    assert retryable == is_retryable(caught.value)
    assert state.startswith(("57P0", "08")) == is_generation_over(caught.value)


async def test_our_own_mistakes_are_not_retryable() -> None:
    assert not is_retryable(ValueError("no"))
    assert not is_retryable(TimeoutError())
    assert not is_retryable(asyncio.CancelledError())


@pytest.mark.parametrize("query", ["sslmod=require", "statement_timeout=abc", "connect_timeout=3"])
async def test_parameter_that_the_server_refuses_is_bad_configuration(
    empty_dsn: str, query: str
) -> None:
    with pytest.raises(DatabaseMisconfigured) as caught:
        await connector(f"{empty_dsn}&{query}")()

    assert "refuses the connection" in str(caught.value)
    assert query.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT pg_sleep(600)", "statement timeout"),
        ("LOCK TABLE held", "lock timeout"),
    ],
)
async def test_what_the_server_had_no_time_for_is_busy_and_may_be_tried_again(
    empty_dsn: str, statement: str, expected: str
) -> None:
    owner = await connector(empty_dsn)()
    await owner.execute("CREATE TABLE held ()")
    settings = {"statement_timeout": "300ms", "lock_timeout": "50ms"}
    pool = Pool(connector(empty_dsn, settings=settings), size=1, clock=SystemClock())
    async with owner.transaction():
        await owner.execute("LOCK TABLE held")
        with pytest.raises(DatabaseBusy, match=expected) as caught:
            async with pool.connection() as connection, connection.transaction():
                await connection.execute(statement)

    assert is_retryable(caught.value)
    await pool.close()
    await owner.close()


async def test_network_that_swallows_is_noticed_by_the_kernel(empty_dsn: str) -> None:
    async with Valve(empty_dsn) as valve:
        connection = await connector(valve.dsn)()
        flow = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # the driver's own

        assert 1 == flow.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert 10_000 == flow.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert [5, 2, 3] == [
            flow.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        ]
        await connection.close()
