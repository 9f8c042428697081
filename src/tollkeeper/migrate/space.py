"""Estimates what a backup or a restored database takes; refuses what does not fit (pure)."""

from typing import Final

from tollkeeper.migrate.backup_errors import SpaceShort

FIRST_RATIO: Final = 0.5
"""Dump by database before any was made: indexes are not in a dump, and it is compressed."""

MARGIN: Final = 1.5
FLOOR_BYTES: Final = 64 * 1024 * 1024
"""What is needed whatever the size: a system's other writers, the file system's own needs."""

RESTORE_MARGIN: Final = 1.5
"""A restored database is as big as it was at most; loading and indexing it fills the WAL, too."""


def dump_bytes(database_bytes: int, last_ratio: float | None) -> int:
    """Return what a dump may take: by the last dump's ratio, with margin and floor."""
    ratio = FIRST_RATIO if last_ratio is None else last_ratio
    return int(database_bytes * ratio * MARGIN) + FLOOR_BYTES


def restore_bytes(database_bytes: int) -> int:
    """Return what a database may take that is restored beside the live one."""
    return int(database_bytes * RESTORE_MARGIN) + FLOOR_BYTES


def check_space(needed_bytes: int, free_bytes: int, *, what: str, where: str) -> None:
    """Refuse what does not fit.

    Raises:
        SpaceShort: with both figures.
    """
    if needed_bytes > free_bytes:
        raise SpaceShort(where=where, what=what, needed_bytes=needed_bytes, free_bytes=free_bytes)
