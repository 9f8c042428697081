"""Keys on PostgreSQL: made, checked, revoked, and kept through an absence of the database."""

import asyncio
import math
import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
from litestar.types import Receive, Send
from litestar.types import Scope as Asgi
from structlog.testing import capture_logs
from tests.clocks import SetClock

from tollkeeper.access.api import PROBLEMS
from tollkeeper.access.errors import KeyExpired, KeyInvalid, KeysUnavailable, KeyUnknown
from tollkeeper.access.issuer import KeyIssuer
from tollkeeper.access.keyfile import ensure_development_key as ensure_key
from tollkeeper.access.model import hash_token, is_token
from tollkeeper.access.service import AccessService
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.errors import DatabaseUnavailable, SchemaMissing
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import TenantId, system_entropy, system_token
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.auth import Authentication, AuthenticationTally
from tollkeeper.web.problem import SHARED_PROBLEMS
from tollkeeper.wiring import ensure_development_key

DEADLINE_S = 15.0

READ = (Scope.CREDITS_READ,)


@pytest.fixture
def checker(service_pool: Pool) -> AccessService:
    """The service as an HTTP process runs it."""
    return AccessService(service_pool, clock=SystemClock())


async def revoke(connection: Connection, token: str) -> None:
    await connection.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE token_hash = $1", hash_token(token)
    )


async def version(connection: Connection) -> int:
    found: int = await connection.fetchval("SELECT version FROM api_keys_version")
    return found


def is_valid(service: AccessService, token: str) -> bool:
    try:
        service.principal_of(token)
    except KeyUnknown:
        return False
    return True


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_key_is_known_after_a_refresh(issuer: KeyIssuer, checker: AccessService) -> None:
    issued = await issuer.create_key("billing", scopes=READ, tenant_id=TenantId("acme"))
    key, token = issued.key, issued.token
    await checker.refresh()

    principal = checker.principal_of(token)
    assert key.key_id == principal.key_id
    assert {"credits:read"} == principal.scopes
    assert "acme" == principal.tenant_id
    assert is_token(token)


async def test_key_is_kept_only_as_hash(issuer: KeyIssuer, connection: Connection) -> None:
    token = (await issuer.create_key("billing", scopes=READ)).token

    row = str(await connection.fetchrow("SELECT k::text FROM api_keys AS k"))
    assert hash_token(token).hex() in row
    assert token[8:40] not in row


async def test_unknown_key_is_refused_without_a_round_trip(
    checker: AccessService, service_pool: Pool
) -> None:
    await checker.refresh()
    before = service_pool.status().acquired_total

    for token in ("", "wrong", "tk_live_" + "0" * 72, "\udcff"):
        assert not is_valid(checker, token)

    assert before == service_pool.status().acquired_total


async def test_revoked_key_stops_working_after_the_next_refresh(
    issuer: KeyIssuer, checker: AccessService, connection: Connection
) -> None:
    kept = (await issuer.create_key("kept", scopes=READ)).token
    revoked = (await issuer.create_key("revoked", scopes=READ)).token
    await checker.refresh()
    await revoke(connection, revoked)
    assert is_valid(checker, revoked)

    await checker.refresh()

    assert not is_valid(checker, revoked)
    assert is_valid(checker, kept)


async def test_changes_arrive_by_themselves(
    issuer: KeyIssuer, checker: AccessService, connection: Connection
) -> None:
    checker.start()
    try:
        await eventually(lambda: checker.is_loaded)
        token = (await issuer.create_key("billing", scopes=READ)).token
        await eventually(lambda: is_valid(checker, token))
        await revoke(connection, token)
        await eventually(lambda: not is_valid(checker, token))
    finally:
        await checker.close()


async def test_unchanged_keys_are_not_read_again(issuer: KeyIssuer, checker: AccessService) -> None:
    await issuer.create_key("billing", scopes=READ)
    with capture_logs() as logs:
        await checker.refresh()
        await checker.refresh()

    assert ["access.keys_read"] == [entry["event"] for entry in logs]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE api_keys SET scopes = '{admin}'",
        "UPDATE api_keys SET revoked_at = now()",
        "DELETE FROM api_keys",
        "TRUNCATE api_keys",
    ],
)
async def test_every_change_moves_the_version(
    issuer: KeyIssuer, connection: Connection, change: str
) -> None:
    await issuer.create_key("billing", scopes=READ)
    before = await version(connection)
    await connection.execute(change)

    assert before < await version(connection)


async def test_concurrent_changes_are_all_seen(
    issuer: KeyIssuer, checker: AccessService, connection: Connection
) -> None:
    """Refreshing all the while, nothing that committed between two reads is missed."""
    checker.start()
    made: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(_create(issuer, f"key {number}", made))
            for _ in range(20):
                group.create_task(checker.refresh())
        await checker.refresh()
    finally:
        await checker.close()

    assert 20 == len(made)
    assert all(is_valid(checker, token) for token in made)
    assert 20 == await version(connection)


