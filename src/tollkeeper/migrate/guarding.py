"""A backup before every migration: taken under the runner's lock, read to its end, written down."""

from collections.abc import Mapping, Sequence

from tollkeeper.migrate.backup import Occasion, take_backup
from tollkeeper.migrate.backup_model import Backup, Level
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.model import AppliedMigration, Migration
from tollkeeper.migrate.prune import Pruning, prune
from tollkeeper.migrate.retention import Policy
from tollkeeper.migrate.runner import Before
from tollkeeper.migrate.session import RunnerSession
from tollkeeper.migrate.verify import verify_backup


def backing_up(dsn: str, equipment: Equipment, *, run_id: str, level: Level = Level.READ) -> Before:
    """Return what a runner does before its first file: a backup that was verified.

    Raises, when it is done:
        BackupError: there is none; the runner then changes nothing.
    """

    async def before(
        session: RunnerSession,
        _: Sequence[AppliedMigration],
        steps: Sequence[Migration],
    ) -> Mapping[str, object]:
        reason = f"before {steps[0].file}" + (f" to {steps[-1].file}" if steps[1:] else "")
        backup = await safe_backup(
            dsn, Occasion(service=session.database, reason=reason, run_id=run_id),
            equipment, level=level,
        )  # fmt: skip
        return {
            "backup": backup.id,
            "sha256": backup.dump.sha256,
            "bytes": backup.dump.size_bytes,
            "level": level.value,
        }

    return before


async def safe_backup(
    dsn: str, occasion: Occasion, equipment: Equipment, *, level: Level
) -> Backup:
    """Take a backup and verify it.

    Raises:
        BackupError: it could not be taken, or is not whole.
    """
    backup = await take_backup(dsn, occasion, equipment)
    await verify_backup(backup.id, level, equipment, dsn=dsn)
    return backup


def tidy(equipment: Equipment, policy: Policy) -> Pruning:
    """Delete what may go, now that there is a newer backup."""
    return prune(
        equipment.catalogue, now=equipment.clock.now(), policy=policy, log=equipment.log,
        confirmed=True,
    )  # fmt: skip
