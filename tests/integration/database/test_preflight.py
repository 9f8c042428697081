"""What ends a process at start, and what it waits for."""

from pathlib import Path

import asyncpg
import pytest
from tests.greetings import answering, old_postgresql, refusal_of
from tests.passwords import require_password, unknown_host
from tests.pgbouncer import running_pgbouncer

from tollkeeper.database.pooler import Pooler
from tollkeeper.database.preflight import check
from tollkeeper.kernel.errors import ConfigurationError

SECRET = "Hidden1"


async def fault_of(**dsns: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        await check(dsns)
    return str(caught.value)


async def test_databases_that_let_us_in_are_no_fault(empty_dsn: str) -> None:
    await check({"ONE_DSN": empty_dsn, "OTHER_DSN": empty_dsn})
    await check({})

    assert [] == await left_behind(empty_dsn)


async def test_wrong_password_is_told_with_its_variable(empty_dsn: str) -> None:
    right = await require_password(empty_dsn)
    wrong = right.partition(":")[0] + "://needs_password:" + SECRET + right[right.index("@") :]

    fault = await fault_of(GOOD_DSN=empty_dsn, BAD_DSN=wrong)

    assert fault.startswith("BAD_DSN: ")
    assert fault.endswith('password authentication failed for user "needs_password".')


async def test_missing_database_is_told_with_what_to_do(empty_dsn: str) -> None:
    fault = await fault_of(A_DSN=empty_dsn.replace("?", "_missing?"))

    assert fault.startswith("A_DSN: database ")
    assert fault.endswith("does not exist: create it with createdb, or correct its name.")


async def test_unknown_host_is_told() -> None:
    host = unknown_host()

    assert f"A_DSN: the host {host}:5432 is not known." == await fault_of(
        A_DSN=f"postgresql://ann:{SECRET}@{host}/db"
    )


async def test_old_server_is_told() -> None:
    with answering(old_postgresql("14.9")) as port:
        fault = await fault_of(A_DSN=f"postgresql://ann@127.0.0.1:{port}/db")

    assert "A_DSN: PostgreSQL 14.9 is too old: Tollkeeper needs 15 or newer." == fault


async def test_dsn_that_is_none_is_told_before_any_connection() -> None:
    fault = await fault_of(A_DSN="postgresql://", B_DSN=f"postgresql://ann:{SECRET}/@db/x")

    assert fault.startswith("B_DSN ")
    assert SECRET not in fault


async def test_what_may_come_up_later_is_no_fault(empty_dsn: str, tmp_path: Path) -> None:
    """Refused, no socket, no answer, starting, and full."""
    with (
        answering(b"") as silent,
        answering(refusal_of("57P03", "starting up")) as starting,
        answering(refusal_of("53300", "sorry, too many clients already")) as full,
    ):
        dsns = [f"postgresql://ann@127.0.0.1:{port}/db" for port in (starting, full, 1)]
        dsns += [f"postgresql://ann@/db?host={tmp_path}"]
        dsns += [f"postgresql://ann@127.0.0.1:{silent}/db?sslmode=disable"]
        await check({f"DSN_{number}": dsn for number, dsn in enumerate(dsns)}, timeout_s=0.3)


async def test_one_host_that_may_do_is_enough(empty_dsn: str) -> None:
    """A host with a fault beside one that is away; then only hosts with faults."""
    host = unknown_host()
    await check({"A_DSN": f"postgresql://ann@{host},127.0.0.1:1/db"})

    fault = await fault_of(A_DSN=f"postgresql://ann@{host}:1,{host}:2/db")

    assert f"A_DSN: the host {host}:1 is not known." == fault


async def test_pooler_without_its_flag_is_told_and_with_it_is_no_fault(empty_dsn: str) -> None:
    with running_pgbouncer(empty_dsn, server_connections=1) as dsn:
        await check({"A_DSN": dsn}, pooler=Pooler.PGBOUNCER)
        fault = await fault_of(A_DSN=dsn)

    assert "TOLLKEEPER_POOLER=pgbouncer" in fault


async def left_behind(dsn: str) -> list[int]:
    """Return the server's processes for connections that are still open beside the one here."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    finally:
        await connection.close()
    return [row["pid"] for row in rows]
