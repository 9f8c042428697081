"""Backups of a real ledger: what they hold, what is refused, and what is left when they fail."""

import asyncio
import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tests.backups import (
    OCCASION,
    HastyClock,
    Told,
    backed_up,
    beside,
    connected,
    database_in,
    equipment_in,
    fill_ledger,
)
from tests.conftest import run
from tests.passwords import PASSWORD, ROLE, require_password
from tests.pgbouncer import running_pgbouncer
from tests.stopping import children_of

from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.migrate.backup import take_backup
from tollkeeper.migrate.backup_errors import (
    BackupChanged,
    BackupError,
    BackupMissing,
    BackupTruncated,
    BackupUnreadable,
    DatabaseInUse,
    MetadataChanged,
    ProgramFailed,
    ProgramsMissing,
    SpaceShort,
)
from tollkeeper.migrate.backup_model import Level, encoded
from tollkeeper.migrate.catalogue import DUMP, GLOBALS, METADATA, Catalogue
from tollkeeper.migrate.dump import pieces_of, programs_for
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.errors import PoolerRefused
from tollkeeper.migrate.service import shipped_migrations
from tollkeeper.migrate.verify import verify_backup


@pytest.fixture
def told() -> Told:
    """Who hears what is logged and shown."""
    return Told()


@pytest.fixture
def equipment(tmp_path: Path, told: Told) -> Equipment:
    """A folder for backups, and who hears of them."""
    return equipment_in(tmp_path / "backups", told)


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """A folder with programs that are not PostgreSQL's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def put_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def major_of(dsn: str) -> int:
    async with connected(dsn) as connection:
        return int(connection.get_server_version().major)


# What a backup is --------------------------------------------------------------------------------


async def test_a_backup_says_what_it_holds(
    other_server: EmbeddedServer, other_credits_dsn: str, equipment: Equipment, told: Told
) -> None:
    await fill_ledger(other_credits_dsn)

    backup = await backed_up(other_credits_dsn, equipment)
    await verify_backup(backup.id, Level.DEEP, equipment, dsn=other_credits_dsn)

    kept = equipment.catalogue.read(backup.id)
    assert backup == kept.backup
    facts = backup.snapshot.facts
    assert (5, 25, 25, "4940", "4940", "0") == tuple(
        facts[name]
        for name in ("accounts", "transactions", "booked", "total", "balance", "reserved")
    )
    assert 5 == backup.snapshot.tables["public.accounts"].rows
    assert len(shipped_migrations("credits")) == backup.version == len(backup.snapshot.versions)
    assert other_server.major == backup.server_major
    assert str(backup.server_major) == backup.dump_version.partition(".")[0]
    assert backup.system_identifier
    assert kept.is_good
    assert ["backup.started", "backup.taken", "restore.started", "restore.filled"] == (
        told.names[:4]
    )
    assert "backup.verified" == told.names[-1]


async def test_only_the_owner_may_read_a_backup(credits_dsn: str, equipment: Equipment) -> None:
    backup = await backed_up(credits_dsn, equipment)

    folder = equipment.catalogue.folder
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert {f"{backup.id}{suffix}": 0o600 for suffix in (METADATA, DUMP, GLOBALS)} == {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()
    }


async def test_roles_are_written_down_without_their_passwords(
    credits_dsn: str, equipment: Equipment
) -> None:
    await require_password(credits_dsn)

    backup = await backed_up(credits_dsn, equipment)

    text = equipment.catalogue.path(backup.id, GLOBALS).read_text()
    assert f"CREATE ROLE {ROLE};" in text
    assert "CREATE ROLE tollkeeper_credits;" in text
    assert "PASSWORD" not in text
    assert {"tollkeeper", "tollkeeper_credits"} <= set(backup.roles)


async def test_a_password_is_nowhere_to_be_seen(
    credits_dsn: str, equipment: Equipment, told: Told, shim: Path
) -> None:
    """In no argument of a program, no event and no file; the role may do nothing but read."""
    dsn = await require_password(credits_dsn)
    async with connected(credits_dsn) as connection:
        await connection.execute(f"GRANT pg_read_all_data TO {ROLE}")
    real = (await programs_for(await major_of(credits_dsn), ())).installation
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        put_program(shim, name, f'echo {name} "$@" >> {shim}/seen; exec {real.program(name)} "$@"')
    watched = replace(equipment, binaries=[shim])

    backup = await backed_up(dsn, watched)
    await verify_backup(backup.id, Level.DEEP, watched, dsn=credits_dsn)

    seen = (shim / "seen").read_text()
    assert {"pg_dump", "pg_dumpall", "pg_restore"} <= set(seen.split())
    shown = [seen, json.dumps(told.events, default=str)]
    shown += [path.read_bytes().decode("latin1") for path in equipment.catalogue.folder.iterdir()]
    assert [] == [each for each in shown if PASSWORD[:13] in each]


async def test_dump_and_metadata_are_of_one_moment(
    credits_dsn: str, equipment: Equipment, told: Told
) -> None:
    """Rows that come between counting and dumping are in neither."""
    await fill_ledger(credits_dsn, accounts=1, spends=1)

    async def write() -> None:
        async with connected(credits_dsn) as connection:
            await connection.execute("UPDATE health_probe SET probed_at = '2001-01-01'")
            await connection.execute(
                "INSERT INTO reconciled_accounts VALUES (1, 0, 0, 7, 'late', '\\x00')"
            )

    told.at = lambda event: run(write) if event == "begin dumping" else None

    backup = await backed_up(credits_dsn, equipment)
    await verify_backup(backup.id, Level.DEEP, equipment, dsn=credits_dsn)

    async with connected(credits_dsn) as connection:
        assert 1 == await connection.fetchval("SELECT count(*) FROM reconciled_accounts")
    assert 0 == backup.snapshot.tables["public.reconciled_accounts"].rows


async def test_a_database_without_inspector_is_compared_by_its_rows(
    access_dsn: str, equipment: Equipment
) -> None:
    backup = await take_backup(access_dsn, replace(OCCASION, service="access"), equipment)

    await verify_backup(backup.id, Level.DEEP, equipment, dsn=access_dsn)

    assert {} == backup.snapshot.facts
    assert all(table.digest for table in backup.snapshot.tables.values())


# What is refused ---------------------------------------------------------------------------------


async def test_a_pooler_is_refused(credits_dsn: str, equipment: Equipment) -> None:
    with (
        running_pgbouncer(credits_dsn, server_connections=2) as pooled,
        pytest.raises(PoolerRefused),
    ):
        await backed_up(pooled, equipment)


async def test_a_dump_by_somebody_else_is_waited_for_and_then_refused(
    credits_dsn: str, equipment: Equipment
) -> None:
    async with connected(credits_dsn, server_settings={"application_name": "pg_dump"}):
        with pytest.raises(DatabaseInUse, match="pg_dump from"):
            await backed_up(credits_dsn, replace(equipment, clock=HastyClock()))


async def test_one_backup_at_a_time(credits_dsn: str, equipment: Equipment) -> None:
    async with connected(credits_dsn) as holder:
        await holder.execute(
            "SELECT pg_advisory_lock(hashtextextended("
            "'tollkeeper.backup ' || current_database(), 0))"
        )
        with pytest.raises(DatabaseInUse, match="another backup"):
            await backed_up(credits_dsn, replace(equipment, clock=HastyClock()))


async def test_programs_of_another_version_are_refused_with_what_there_is(
    credits_dsn: str, shim: Path, equipment: Equipment
) -> None:
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        put_program(shim, name, 'echo "pg_dump (PostgreSQL) 14.7"')

    with pytest.raises(ProgramsMissing) as refused:
        await programs_for(99, [shim])

    assert f"14.7 in {shim}" in refused.value.found
    assert "postgresql-client-99" in str(refused.value)
    backup = await backed_up(credits_dsn, replace(equipment, binaries=[shim]))
    assert backup.server_version.split()[0].split(".")[0] == backup.dump_version.split(".")[0]


async def test_a_dump_that_is_killed_leaves_nothing(
    credits_dsn: str, equipment: Equipment, shim: Path
) -> None:
    major = await major_of(credits_dsn)
    script = f'case "$*" in *--version*) echo "pg_dump (PostgreSQL) {major}.0";; '
    put_program(
        shim,
        "pg_dump",
        script + "*zstd*) echo compression >&2;; *) printf PGDMP; kill -9 $$;; esac",
    )
    for name in ("pg_dumpall", "pg_restore"):
        put_program(shim, name, "exit 1")

    with pytest.raises(ProgramFailed, match="killed by signal 9"):
        await backed_up(credits_dsn, replace(equipment, binaries=[shim]))

    assert [] == list(equipment.catalogue.folder.iterdir())


async def test_roles_that_cannot_be_read_are_noted(
    credits_dsn: str, equipment: Equipment, shim: Path
) -> None:
    real = (await programs_for(await major_of(credits_dsn), ())).installation
    for name in ("pg_dump", "pg_restore"):
        put_program(shim, name, f'exec {real.program(name)} "$@"')
    put_program(shim, "pg_dumpall", 'echo "pg_dumpall: error: permission denied" >&2; exit 1')

    backup = await backed_up(credits_dsn, replace(equipment, binaries=[shim]))

    assert backup.globals is None
    assert "permission denied" in str(backup.globals_note)


async def test_a_server_that_goes_away_leaves_nothing(
    credits_dsn: str, equipment: Equipment, told: Told
) -> None:
    """All sessions end before the dump has begun to read."""

    async def end_sessions() -> None:
        async with connected(beside(credits_dsn, "postgres")) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{database_in(credits_dsn)}'"
            )

    told.at = lambda event: run(end_sessions) if event == "begin dumping" else None

    with pytest.raises(BackupError):
        await backed_up(credits_dsn, equipment)

    assert [] == list(equipment.catalogue.folder.iterdir())
    assert "backup.failed" in told.names


async def test_a_cancelled_backup_leaves_nothing(
    credits_dsn: str, equipment: Equipment, told: Told, shim: Path
) -> None:
    """While a dump is under way that does not come to its end."""
    major = await major_of(credits_dsn)
    script = f'case "$*" in *--version*) echo "pg_dump (PostgreSQL) {major}.0";; '
    line = 'pg_dump: dumping contents of table \\"public.accounts\\"'
    script += f'*zstd*) echo compression >&2;; *) echo "{line}" >&2; exec sleep 1000;; esac'
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        put_program(shim, name, script)
    before = set(children_of(os.getpid()))
    taking = asyncio.create_task(backed_up(credits_dsn, replace(equipment, binaries=[shim])))

    def wait_for_dump(event: str) -> None:
        told.at = leave if event == "begin dumping" else told.at

    def leave(event: str) -> None:
        if event == "advance":
            taking.cancel()

    told.at = wait_for_dump

    with pytest.raises(asyncio.CancelledError):
        await taking

    assert [] == list(equipment.catalogue.folder.iterdir())
    assert set() == set(children_of(os.getpid())) - before
    told.at = lambda _: None
    await backed_up(credits_dsn, equipment)


# Verification ------------------------------------------------------------------------------------


def flip(path: Path, at: float = 0.5) -> None:
    """Change one byte, at this part of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


