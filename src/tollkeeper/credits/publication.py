"""Where checkpoints go outside the database: to the end of a file, or to an HTTP target.

A file holds the notes one after the other, an empty line behind each. Invariants: one process
writes at a time; what is there is never changed, except that a last note which was cut short by a
crash is taken away before the next is written; a note counts as published when it is on the disk.
"""

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import httpx

from tollkeeper.credits.errors import NoteInvalid, PublicationFailed
from tollkeeper.credits.note import NOTE_LIMIT_BYTES, SIGNATURE_MARK, split_note

HTTP_TIMEOUT_S: Final = 10.0
"""A target answers by then, or is asked again in the next round."""

_FILE_MODE: Final = 0o644
_END: Final = b"\n\n"


class CheckpointFile:
    """A file of notes, locked for one writer; use it as a context manager.

    `is_ours` is False while another process writes: then nothing may be asked of it. `origin` is
    the first line of the notes that go here: nothing else is ever taken for a torn first note.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self._path = path
        self._first_line = f"{origin}\n".encode()
        self._descriptor = -1
        self.is_ours = False
        self.mended_bytes = 0

    def __enter__(self) -> Self:
        """Open and lock the file.

        Raises:
            PublicationFailed: it cannot be opened.
        """
        try:
            is_new = not self._path.exists()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, _FILE_MODE)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_ours = True
            if is_new:
                self._sync_directory()
        except BlockingIOError:
            return self
        except OSError as error:
            self._close()
            raise self._failed(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def last_note(self) -> str | None:
        """Return the last whole note; what is behind it is a torn one and is taken away.

        Raises:
            PublicationFailed: the file's end is not that of a file of notes, or cannot be read.
        """
        try:
            size = os.fstat(self._descriptor).st_size
            start = max(0, size - 2 * NOTE_LIMIT_BYTES)
            tail = os.pread(self._descriptor, size - start, start)
            note, torn = _last_in(tail)
            if note is None and not self._is_first_note_torn(tail):
                raise self._refused("it holds something else than notes")
            if torn:
                os.ftruncate(self._descriptor, size - torn)
                os.fsync(self._descriptor)
                self.mended_bytes = torn
        except OSError as error:
            raise self._failed(error) from error
        except (NoteInvalid, UnicodeDecodeError) as error:
            raise self._refused(f"its last note is none: {error}") from error
        return note

    def append(self, notes: Sequence[str]) -> None:
        """Write notes to the end, and return when they are on the disk.

        Raises:
            PublicationFailed: the disk does not take them; what it took is mended next time.
        """
        left = memoryview("".join(f"{note}\n" for note in notes).encode())
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def _is_first_note_torn(self, content: bytes) -> bool:
        begun = content[: len(self._first_line)]
        # Zeros: the file had grown when the power went, its content was not there yet.
        return self._first_line.startswith(begun.rstrip(b"\0")) and len(content) < NOTE_LIMIT_BYTES

    def _sync_directory(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _failed(self, error: OSError) -> PublicationFailed:
        return self._refused(error.strerror or str(error))

    def _refused(self, problem: str) -> PublicationFailed:
        return PublicationFailed(place=str(self._path), problem=problem)


class HttpTarget:
    """Takes each note as the body of a POST and keeps it; a status of 2xx says that it did.

    A note is sent again when its answer was lost: `Idempotency-Key` is the same for the same note.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(timeout=HTTP_TIMEOUT_S)
        self.place = urlsplit(url).hostname or "the target"
        self.digest = hashlib.sha256(url.encode()).digest()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, number: int, note: str) -> None:
        """Have a note kept.

        Raises:
            PublicationFailed: it was not, or nobody knows whether it was.
        """
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Idempotency-Key": hashlib.sha256(note.encode()).hexdigest(),
            "Tollkeeper-Checkpoint": str(number),
        }
        try:
            answer = await self._client.post(self._url, content=note.encode(), headers=headers)
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
            raise PublicationFailed(place=self.place, problem=problem) from error
        if not answer.is_success:
            problem = f"checkpoint {number} was answered {answer.status_code}"
            raise PublicationFailed(place=self.place, problem=problem)


def _last_in(tail: bytes) -> tuple[str | None, int]:
    """Return the last whole note in the end of a file, and how many bytes are behind it."""
    # Parts are texts and signatures in turns; what is behind the last empty line is torn.
    *parts, torn = tail.split(_END)
    behind = len(torn)
    mark = SIGNATURE_MARK.encode()
    if parts and not parts[-1].startswith(mark):
        behind += len(parts.pop()) + len(_END)  # a whole text without its signatures
    if not parts:
        return None, behind
    if len(parts) < 2 or not parts[-1].startswith(mark) or parts[-2].startswith(mark):
        raise NoteInvalid(problem="text and signatures do not take turns")
    note = f"{parts[-2].decode()}\n\n{parts[-1].decode()}\n"
    split_note(note)
    return note, behind
