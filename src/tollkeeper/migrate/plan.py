"""Decides what is to be applied or taken back, in order.

Pure. Invariant: what is applied is a prefix of what is available, and PostgreSQL would see no
difference in it; else nothing runs.
"""

import difflib
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tollkeeper.migrate.errors import (
    DatabaseNewer,
    DuplicateVersion,
    MigrationChanged,
    MigrationMissing,
    MigrationOutOfOrder,
    MissingVersion,
    NotReversible,
    UnknownVersion,
)
from tollkeeper.migrate.model import AppliedMigration, Migration, file_of, head_of

CONTEXT_LINES = 1
"""Of a difference, around each changed line."""


def plan(
    database: str,
    applied: Iterable[AppliedMigration],
    available: Iterable[Migration],
    *,
    to: int | None = None,
) -> tuple[Migration, ...]:
    """Return the migrations to apply, in order, up to the version `to`.

    Raises:
        MigrationError: the files are not 1, 2, 3, ..., what is applied is not their beginning, or
            `to` is none of them or lies behind.
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
    if to is None:
        return steps
    if not head_of(done) <= to <= len(files):
        raise UnknownVersion(database=database, version=to, low=head_of(done), high=len(files))
    return tuple(step for step in steps if step.version <= to)


def plan_down(
    database: str,
    applied: Iterable[AppliedMigration],
    available: Iterable[Migration],
    *,
    to: int,
) -> tuple[Migration, ...]:
    """Return the migrations to take back, the last first, until `to` is the last one applied.

    Raises:
        MigrationError: as `plan`; `NotReversible` names those without a `down` section.
    """
    done = tuple(applied)
    files = in_order(database, available)
    plan(database, done, files)
    if not 0 <= to <= head_of(done):
        raise UnknownVersion(database=database, version=to, low=0, high=head_of(done))
    steps = tuple(
        migration for migration in reversed(files) if to < migration.version <= head_of(done)
    )
    lasting = tuple(step.file for step in reversed(steps) if step.down is None)
    if lasting:
        raise NotReversible(files=lasting)
    return steps


def missing(
    applied: Iterable[AppliedMigration], available: Iterable[Migration]
) -> tuple[Migration, ...]:
    """Return what is available and not applied; for readiness, where a newer database is fine."""
    done = {past.version for past in applied}
    return tuple(migration for migration in available if migration.version not in done)


def reworded(
    applied: Iterable[AppliedMigration], available: Iterable[Migration]
) -> tuple[Migration, ...]:
    """Return what reads otherwise than what was applied, though PostgreSQL sees no difference."""
    known = {migration.version: migration for migration in available}
    return tuple(
        known[past.version]
        for past in applied
        if past.version in known
        and known[past.version].checksum != past.checksum
        and known[past.version].digest == past.digest
    )


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
    if migration.checksum == past.checksum or migration.digest == past.digest:
        return
    raise MigrationChanged(
        file=migration.file,
        applied_checksum=past.checksum,
        file_checksum=migration.checksum,
        difference=_difference(past, migration),
    )


def _difference(past: AppliedMigration, migration: Migration) -> str:
    """Return what differs, line by line; nothing where the applied text was not kept."""
    if past.source is None:
        return ""
    lines = difflib.unified_diff(
        past.source.splitlines(),
        migration.source.splitlines(),
        "applied",
        "now",
        lineterm="",
        n=CONTEXT_LINES,
    )
    return "\n".join(lines)