async def test_a_flipped_byte_passes_a_listing_and_fails_a_full_read(
    other_credits_dsn: str, equipment: Equipment
) -> None:
    await fill_ledger(other_credits_dsn, accounts=60, spends=10)
    backup = await backed_up(other_credits_dsn, equipment)
    path = equipment.catalogue.path(backup.id, DUMP)
    programs = await programs_for(backup.server_major, ())
    flip(path, at=0.9)

    listing = await asyncio.create_subprocess_exec(
        programs.installation.program("pg_restore"), "--list", str(path), stdout=-3
    )

    assert 0 == await listing.wait()
    with pytest.raises(ProgramFailed):
        await programs.read_through(pieces_of(path))
    with pytest.raises(BackupChanged, match="SHA-256"):
        await verify_backup(backup.id, Level.CHECKSUM, equipment)
    assert not equipment.catalogue.read(backup.id).is_good


async def test_a_backup_that_fails_is_not_good_any_more(
    credits_dsn: str, equipment: Equipment
) -> None:
    backup = await backed_up(credits_dsn, equipment)
    path = equipment.catalogue.path(backup.id, DUMP)
    whole = path.read_bytes()
    await verify_backup(backup.id, Level.READ, equipment)
    good = equipment.catalogue.read(backup.id).is_good

    path.write_bytes(whole[:-100])
    with pytest.raises(BackupTruncated):
        await verify_backup(backup.id, Level.CHECKSUM, equipment)
    truncated = equipment.catalogue.read(backup.id).is_good
    path.unlink()
    with pytest.raises(BackupMissing):
        await verify_backup(backup.id, Level.CHECKSUM, equipment)
    path.write_bytes(whole)
    await verify_backup(backup.id, Level.READ, equipment)

    assert [True, False, True] == [good, truncated, equipment.catalogue.read(backup.id).is_good]


