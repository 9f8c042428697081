"""Decides what is to be applied: the files that follow what the database has, in order.

Pure. Invariant: what is applied is a prefix of what is available, unchanged; else nothing runs.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from tollkeeper.migrate.errors import (
    DatabaseNewer,
    DuplicateVersion,
    MigrationChanged,
    MigrationMissing,
    MigrationOutOfOrder,
    MissingVersion,
)
from tollkeeper.migrate.model import AppliedMigration, Migration, file_of


def plan(
    database: str, applied: Iterable[AppliedMigration], available: Iterable[Migration]
) -> tuple[Migration, ...]:
    """Return the migrations to apply, in order.

    Raises:
        MigrationError: the files are not 1, 2, 3, ..., or what is applied is not their beginning.
    """
    files = in_order(database, available)
    known = {migration.version: migration for migration in files}
    done = sorted(applied, key=lambda each: each.version)
    for past in done:
        _check_applied(database, past, known, len(files))
    steps = missing(done, files)
    if steps and done and steps[0].version < done[-1].version:
        last = done[-1]
        raise MigrationOutOfOrder(
            file=steps[0].file, later_file=file_of(database, last.version, last.name)
        )
    return steps


def missing(
    applied: Iterable[AppliedMigration], available: Iterable[Migration]
) -> tuple[Migration, ...]:
    """Return what is available and not applied; for readiness, where a newer database is fine."""
    done = {past.version for past in applied}
    return tuple(migration for migration in available if migration.version not in done)


def in_order(database: str, available: Iterable[Migration]) -> Sequence[Migration]:
    """Return the migrations by number.

    Raises:
        DuplicateVersion, MissingVersion: they are not 1, 2, 3, ...
    """
    files = sorted(available, key=lambda each: (each.version, each.name))
    for one, other in pairwise(files):
        if one.version == other.version:
            raise DuplicateVersion(files=(one.file, other.file))
    for expected, migration in enumerate(files, start=1):
        if migration.version != expected:
            raise MissingVersion(database=database, version=expected)
    return files


def _check_applied(
    database: str, past: AppliedMigration, known: dict[int, Migration], known_version: int
) -> None:
    if past.version > known_version:
        raise DatabaseNewer(database=database, version=past.version, known_version=known_version)
    migration = known.get(past.version)
    if migration is None:
        raise MigrationMissing(file=file_of(database, past.version, past.name))
    if migration.checksum != past.checksum:
        raise MigrationChanged(
            file=migration.file,
            applied_checksum=past.checksum,
            file_checksum=migration.checksum,
        )