async def _create(issuer: KeyIssuer, name: str, made: list[str]) -> None:
    token = (await issuer.create_key(name, scopes=READ)).token
    made.append(token)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO api_keys SELECT * FROM api_keys",
        "UPDATE api_keys SET scopes = '{admin}'",
        "UPDATE api_keys SET token_hash = sha256('')",
        "UPDATE api_keys SET tenant_id = NULL",
        "DELETE FROM api_keys",
        "TRUNCATE api_keys",
        "UPDATE api_keys_version SET version = 0",
        "INSERT INTO api_key_events SELECT * FROM api_key_events",
        "UPDATE api_key_events SET actor = 'owner'",
        "DELETE FROM api_key_events",
        "TRUNCATE api_key_events",
        "DELETE FROM api_key_uses",
    ],
)
async def test_services_may_do_no_more_than_they_need(service_pool: Pool, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with service_pool.connection() as connection:
            await connection.execute(statement)


async def test_key_that_cannot_be_is_not_made(issuer: KeyIssuer, connection: Connection) -> None:
    with pytest.raises(KeyInvalid):
        await issuer.create_key("", scopes=READ)

    assert 0 == await version(connection)


async def test_constraints_refuse_what_the_model_refuses(connection: Connection) -> None:
    good = {"name": "'n'", "token_hash": "sha256('')", "scopes": "'{a}'", "tenant_id": "NULL"}
    bad = {
        "name": ["''", "repeat('x', 101)"],
        "token_hash": ["'short'"],
        "scopes": ["'{}'", "'{NULL}'"],
        "tenant_id": ["''", "repeat('x', 129)"],
    }
    for column, values in bad.items():
        for value in values:
            row = {**good, column: value}
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(
                    f"INSERT INTO api_keys (key_id, created_at, {', '.join(row)})"
                    f" VALUES (gen_random_uuid(), now(), {', '.join(row.values())})"
                )


async def test_last_known_keys_work_while_the_database_is_away(
    issuer: KeyIssuer,
    checker: AccessService,
    connection: Connection,
    server: EmbeddedServer,
) -> None:
    token = (await issuer.create_key("billing", scopes=READ)).token
    checker.start()
    await eventually(lambda: checker.is_loaded)
    database = await connection.fetchval("SELECT current_database()")
    operator = await connector(server.dsn("postgres"))()
    try:
        await operator.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        await operator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database
        )
        with capture_logs() as logs:
            await eventually(lambda: [] != logs)
            assert is_valid(checker, token)
            assert not is_valid(checker, "wrong")
            assert checker.age_s > 0
            await operator.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
            await eventually(lambda: logs[-1]["event"] == "access.keys_current")

        assert ["access.keys_stale", "access.keys_current"] == [entry["event"] for entry in logs]
        assert is_valid(checker, token)
    finally:
        await operator.close()
        await checker.close()


async def test_without_a_database_no_key_is_judged(tmp_path: Path) -> None:
    pool = Pool(
        connector(f"postgresql://nobody@/none?host={tmp_path}"), size=1, clock=SystemClock()
    )
    service = AccessService(pool, clock=SystemClock())
    service.start()
    try:
        assert math.isinf(service.age_s)
        assert not service.is_loaded
        with pytest.raises(KeysUnavailable):
            service.principal_of("tk_live_" + "0" * 72)
        with pytest.raises(DatabaseUnavailable):
            await service.refresh()
    finally:
        await service.close()
        await pool.close()


