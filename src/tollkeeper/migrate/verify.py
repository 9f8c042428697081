"""Verifies a backup as far as asked, and writes beside it what came of it.

Levels are in `backup_model.py`. A backup that fails is not counted on any more, whatever it had
reached before.
"""

from tollkeeper.migrate.backup_errors import (
    BackupDamaged,
    BackupError,
    BackupInconsistent,
    BackupMissing,
)
from tollkeeper.migrate.backup_model import Backup, Level, Verification
from tollkeeper.migrate.dump import programs_to_read
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.reading import check_files, read_through
from tollkeeper.migrate.restore import desk_of
from tollkeeper.migrate.server import find_server


async def verify_backup(
    identifier: str, level: Level, equipment: Equipment, *, dsn: str | None = None
) -> Verification:
    """Verify a backup; `deep` needs the DSN of a server that a copy may be restored on.

    Raises:
        BackupDamaged, BackupMissing, BackupInconsistent: it does not reach the level; that is
            recorded.
        BackupError: it could not be looked at; nothing is recorded.
    """
    catalogue, clock = equipment.catalogue, equipment.clock
    backup = catalogue.read(identifier).backup
    started_s = clock.monotonic_s()
    fault: BackupError | None = None
    try:
        await _look(backup, level, equipment, dsn)
    except (BackupDamaged, BackupMissing, BackupInconsistent) as error:
        fault = error
    verification = Verification(
        level=level,
        at=clock.now(),
        duration_s=round(clock.monotonic_s() - started_s, 3),
        sha256=backup.dump.sha256,
        fault=None if fault is None else str(fault),
    )
    catalogue.record(identifier, verification)
    equipment.log(
        {
            "event": "backup.verified" if fault is None else "backup.verification_failed",
            "backup": identifier,
            "level": level.value,
            "duration_s": verification.duration_s,
            "fault": verification.fault,
        }
    )
    if fault is not None:
        raise fault
    return verification


async def _look(backup: Backup, level: Level, equipment: Equipment, dsn: str | None) -> None:
    catalogue, progress = equipment.catalogue, equipment.progress
    check_files(backup, catalogue, progress)
    if level.rank >= Level.READ.rank:
        programs = await programs_to_read(backup.server_major, equipment.binaries)
        await read_through(backup, catalogue, programs, progress)
    if level.rank >= Level.DEEP.rank:
        assert dsn is not None, "a deep verification needs a server"
        server = await find_server(dsn)
        async with desk_of(server, equipment, backup.service) as desk, desk.beside(backup) as name:
            await desk.check(name, backup)
