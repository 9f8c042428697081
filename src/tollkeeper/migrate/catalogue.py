"""The folder of backups: which there are, how a file gets in, what is left over.

    ID.json              metadata: written last, removed first; without it there is no backup
    ID.dump              what pg_dump wrote
    ID.globals.sql       roles and tablespaces, without passwords
    ID.verified.jsonl    a line for each verification
    ID.keep              there is one: the backup is pinned
    *.partial            being written, or left by a kill

Invariants: a name stands for a whole file (written beside, synced, renamed); everything is 0600 in
a folder of 0700. Blocking; the files are on a local disk.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from tollkeeper.migrate.backup_errors import BackupError, BackupMissing, DiskFull, FilesRefused
from tollkeeper.migrate.backup_model import (
    Backup,
    FileFacts,
    KeptBackup,
    Verification,
    decoded,
    decoded_lines,
    encoded,
    encoded_line,
    is_backup_id,
)

METADATA: Final = ".json"
DUMP: Final = ".dump"
GLOBALS: Final = ".globals.sql"
VERIFIED: Final = ".verified.jsonl"
PIN: Final = ".keep"
PARTIAL: Final = ".partial"

_SUFFIXES: Final = (DUMP, GLOBALS, VERIFIED, PIN)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file that no backup owns."""

    path: Path
    size_bytes: int
    written_at: datetime


class PartialFile:
    """A file that gets its name when it is whole; leaving the block before that removes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._is_whole = False

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with permitted(self._partial):
            self._file = os.open(self._partial, flags, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_whole:
            os.close(self._file)
            with suppress(FileNotFoundError):
                self._partial.unlink()

    @property
    def size_bytes(self) -> int:
        """What was written so far."""
        return self._size_bytes

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            DiskFull: there was no room for it.
        """
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise self._explained(error) from error
        self._hash.update(piece)
        self._size_bytes += len(piece)

    def finish(self) -> FileFacts:
        """Make what was written last, and give it its name.

        Raises:
            DiskFull: there was no room for it after all.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._explained(error) from error
        os.close(self._file)
        self._is_whole = True
        self._partial.replace(self._path)
        sync_folder(self._path.parent)
        return FileFacts(
            name=self._path.name, size_bytes=self._size_bytes, sha256=self._hash.hexdigest()
        )

    def _explained(self, error: OSError) -> Exception:
        if error.errno in _FULL:
            return DiskFull(where=str(self._path.parent), written_bytes=self._size_bytes)
        return error


class Catalogue:
    """The backups in one folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Make the folder, readable by nobody else."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def free_bytes(self) -> int:
        """Return the room on the folder's file system."""
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def path(self, identifier: str, suffix: str) -> Path:
        """Return where a file of a backup is.

        Raises:
            BackupMissing: nothing can have such an id.
        """
        if not is_backup_id(identifier):
            raise BackupMissing(backup_id=identifier, file=f"{identifier}{METADATA}")
        return self.folder / f"{identifier}{suffix}"

    def add(self, backup: Backup) -> None:
        """Write the metadata: from here on there is this backup."""
        with PartialFile(self.path(backup.id, METADATA)) as file:
            file.write(encoded(backup))
            file.finish()

    def read(self, identifier: str) -> KeptBackup:
        """Return one backup; its dump is not looked at.

        Raises:
            BackupMissing, MetadataChanged: there is none, or not as it was written.
        """
        path = self.path(identifier, METADATA)
        try:
            with permitted(path):
                text = path.read_bytes()
        except FileNotFoundError as error:
            raise BackupMissing(backup_id=identifier, file=path.name) from error
        backup = decoded(text, identifier=identifier, file=path.name)
        lines, path = b"", self.path(identifier, VERIFIED)
        with suppress(FileNotFoundError), permitted(path):
            lines = path.read_bytes()
        return KeptBackup(
            backup=backup,
            verifications=decoded_lines(lines),
            is_pinned=self.path(identifier, PIN).exists(),
        )

    def list(
        self, service: str | None = None, *, unreadable: Callable[[BackupError], None] | None = None
    ) -> Sequence[KeptBackup]:
        """Return all backups, or those of one database, the oldest first.

        One that cannot be understood keeps nobody from the others; it goes to `unreadable`.
        """
        found = []
        for identifier in self._identifiers():
            try:
                kept = self.read(identifier)
            except BackupError as error:
                if unreadable is not None:
                    unreadable(error)
                continue
            if service in {None, kept.backup.service}:
                found.append(kept)
        return sorted(found, key=lambda each: (each.backup.started_at, each.backup.id))

    def record(self, identifier: str, verification: Verification) -> None:
        """Add what came of a verification; a cut line is closed first, so that it stays alone."""
        path = self.path(identifier, VERIFIED)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with permitted(path):
            file = os.open(path, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            is_cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, (b"\n" if is_cut else b"") + encoded_line(verification))
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(self.folder)

    def pin(self, identifier: str) -> None:
        """Keep a backup however old it becomes."""
        self.read(identifier)
        with permitted(self.folder):
            self.path(identifier, PIN).touch(mode=0o600)
        sync_folder(self.folder)

    def unpin(self, identifier: str) -> None:
        """Let a backup go when its time has come."""
        self.read(identifier)
        with permitted(self.folder):
            self.path(identifier, PIN).unlink(missing_ok=True)
        sync_folder(self.folder)

    def delete(self, identifier: str) -> None:
        """Remove a backup; cut in the middle it is none any more, and its files are leftovers."""
        for suffix in (METADATA, *_SUFFIXES):
            with permitted(self.folder):
                self.path(identifier, suffix).unlink(missing_ok=True)
            if suffix == METADATA:
                sync_folder(self.folder)
        sync_folder(self.folder)

    def leftovers(self, *, before: datetime) -> Sequence[Leftover]:
        """Return the files of no backup that were last written before a time."""
        known = set(self._identifiers())
        found = []
        for path in self._files():
            with suppress(FileNotFoundError):  # somebody tidies beside us
                stat = path.stat()
                written_at = datetime.fromtimestamp(stat.st_mtime, UTC)
                if written_at < before and _is_left(path, known):
                    found.append(
                        Leftover(path=path, size_bytes=stat.st_size, written_at=written_at)
                    )
        return found

    def _identifiers(self) -> Sequence[str]:
        names = [path.name.removesuffix(METADATA) for path in self._files(METADATA)]
        return [name for name in names if is_backup_id(name)]

    def _files(self, suffix: str = "") -> Iterator[Path]:
        with permitted(self.folder):
            if not self.folder.is_dir():
                return
            found = sorted(self.folder.iterdir())
        for path in found:
            if path.name.endswith(suffix) and path.is_file():
                yield path


@contextmanager
def permitted(path: Path) -> Iterator[None]:
    """Explain that the system does not let us at a file.

    Raises:
        FilesRefused: which one.
    """
    try:
        yield
    except PermissionError as error:
        raise FilesRefused(path=str(path)) from error


def _is_left(path: Path, known: set[str]) -> bool:
    """Say whether a file is one of ours that no backup owns; what we do not know is not ours."""
    if path.name.endswith(PARTIAL):
        whole = path.name.removesuffix(PARTIAL)
        return any(_owner(whole, suffix) for suffix in (METADATA, *_SUFFIXES))
    owners = [owner for suffix in _SUFFIXES if (owner := _owner(path.name, suffix))]
    return bool(owners) and owners[0] not in known


def _owner(name: str, suffix: str) -> str | None:
    owner = name.removesuffix(suffix)
    return owner if owner != name and is_backup_id(owner) else None


def sync_folder(folder: Path) -> None:
    """Make last which names a folder has."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