async def test_development_key_is_made_once(
    issuer: KeyIssuer, checker: AccessService, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "dev.key"
    token = await ensure_key(issuer, path)
    await checker.refresh()

    assert set(Scope) == checker.principal_of(token).scopes
    assert token.startswith("tk_dev_")
    assert f"{token}\n" == path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert token == await ensure_key(issuer, path)
    assert [path] == list(path.parent.iterdir())


async def test_development_key_of_another_database_is_replaced(
    issuer: KeyIssuer, checker: AccessService, connection: Connection, tmp_path: Path
) -> None:
    path = tmp_path / "dev.key"
    old = await ensure_key(issuer, path)
    await connection.execute("TRUNCATE api_keys")

    new = await ensure_key(issuer, path)
    assert new != old
    assert f"{new}\n" == path.read_text()
    await checker.refresh()
    assert is_valid(checker, new)


@pytest.mark.parametrize("content", [b"", b"tk_dev_00", b"\xff\xfe", b"tk_dev_" + b"0" * 72])
async def test_torn_development_key_is_replaced(
    issuer: KeyIssuer, checker: AccessService, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "dev.key"
    path.write_bytes(content)

    token = await ensure_key(issuer, path)
    await checker.refresh()
    assert is_valid(checker, token)


async def test_readable_development_key_is_closed_to_others(
    issuer: KeyIssuer, tmp_path: Path
) -> None:
    path = tmp_path / "dev.key"
    token = await ensure_key(issuer, path)
    path.chmod(0o644)

    assert token == await ensure_key(issuer, path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


async def test_key_file_that_cannot_be_is_said_in_a_sentence(
    issuer: KeyIssuer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Not a directory"):
        await ensure_key(issuer, tmp_path / "file" / "dev.key")
    (tmp_path / "dev.key").mkdir()
    with pytest.raises(ConfigurationError, match="Is a directory"):
        await ensure_key(issuer, tmp_path / "dev.key")


async def test_keys_guard_an_application(
    issuer: KeyIssuer, checker: AccessService, connection: Connection
) -> None:
    async def application(scope: Asgi, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    guarded = Authentication(
        application,
        principal_of=checker.principal_of,
        problems={**SHARED_PROBLEMS, **PROBLEMS},
        clock=SystemClock(),
        tally=AuthenticationTally(),
    )
    transport = httpx.ASGITransport(app=guarded)  # type: ignore[arg-type]  # other ASGI types
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        token = (await issuer.create_key("billing", scopes=READ)).token
        headers = {"Authorization": f"Bearer {token}"}
        unread = await client.get("/v1/x", headers=headers)
        await checker.refresh()
        served = await client.get("/v1/x", headers=headers)
        await revoke(connection, token)
        await checker.refresh()
        refused = await client.get("/v1/x", headers=headers)

    assert [503, 204, 401] == [unread.status_code, served.status_code, refused.status_code]
    assert "1" == unread.headers["retry-after"]
    assert "urn:tollkeeper:problem:key-unknown" == refused.json()["type"]


async def test_wiring_makes_the_development_key_as_the_owner(
    access_dsn: str, checker: AccessService, tmp_path: Path
) -> None:
    token = await ensure_development_key(access_dsn, tmp_path / "dev.key")
    await checker.refresh()

    assert is_valid(checker, token)
    assert token == await ensure_development_key(access_dsn, tmp_path / "dev.key")


HOUR_S = 3_600


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def clocked(service_pool: Pool, clock: SetClock) -> tuple[AccessService, KeyIssuer]:
    """Both sides of the keys, on one clock that the test sets."""
    issuer = KeyIssuer(service_pool, clock=clock, entropy=system_entropy, tokens=system_token)
    return AccessService(service_pool, clock=clock), issuer


async def test_expiry_is_judged_at_each_check(
    clocked: tuple[AccessService, KeyIssuer], clock: SetClock
) -> None:
    service, issuer = clocked
    issued = await issuer.create_key("short", scopes=READ, expires_in_s=60)
    await service.refresh()
    clock.advance(59.9)
    assert issued.key.key_id == service.principal_of(issued.token).key_id

    clock.advance(0.1)
    with pytest.raises(KeyExpired) as raised:
        service.principal_of(issued.token)
    assert issued.key.expires_at == raised.value.expired_at
    assert "2026-03-01T12:01:00Z" in str(raised.value)
    assert not await issuer.is_valid(issued.token)


async def test_expired_key_is_told_so_for_a_week_and_then_unknown(
    clocked: tuple[AccessService, KeyIssuer], clock: SetClock
) -> None:
    service, issuer = clocked
    issued = await issuer.create_key("short", scopes=READ, expires_in_s=60)
    clock.advance(24 * HOUR_S)
    await service.refresh()
    with pytest.raises(KeyExpired):
        service.principal_of(issued.token)
    clock.advance(7 * 24 * HOUR_S)
    await issuer.create_key("moves the version", scopes=READ)
    await service.refresh()
    with pytest.raises(KeyUnknown):
        service.principal_of(issued.token)
    assert 1 == service.held


async def test_clock_that_went_ahead_and_back_loses_no_key(
    clocked: tuple[AccessService, KeyIssuer], clock: SetClock
) -> None:
    service, issuer = clocked
    issued = await issuer.create_key("month", scopes=READ, expires_in_s=30 * 24 * HOUR_S)
    right = clock.now()
    clock.set_wall(right + timedelta(days=365))
    await service.refresh()
    assert not is_valid(service, issued.token)

    clock.set_wall(right)
    await service.refresh()

    assert is_valid(service, issued.token)


async def test_two_services_see_a_revocation(
    access_dsn: str, service_pool: Pool, issuer: KeyIssuer
) -> None:
    """As in two processes: each with connections and a memory of its own, neither told."""
    other_pool = Pool(connector(access_dsn, role="tollkeeper_access"), size=1, clock=SystemClock())
    services = [AccessService(pool, clock=SystemClock()) for pool in (service_pool, other_pool)]
    issued = await issuer.create_key("billing", scopes=READ)
    for service in services:
        service.start()
    try:
        await eventually(lambda: all(service.is_loaded for service in services))
        assert all(is_valid(service, issued.token) for service in services)
        await issuer.revoke_key(issued.key.key_id)
        await eventually(lambda: not any(is_valid(service, issued.token) for service in services))
    finally:
        for service in services:
            await service.close()
        await other_pool.close()


async def test_a_change_that_is_seen_at_once(issuer: KeyIssuer, checker: AccessService) -> None:
    issued = await issuer.create_key("billing", scopes=READ)
    await checker.see_change()

    assert is_valid(checker, issued.token)


async def last_uses(connection: Connection) -> dict[UUID, datetime]:
    rows = await connection.fetch("SELECT key_id, last_used_at FROM api_key_uses")
    return {row["key_id"]: row["last_used_at"] for row in rows}


async def test_last_use_is_written_once_for_many_requests(
    clocked: tuple[AccessService, KeyIssuer], clock: SetClock, connection: Connection
) -> None:
    service, issuer = clocked
    used = await issuer.create_key("used", scopes=READ)
    await issuer.create_key("unused", scopes=READ)
    await service.refresh()
    before = await version(connection)
    for _ in range(1_000):
        service.principal_of(used.token)
    assert {} == await last_uses(connection)

    await service.record_uses()
    clock.advance(60)
    await service.record_uses()

    assert {used.key.key_id: used.key.created_at} == await last_uses(connection)
    assert before == await version(connection)
    listed = {key.name: key.last_used_at for key in await issuer.list_keys(limit=9)}
    assert {"used": used.key.created_at, "unused": None} == listed


async def test_last_use_outlives_a_reading_of_the_keys(
    clocked: tuple[AccessService, KeyIssuer], clock: SetClock, connection: Connection
) -> None:
    service, issuer = clocked
    used = await issuer.create_key("used", scopes=READ)
    await service.refresh()
    service.principal_of(used.token)
    await issuer.revoke_key(used.key.key_id)
    await service.refresh()
    await service.record_uses()

    assert {used.key.key_id} == set(await last_uses(connection))


async def test_last_use_never_goes_back(
    clocked: tuple[AccessService, KeyIssuer], clock: SetClock, connection: Connection
) -> None:
    """Two services write in any order, and one has a clock that is behind."""
    service, issuer = clocked
    used = await issuer.create_key("used", scopes=READ)
    await service.refresh()
    right = clock.now()
    for moment in (right, right - timedelta(hours=1)):
        clock.set_wall(moment)
        service.principal_of(used.token)
        await service.record_uses()

    assert {used.key.key_id: right} == await last_uses(connection)


async def test_last_uses_are_written_now_and_then_and_at_the_end(
    clocked: tuple[AccessService, KeyIssuer],
    clock: SetClock,
    service_pool: Pool,
    connection: Connection,
) -> None:
    service, issuer = clocked
    used = await issuer.create_key("used", scopes=READ)
    service.start()
    await eventually(lambda: service.is_loaded)
    service.principal_of(used.token)
    clock.advance(30)
    async with asyncio.timeout(DEADLINE_S):
        while used.key.key_id not in await last_uses(connection):
            await asyncio.sleep(0.01)
    clock.advance(1)
    service.principal_of(used.token)
    await service.close()

    assert {used.key.key_id: clock.now()} == await last_uses(connection)


async def test_last_uses_wait_for_a_database_that_is_away(
    clocked: tuple[AccessService, KeyIssuer], connection: Connection
) -> None:
    service, issuer = clocked
    used = await issuer.create_key("used", scopes=READ)
    await service.refresh()
    service.principal_of(used.token)
    await connection.execute("ALTER TABLE api_key_uses RENAME TO away")
    with pytest.raises(SchemaMissing):
        await service.record_uses()
    await connection.execute("ALTER TABLE away RENAME TO api_key_uses")
    await service.record_uses()

    assert {used.key.key_id} == set(await last_uses(connection))


async def test_closing_does_not_fail_for_want_of_the_last_uses(
    issuer: KeyIssuer, checker: AccessService, connection: Connection
) -> None:
    used = await issuer.create_key("used", scopes=READ)
    checker.start()
    await eventually(lambda: checker.is_loaded)
    checker.principal_of(used.token)
    await connection.execute("DROP TABLE api_key_uses")
    with capture_logs() as logs:
        await checker.close()

    assert ["access.uses_not_recorded"] == [entry["event"] for entry in logs]
