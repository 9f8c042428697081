"""Applies what is pending to a restored copy of the last good backup, and drops the copy.

It shows what a dry run cannot: files outside of a unit of work, how long everything takes on
real rows, and that the backup restores. The live database is not touched.
"""

from dataclasses import replace

from tollkeeper.migrate import service
from tollkeeper.migrate.backup import Occasion
from tollkeeper.migrate.backup_model import Backup, Level
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.guarding import safe_backup
from tollkeeper.migrate.report import FileReport
from tollkeeper.migrate.restore import desk_of
from tollkeeper.migrate.server import find_server


async def rehearse(
    run: service.Run, equipment: Equipment, *, to: int | None = None
) -> tuple[Backup, tuple[FileReport, ...]]:
    """Apply a run's pending files to a copy; return of which backup, and how each file went.

    Raises:
        MigrationError: what `up` would meet on these rows.
        BackupError: there is no backup, and none can be taken or restored.
    """
    backup = await _last_good(run, equipment)
    server = await find_server(run.dsn)
    async with (
        desk_of(server, equipment, run.database) as desk,
        desk.beside(backup) as scratch,
    ):
        await desk.finish(scratch)
        reports = await service.up(replace(run, stand_in=scratch, before=None), to=to)
    return backup, reports


async def _last_good(run: service.Run, equipment: Equipment) -> Backup:
    for kept in reversed(equipment.catalogue.list(run.database)):
        if kept.is_good:
            return kept.backup
    occasion = Occasion(service=run.database, reason="to rehearse with", run_id=str(run.run_id))
    return await safe_backup(run.dsn, occasion, equipment, level=Level.READ)
