"""The first schema of shared threat indicators: counted once, purged in time, nothing forgotten."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from tests.conftest import Databases

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection

SEEN = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def salted(text: str) -> bytes:
    return hashlib.sha256(b"a salt of the tests" + text.encode()).digest()


ANN, BOB = salted("ann"), salted("bob")
ADDRESS = salted("203.0.113.7")


@pytest.fixture
async def owner(databases: Databases) -> AsyncIterator[Connection]:
    """The owner of a fresh database of indicators."""
    with databases.fresh("cdefnet") as dsn:
        connection = await connector(dsn)()
        yield connection
        await close_gently(connection, 5)


async def report(
    connection: Connection,
    *,
    tenant: bytes = ANN,
    value: bytes = ADDRESS,
    confidence: float = 0.5,
    seen: datetime = SEEN,
    lifetime: timedelta = DAY,
) -> int:
    sightings: int = await connection.fetchval(
        "SELECT report_indicator($1, 'ip', $2, $3, $4, $5)",
        tenant, value, confidence, seen, lifetime,
    )  # fmt: skip
    return sightings


async def indicators(connection: Connection) -> list[tuple[object, ...]]:
    rows = await connection.fetch(
        "SELECT tenant_hash, sightings, confidence, first_seen, last_seen, expires_at"
        " FROM threat_indicators ORDER BY indicator_id"
    )
    return [tuple(row) for row in rows]


async def audit(connection: Connection) -> list[tuple[str, int]]:
    rows = await connection.fetch(
        "SELECT action, rows FROM threat_indicator_audit ORDER BY entry_id"
    )
    return [(row["action"], row["rows"]) for row in rows]


async def test_value_seen_again_is_counted_and_lives_longer(owner: Connection) -> None:
    later = SEEN + timedelta(hours=6)

    assert [1, 2] == [await report(owner), await report(owner, seen=later, confidence=0.9)]

    assert [(ANN, 2, 0.9, SEEN, later, later + DAY)] == await indicators(owner)
    assert [("reported", 1), ("seen_again", 1)] == await audit(owner)


async def test_late_report_counts_and_moves_no_time_backwards(owner: Connection) -> None:
    await report(owner, confidence=0.9)
    earlier = SEEN - timedelta(days=3)

    assert 2 == await report(owner, seen=earlier, confidence=0.1)

    assert [(ANN, 2, 0.9, earlier, SEEN, SEEN + DAY)] == await indicators(owner)


async def test_each_tenant_and_value_is_one_row(owner: Connection) -> None:
    for tenant, value in ((ANN, ADDRESS), (BOB, ADDRESS), (ANN, salted("other")), (BOB, ADDRESS)):
        await report(owner, tenant=tenant, value=value)

    assert [1, 2, 1] == [row[1] for row in await indicators(owner)]


async def test_reports_at_once_are_all_counted(owner: Connection, databases: Databases) -> None:
    dsn = await owner.fetchval("SELECT current_database()")
    connections = [await connector(databases.dsn(dsn))() for _ in range(4)]

    async def some(connection: Connection) -> None:
        for _ in range(10):
            await report(connection)

    await asyncio.gather(*map(some, connections))
    for connection in connections:
        await close_gently(connection, 5)

    assert [40] == [row[1] for row in await indicators(owner)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 1.01}, {"confidence": -0.01}, {"confidence": float("nan")},
        {"tenant": b"ann"}, {"value": b""}, {"lifetime": timedelta(0)}, {"lifetime": -DAY},
    ],
    ids=str,
)  # fmt: skip
async def test_what_cannot_be_is_refused_whole(owner: Connection, wrong: dict[str, object]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await report(owner, **wrong)  # type: ignore[arg-type]  # wrong on purpose

    assert ([], []) == (await indicators(owner), await audit(owner))


async def test_purge_takes_what_is_over_and_says_so(owner: Connection) -> None:
    for number in range(5):
        await report(owner, value=salted(str(number)), lifetime=DAY * (number + 1))

    purged = [
        await owner.fetchval("SELECT purge_indicators($1, 2)", SEEN + 3 * DAY) for _ in range(3)
    ]

    assert [2, 1, 0] == purged
    assert [SEEN + 4 * DAY, SEEN + 5 * DAY] == [row[5] for row in await indicators(owner)]
    assert [("purged", 2), ("purged", 1)] == (await audit(owner))[5:]


async def test_purge_leaves_what_is_reported_meanwhile(
    owner: Connection, databases: Databases
) -> None:
    await report(owner)
    other = await connector(databases.dsn(await owner.fetchval("SELECT current_database()")))()

    async with other.transaction():
        await report(other, seen=SEEN + DAY)
        assert 0 == await owner.fetchval("SELECT purge_indicators($1)", SEEN + DAY)
    assert 0 == await owner.fetchval("SELECT purge_indicators($1)", SEEN + DAY)

    await close_gently(other, 5)
    assert [2] == [row[1] for row in await indicators(owner)]


async def test_removal_by_hand_is_audited(owner: Connection) -> None:
    await report(owner)

    await owner.execute("DELETE FROM threat_indicators")

    assert [("reported", 1), ("removed", 1)] == await audit(owner)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE threat_indicator_audit SET action = 'purged'",
        "DELETE FROM threat_indicator_audit",
        "TRUNCATE threat_indicator_audit",
        "TRUNCATE threat_indicators",
    ],
)
async def test_audit_stays(owner: Connection, change: str) -> None:
    await report(owner)

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await owner.execute(change)


async def test_service_reports_and_reads_and_nothing_else(
    owner: Connection, databases: Databases
) -> None:
    dsn = databases.dsn(await owner.fetchval("SELECT current_database()"))
    service = await connector(dsn, role="tollkeeper_cdefnet")()
    try:
        assert 1 == await report(service)
        assert 1 == len(await indicators(service))
        for refused in (
            "DELETE FROM threat_indicators",
            "INSERT INTO threat_indicator_audit (rows, action) VALUES (1, 'purged')",
            "SELECT purge_indicators(now())",
            "SET tollkeeper.is_purging = 'yes'; DELETE FROM threat_indicators",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(refused)
    finally:
        await close_gently(service, 5)