async def test_a_dump_that_was_written_wrong_is_unreadable(
    credits_dsn: str, equipment: Equipment
) -> None:
    """The checksum agrees: whoever wrote it wrote nonsense."""
    backup = await backed_up(credits_dsn, equipment)
    path = equipment.catalogue.path(backup.id, DUMP)
    path.write_bytes(path.read_bytes()[:-100])
    facts = backup.dump
    wrong = replace(
        backup,
        dump=replace(
            facts,
            size_bytes=facts.size_bytes - 100,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        ),
    )
    equipment.catalogue.path(backup.id, METADATA).write_bytes(encoded(wrong))

    await verify_backup(backup.id, Level.CHECKSUM, equipment)
    with pytest.raises(BackupUnreadable, match="end of file"):
        await verify_backup(backup.id, Level.READ, equipment)


async def test_edited_metadata_are_refused(credits_dsn: str, equipment: Equipment) -> None:
    backup = await backed_up(credits_dsn, equipment)
    path = equipment.catalogue.path(backup.id, METADATA)
    path.write_bytes(path.read_bytes().replace(b'"accounts": 0', b'"accounts": 1'))
    unreadable: list[Exception] = []

    with pytest.raises(MetadataChanged):
        await verify_backup(backup.id, Level.CHECKSUM, equipment)
    assert [] == list(equipment.catalogue.list(unreadable=unreadable.append))
    assert [MetadataChanged] == [type(error) for error in unreadable]


async def test_too_little_room_is_refused_with_figures(
    credits_dsn: str, tmp_path: Path, equipment: Equipment
) -> None:
    class FullCatalogue(Catalogue):
        def free_bytes(self) -> int:
            return 1024

    full = replace(equipment, catalogue=FullCatalogue(tmp_path / "full"))

    with pytest.raises(SpaceShort, match=r"needs about .* MiB in .*, where 1.0 KiB are free"):
        await backed_up(credits_dsn, full)
