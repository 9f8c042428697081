"""What the driver and the server really raise, and what we make of it."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from tollkeeper.database.connect import close_gently, connector, is_connection_lost, is_retryable
from tollkeeper.database.errors import DatabaseUnavailable, SchemaMissing
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


async def test_missing_database_is_unavailable_and_named(empty_dsn: str) -> None:
    dsn = empty_dsn.replace("?", "_missing?")

    with pytest.raises(DatabaseUnavailable, match=r'_missing" does not exist'):
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


@pytest.mark.parametrize("dsn", ["mysql://host/db", "postgresql://user:pa/ss@host/db"])
async def test_dsn_nobody_understands_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await connector(dsn)()

    assert "pa" not in str(caught.value).replace("password", "")


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


async def test_our_own_mistakes_are_not_retryable() -> None:
    assert not is_retryable(ValueError("no"))
    assert not is_retryable(TimeoutError())
    assert not is_retryable(asyncio.CancelledError())
