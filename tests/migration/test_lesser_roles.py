"""Backup and ways back by a role that owns its database and may make others, and nothing more."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from tests.backups import (
    Told,
    beside,
    connected,
    database_in,
    drop_asides,
    equipment_in,
    names_beside,
)
from tests.migrations import eventually

from tollkeeper.migrate.backup import Occasion, take_backup
from tollkeeper.migrate.backup_model import Level
from tollkeeper.migrate.backup_store import BackupStore
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.rollback import roll_back, undo_rollback
from tollkeeper.migrate.verify import verify_backup

OWNER = "lesser_owner"
OCCASION = Occasion(service="shadow", reason="test")


@pytest.fixture
def equipment(tmp_path: Path) -> Equipment:
    """A folder for backups."""
    return equipment_in(tmp_path / "backups", Told())


@pytest.fixture
async def owners_dsn(empty_dsn: str) -> AsyncIterator[str]:
    """A database with a table, as its owner reaches it."""
    name = database_in(empty_dsn)
    parts = urlsplit(empty_dsn)
    dsn = urlunsplit(parts._replace(netloc=f"{OWNER}@{parts.netloc.rpartition('@')[2]}"))
    async with connected(empty_dsn) as connection:
        await connection.execute(f"CREATE ROLE {OWNER} LOGIN CREATEDB")
        await connection.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")
    async with connected(dsn) as connection:
        await connection.execute("CREATE TABLE one AS SELECT generate_series(1, 9) AS number")
    yield dsn
    await drop_asides(empty_dsn)
    async with connected(empty_dsn) as connection:
        await connection.execute(f"REASSIGN OWNED BY {OWNER} TO CURRENT_USER")
        await connection.execute(f"DROP ROLE {OWNER}")


async def test_owner_goes_back_and_forth(owners_dsn: str, equipment: Equipment) -> None:
    backup = await take_backup(owners_dsn, OCCASION, equipment)
    await verify_backup(backup.id, Level.DEEP, equipment, dsn=owners_dsn)
    async with connected(owners_dsn) as connection:
        await connection.execute("DELETE FROM one WHERE number = 9")

    await roll_back(owners_dsn, "shadow", backup.id, accept_loss=1, equipment=equipment)
    async with connected(owners_dsn) as connection:
        assert 9 == await connection.fetchval("SELECT count(*) FROM one")
    await undo_rollback(owners_dsn, "shadow", accept_loss=1, equipment=equipment)
    async with connected(owners_dsn) as connection:
        assert 8 == await connection.fetchval("SELECT count(*) FROM one")


async def test_autovacuum_is_in_no_owners_way(empty_dsn: str, owners_dsn: str) -> None:
    """It belongs to nobody, only a superuser may end it, and others may not see what it is."""
    name = f"{database_in(empty_dsn)}_swept"
    async with connected(empty_dsn) as superuser:
        await superuser.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        await superuser.execute("SELECT pg_reload_conf()")
        await superuser.execute(f"CREATE DATABASE {name} OWNER {OWNER}")
        try:
            async with connected(beside(empty_dsn, name)) as inside:
                await inside.execute(
                    "CREATE TABLE dead WITH (autovacuum_vacuum_threshold = 1,"
                    " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
                    " AS SELECT repeat('x', 500) FROM generate_series(1, 20000)"
                )
                await inside.execute("DELETE FROM dead")
            await eventually(
                lambda: superuser.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = $1 AND backend_type = 'autovacuum worker'",
                    name,
                )
            )
            async with connected(owners_dsn) as owner:
                store = BackupStore(owner)
                await store.terminate_others(name, ())
                assert 0 == await store.others(name, ())
                await store.drop(name)
            assert name not in await names_beside(empty_dsn)
        finally:
            await superuser.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await superuser.execute("ALTER SYSTEM RESET autovacuum_naptime")
            await superuser.execute("SELECT pg_reload_conf()")
