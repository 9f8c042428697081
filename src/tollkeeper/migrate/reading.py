"""Reads a backup's files: whether they are what was written, and whether pg_restore can read them.

No server is needed. A listing of a dump says nothing of its bytes: it passes with any of them
changed.
"""

import hashlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from tollkeeper.migrate.backup_errors import (
    BackupChanged,
    BackupMissing,
    BackupTruncated,
    BackupUnreadable,
    ProgramFailed,
)
from tollkeeper.migrate.backup_model import Backup, FileFacts
from tollkeeper.migrate.catalogue import Catalogue, permitted
from tollkeeper.migrate.dump import Programs, pieces_of
from tollkeeper.migrate.progress import Progress, Silent


def check_files(backup: Backup, catalogue: Catalogue, progress: Progress) -> None:
    """Demand that dump and roles are what was written, to the byte.

    Raises:
        BackupMissing, BackupTruncated, BackupChanged: which of them is not.
    """
    for facts in (backup.globals, backup.dump):
        if facts is not None:
            for _ in checked_pieces(backup, catalogue.folder / facts.name, facts, progress):
                pass


async def read_through(
    backup: Backup, catalogue: Catalogue, programs: Programs, progress: Progress
) -> None:
    """Demand that `pg_restore` reads every byte of the dump.

    Raises:
        BackupUnreadable: it does not.
        BackupMissing, BackupTruncated, BackupChanged: it is not what was written either.
    """
    path = catalogue.folder / backup.dump.name
    try:
        with closing(checked_pieces(backup, path, backup.dump, progress)) as pieces:
            await programs.read_through(pieces)
    except ProgramFailed as error:
        if error.status < 0:
            raise  # it was killed: that says nothing of the dump
        check_files(backup, catalogue, Silent())
        raise BackupUnreadable(
            backup_id=backup.id,
            file=backup.dump.name,
            detail=f"cannot be read to its end: {error.reason}",
        ) from error


def checked_pieces(
    backup: Backup, path: Path, facts: FileFacts, progress: Progress
) -> Generator[bytes, None, None]:
    """Read a file piece by piece, and demand at its end that these were the bytes written.

    Raises:
        BackupMissing, BackupTruncated, BackupChanged: they were not.
    """
    try:
        with permitted(path), path.open("rb"):
            size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise BackupMissing(backup_id=backup.id, file=path.name) from error
    if size_bytes != facts.size_bytes:
        raise BackupTruncated(
            backup_id=backup.id,
            file=path.name,
            detail=f"has {size_bytes} bytes, and {facts.size_bytes} were written",
        )
    digest = hashlib.sha256()
    progress.begin(f"reading {path.name}", size_bytes)
    try:
        for piece in pieces_of(path):
            digest.update(piece)
            progress.advance(len(piece))
            yield piece
    finally:
        progress.end()
    if digest.hexdigest() != facts.sha256:
        raise BackupChanged(
            backup_id=backup.id,
            file=path.name,
            detail=f"has SHA-256 {digest.hexdigest()[:12]}, and {facts.sha256[:12]} was written",
        )
