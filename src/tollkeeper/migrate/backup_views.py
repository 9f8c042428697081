"""What the commands print of backups: rows for tables, objects for JSON. Pure."""

from collections.abc import Sequence

from tollkeeper.migrate.backup_errors import sized
from tollkeeper.migrate.backup_model import KeptBackup
from tollkeeper.migrate.prune import Pruning
from tollkeeper.migrate.views import shown, told

COLUMNS = ("backup", "#version", "#rows", "#size", "verified", "kept", "why")
PRUNING_COLUMNS = ("what", "taken (UTC)", "#size")


def row_of(kept: KeptBackup) -> tuple[str, ...]:
    """Return a backup as a row."""
    backup, fault = kept.backup, fault_of(kept)
    return (
        backup.id,
        str(backup.version),
        f"{backup.snapshot.rows}",
        sized(kept.size_bytes),
        _verified(kept),
        "pinned" if kept.is_pinned else "",
        backup.reason if fault is None else fault,
    )


def tone_of(kept: KeptBackup) -> str:
    """Return how a backup's row is meant."""
    if fault_of(kept) is not None:
        return "bad"
    return "" if kept.is_good else "warn"


def fault_of(kept: KeptBackup) -> str | None:
    """Return what the last verification found wrong."""
    return kept.verifications[-1].fault if kept.verifications else None


def backup_data(kept: KeptBackup) -> dict[str, object]:
    """Return a backup as JSON says it."""
    backup = kept.backup
    return {
        "id": backup.id, "database": backup.service, "taken_at": told(backup.started_at),
        "run": backup.run_id, "reason": backup.reason, "version": backup.version,
        "rows": backup.snapshot.rows, "facts": dict(backup.snapshot.facts),
        "bytes": kept.size_bytes, "database_bytes": backup.database_bytes,
        "duration_s": backup.duration_s, "sha256": backup.dump.sha256,
        "server_version": backup.server_version, "is_pinned": kept.is_pinned,
        "is_good": kept.is_good,
        "verified": None if kept.verified is None else {
            "level": kept.verified.level.value, "at": told(kept.verified.at),
            "duration_s": kept.verified.duration_s,
        },
        "fault": fault_of(kept),
    }  # fmt: skip


def pruning_rows(pruning: Pruning) -> Sequence[tuple[str, ...]]:
    """Return what is or would be deleted as rows."""
    return [
        *(
            (each.backup.id, shown(each.backup.started_at), sized(each.size_bytes))
            for each in pruning.backups
        ),
        *(
            (each.path.name, shown(each.written_at), sized(each.size_bytes))
            for each in pruning.leftovers
        ),
    ]


def pruning_data(pruning: Pruning) -> dict[str, object]:
    """Return the same as JSON says it."""
    return {
        "is_done": pruning.is_done,
        "backups": [each.backup.id for each in pruning.backups],
        "leftovers": [each.path.name for each in pruning.leftovers],
        "freed_bytes": pruning.freed_bytes,
    }


def pruning_sentence(pruning: Pruning) -> str:
    """Return the sum of it."""
    count = len(pruning.backups) + len(pruning.leftovers)
    if not count:
        return "no backup's time is over"
    return f"{count} {'deleted' if pruning.is_done else 'to delete'}, {sized(pruning.freed_bytes)}"


def _verified(kept: KeptBackup) -> str:
    if fault_of(kept) is not None:
        return "DAMAGED"
    return "no" if kept.verified is None else kept.verified.level.value
