"""What the commands print of plans, runs and logs: rows for tables, objects for JSON. Pure."""

from collections.abc import Sequence
from datetime import datetime

from tollkeeper.migrate.history import Happening, LogRow
from tollkeeper.migrate.model import Migration, head_of
from tollkeeper.migrate.report import BLOCKING, FileReport, Status

PLAN_COLUMNS = ("file", "#statements", "unit of work", "way back")
REPORT_COLUMNS = ("file", "#ms", "#lock wait ms", "strongest lock", "rewritten")
STATUS_COLUMNS = ("database", "#version", "pending", "last change", "log")
HISTORY_COLUMNS = ("database", "#row", "at (UTC)", "what", "file", "#ms", "run")
SUMMARY_COLUMNS = (
    "database",
    "#from",
    "#to",
    "#files",
    "#ms",
    "#lock wait ms",
    "outcome",
    "backup",
)


def plan_row(migration: Migration) -> tuple[str, ...]:
    """Return what is planned of a file."""
    return (
        migration.file,
        str(len(migration.up)),
        "one" if migration.is_transactional else "none",
        "by SQL" if migration.down is not None else "by backup",
    )


def plan_data(migration: Migration) -> dict[str, object]:
    """Return the same as JSON says it."""
    return {
        "file": migration.file,
        "version": migration.version,
        "name": migration.name,
        "checksum": migration.checksum,
        "digest": migration.digest,
        "statements": len(migration.up),
        "is_transactional": migration.is_transactional,
        "is_reversible": migration.down is not None,
    }


def report_row(report: FileReport) -> tuple[str, ...]:
    """Return how a file went."""
    if not report.is_rehearsed:
        return (report.migration.file, "", "", "not rehearsed: no unit of work", "")
    strong = [name for name, mode in report.locks.items() if mode in BLOCKING]
    return (
        report.migration.file,
        str(report.duration_ms),
        f"{report.lock_wait_ms:g}",
        f"keeps readers out of {', '.join(sorted(strong))}" if strong else "lets readers through",
        ", ".join(f"{name} (about {rows} rows)" for name, rows in report.rewritten.items()),
    )


def status_row(status: Status) -> tuple[str, ...]:
    """Return where a database stands."""
    last = max((each.applied_at for each in status.applied), default=None)
    log = "whole"
    if status.log_faults:
        log = "; ".join(status.log_faults[:2])
    elif status.cut is not None:
        log = f"version {status.cut.version} was cut"
    return (
        status.database,
        str(head_of(status.applied)),
        ", ".join(each.file for each in status.pending) or "nothing",
        "never" if last is None else shown(last),
        log,
    )


def status_data(status: Status) -> dict[str, object]:
    """Return the same as JSON says it."""
    cut = status.cut
    return {
        "database": status.database,
        "version": head_of(status.applied),
        "applied": [
            {
                "version": each.version, "name": each.name, "checksum": each.checksum,
                "digest": each.digest, "applied_at": told(each.applied_at),
                "duration_ms": each.duration_ms,
                "run": None if each.run_id is None else str(each.run_id),
            }
            for each in status.applied
        ],
        "pending": [plan_data(each) for each in status.pending],
        "reworded": [each.file for each in status.reworded],
        "log_faults": list(status.log_faults),
        "cut": None if cut is None else {
            "version": cut.version, "at": told(cut.at), "is_down": cut.is_down,
            "statement": cut.statement, "of": cut.of,
        },
    }  # fmt: skip


def history_row(database: str, row: LogRow) -> tuple[str, ...]:
    """Return a row of a log."""
    entry = row.entry
    file = "" if entry.version is None else f"{entry.version:04}_{entry.name}"
    return (
        database,
        str(row.number),
        shown(entry.at),
        entry.happening.value.replace("_", " "),
        file,
        "" if entry.duration_ms is None else str(entry.duration_ms),
        str(entry.run_id)[:13],
    )


def history_data(database: str, row: LogRow) -> dict[str, object]:
    """Return the same, whole, as JSON says it."""
    entry = row.entry
    return {
        "database": database, "number": row.number, "at": told(entry.at),
        "run": str(entry.run_id), "happening": entry.happening.value, "version": entry.version,
        "name": entry.name, "checksum": entry.checksum, "digest": entry.digest,
        "duration_ms": entry.duration_ms, "details": entry.details,
        "previous_hash": row.previous_hash.hex(), "hash": row.hash.hex(),
    }  # fmt: skip


def of_interest(rows: Sequence[LogRow]) -> list[LogRow]:
    """Return the rows that people look for: without the single statements."""
    return [row for row in rows if row.entry.happening is not Happening.STATEMENT]


def shown(moment: datetime) -> str:
    """Return a moment as people read it."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def told(moment: datetime) -> str:
    """Return a moment as programs read it: RFC 3339 in UTC."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
