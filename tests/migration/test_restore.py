"""Restoring beside what is there: equal to what was backed up, or not there at all."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from tests.backups import (
    Told,
    backed_up,
    beside,
    connected,
    database_in,
    equipment_in,
    fill_ledger,
    names_beside,
    rows_in,
    spend_in,
)
from tests.stopping import children_of

from tollkeeper.migrate.backup_errors import (
    BackupInconsistent,
    RolesMissing,
    ServerOlder,
    TargetExists,
)
from tollkeeper.migrate.backup_model import Backup, Level, TableFacts, encoded
from tollkeeper.migrate.catalogue import METADATA
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.note import scratch_name
from tollkeeper.migrate.restore import restore_backup, restored_beside
from tollkeeper.migrate.verify import verify_backup


@pytest.fixture
def told() -> Told:
    """Who hears what is logged and shown."""
    return Told()


@pytest.fixture
def equipment(tmp_path: Path, told: Told) -> Equipment:
    """A folder for backups, and who hears of them."""
    return equipment_in(tmp_path / "backups", told)


def rewrite(equipment: Equipment, backup: Backup) -> None:
    """Put other metadata in a backup's place, with a checksum that agrees."""
    equipment.catalogue.path(backup.id, METADATA).write_bytes(encoded(backup))


async def properties_of(dsn: str) -> dict[str, object]:
    """Return what a database has that no dump of it holds, its name left out."""
    name = database_in(dsn)
    async with connected(dsn) as connection:
        row = await connection.fetchrow(
            "SELECT pg_get_userbyid(datdba), datconnlimit, datcollate, datctype, "
            " ARRAY(SELECT each::text FROM unnest(datacl) AS each ORDER BY 1),"
            " datlocprovider, shobj_description(oid, 'pg_database') IS NULL FROM pg_database"
            " WHERE datname = $1",
            name,
        )
        settings = await connection.fetch(
            "SELECT setrole::regrole::text, unnest(setconfig) FROM pg_db_role_setting"
            " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = $1) ORDER BY 1, 2",
            name,
        )
        path = await connection.fetchval("SHOW search_path")
    return {"row": tuple(row), "settings": [tuple(each) for each in settings], "path": path}


async def test_a_restored_database_is_what_was_backed_up(
    other_credits_dsn: str, equipment: Equipment
) -> None:
    """Rows, owners, grants, settings, limits; and a service's role can work in it."""
    dsn, name = other_credits_dsn, database_in(other_credits_dsn)
    await fill_ledger(dsn)
    async with connected(dsn) as connection:
        for statement in (
            f"ALTER DATABASE {name} SET search_path TO public, pg_temp",
            f"ALTER DATABASE {name} SET work_mem TO '5MB'",
            f"ALTER ROLE tollkeeper_credits IN DATABASE {name} SET statement_timeout TO '7s'",
            f"ALTER DATABASE {name} CONNECTION LIMIT 77",
            f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {name} TO tollkeeper_credits WITH GRANT OPTION",
        ):
            await connection.execute(statement)
    backup = await backed_up(dsn, equipment)

    await restore_backup(dsn, backup.id, f"{name}_copy", equipment)

    copy = beside(dsn, f"{name}_copy")
    try:
        assert await rows_in(dsn) == await rows_in(copy)
        assert await properties_of(dsn) == await properties_of(copy)
        await spend_in(copy, ["account-0"], 1)
        assert not [each for each in await names_beside(dsn) if "scratch" in each]
    finally:
        async with connected(dsn) as connection:
            await connection.execute(f"DROP DATABASE {name}_copy WITH (FORCE)")


async def test_a_backup_is_lent_beside_to_try_something_out(
    credits_dsn: str, equipment: Equipment
) -> None:
    """The DSN names a host that is not there before the one that is."""
    await fill_ledger(credits_dsn, accounts=1, spends=1)
    names = await names_beside(credits_dsn)
    dsn = credits_dsn.replace("host=", "host=/nowhere,")
    backup = await backed_up(dsn, equipment)

    async with restored_beside(dsn, backup.id, equipment) as scratch:
        assert await rows_in(credits_dsn) == await rows_in(scratch)

    assert names == await names_beside(credits_dsn)


async def test_nothing_is_restored_over_a_database(
    credits_dsn: str, access_dsn: str, equipment: Equipment
) -> None:
    backup = await backed_up(credits_dsn, equipment)

    for name in (database_in(credits_dsn), database_in(access_dsn)):
        with pytest.raises(TargetExists, match="restored over"):
            await restore_backup(credits_dsn, backup.id, name, equipment)


