"""Evidence of a freeze: a file that says what was found, for whoever looks into it.

A file is written beside its place, synced, and renamed: who sees the name sees all of it. Only the
worker's user may read it. Nothing is ever changed or removed here.
"""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


class EvidenceFolder:
    """A directory for evidence, made when it is first needed."""

    def __init__(self, path: Path, *, software: str) -> None:
        self._path = path
        self._software = software

    def write(
        self, account_id: str, written_at: datetime, found: dict[str, object]
    ) -> tuple[str, bytes]:
        """Write what was found; return the file's name and SHA-256 when it is on the disk.

        Raises:
            OSError: the disk does not take it.
        """
        document = {
            "software": self._software,
            "written_at": f"{written_at:%Y-%m-%dT%H:%M:%S.%fZ}",
            **found,
        }
        content = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        # Of an account's id only a digest: a file's name goes further than its content.
        digest = hashlib.sha256(account_id.encode()).hexdigest()[:16]
        name = f"freeze-{written_at:%Y%m%dT%H%M%S%fZ}-{digest}.json"
        self._path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        beside = self._path / f".{name}.part"
        try:
            _write_synced(beside, content)
            beside.replace(self._path / name)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        _sync_directory(self._path)
        return name, hashlib.sha256(content).digest()


def _write_synced(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, _FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