async def test_what_a_killed_run_left_is_dropped_by_the_next(
    credits_dsn: str, equipment: Equipment, told: Told
) -> None:
    left = scratch_name(database_in(credits_dsn), "20260101t000000z_000000")
    async with connected(credits_dsn) as connection:
        await connection.execute(f"CREATE DATABASE {left}")
    backup = await backed_up(credits_dsn, equipment)

    await verify_backup(backup.id, Level.DEEP, equipment, dsn=credits_dsn)

    assert left not in await names_beside(credits_dsn)
    assert left == told.last("restore.leftover_dropped")["name"]


async def test_missing_roles_and_an_older_server_are_refused(
    credits_dsn: str, equipment: Equipment
) -> None:
    backup = await backed_up(credits_dsn, equipment)

    rewrite(equipment, replace(backup, roles=("tollkeeper", "nobody_here")))
    with pytest.raises(RolesMissing, match=r"nobody_here; psql -f .*globals\.sql makes them"):
        await restore_backup(credits_dsn, backup.id, "elsewhere", equipment)
    rewrite(equipment, replace(backup, server_major=99))
    with pytest.raises(ServerOlder, match="99"):
        await restore_backup(credits_dsn, backup.id, "elsewhere", equipment)


async def test_what_is_not_what_was_backed_up_is_found_and_dropped(
    credits_dsn: str, equipment: Equipment
) -> None:
    await fill_ledger(credits_dsn, accounts=2, spends=1)
    backup = await backed_up(credits_dsn, equipment)
    snapshot = backup.snapshot
    wrong = {
        **snapshot.tables,
        "public.accounts": replace(snapshot.tables["public.accounts"], digest="1"),
        "public.gone": TableFacts(rows=1, size_bytes=1),
    }
    facts = {**snapshot.facts, "balance": "7"}
    rewrite(equipment, replace(backup, snapshot=replace(snapshot, tables=wrong, facts=facts)))
    names = await names_beside(credits_dsn)

    with pytest.raises(BackupInconsistent) as found:
        await verify_backup(backup.id, Level.DEEP, equipment, dsn=credits_dsn)

    assert (
        "table public.accounts has other contents in its 2 rows",
        "table public.gone is missing",
        "balance is 1994, not 7",
    ) == found.value.faults
    assert names == await names_beside(credits_dsn)
    assert not equipment.catalogue.read(backup.id).is_good


async def test_a_ledger_that_was_wrong_when_it_was_backed_up_does_not_pass(
    other_credits_dsn: str, equipment: Equipment
) -> None:
    """A row whose hash is another's, a balance that nothing explains, a sequence behind."""
    await fill_ledger(other_credits_dsn, accounts=2, spends=1)
    async with connected(other_credits_dsn) as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE credit_transactions SET amount = 5 WHERE sequence = 2")
        await connection.execute(
            "CREATE TABLE counted (id integer GENERATED BY DEFAULT AS IDENTITY)"
        )
        await connection.execute("INSERT INTO counted VALUES (7)")
    backup = await backed_up(other_credits_dsn, equipment)

    with pytest.raises(BackupInconsistent, match=r"sequence public\.counted_id_seq is behind"):
        await verify_backup(backup.id, Level.DEEP, equipment, dsn=other_credits_dsn)
    async with connected(other_credits_dsn) as connection:
        await connection.execute("DROP TABLE counted")
    backup = await backed_up(other_credits_dsn, equipment)
    with pytest.raises(BackupInconsistent, match=r"account account-0, sequence 2: .*sum is 1990"):
        await verify_backup(backup.id, Level.DEEP, equipment, dsn=other_credits_dsn)


async def test_a_cancelled_restore_leaves_nothing(
    credits_dsn: str, equipment: Equipment, told: Told
) -> None:
    backup = await backed_up(credits_dsn, equipment)
    before, names = set(children_of(os.getpid())), await names_beside(credits_dsn)
    restoring = asyncio.create_task(restore_backup(credits_dsn, backup.id, "never", equipment))

    def leave(event: str) -> None:
        if event == "advance":
            restoring.cancel()

    told.at = leave

    with pytest.raises(asyncio.CancelledError):
        await restoring

    assert set() == set(children_of(os.getpid())) - before
    assert names == await names_beside(credits_dsn)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(beside(credits_dsn, "never"))
