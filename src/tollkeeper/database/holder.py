"""Says who holds a data directory: a lock for life, with the holder's name written in it.

The lock is the operating system's (`flock`), so it ends with its holder however that ends. The
content of the file is for people and is never relied on.
"""

import fcntl
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from tollkeeper.database.errors import EmbeddedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a data directory; what is not known is None."""

    pid: int
    command: str
    socket: str | None = None
    url: str | None = None

    def described(self) -> str:
        """Return the holder in words."""
        serving = f", serving {self.url}" if self.url else ""
        return f"process {self.pid} ({self.command}){serving}"


def read_holder(path: Path) -> Holder | None:
    """Return the holder that a lock file names; None if it names none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Holder(
            pid=int(fields["pid"]),
            command=str(fields["command"]),
            socket=fields.get("socket"),
            url=fields.get("url"),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class DirectoryLock:
    """The lock on one data directory, held until `release` or the end of this process."""

    def __init__(self, descriptor: int, *, holder: Holder, former: Holder | None) -> None:
        self._descriptor = descriptor
        self._holder = holder
        self.former = former
        """Who held it before and did not say goodbye."""

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Take the lock at `path`, or say who holds it.

        Raises:
            EmbeddedError: another process holds it.
            OSError: the file cannot be opened or written.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            holder = read_holder(path)
            who = holder.described() if holder else "another process"
            raise EmbeddedError(problem=f"{path.parent} is in use by {who}.") from error
        lock = cls(
            descriptor,
            holder=Holder(pid=os.getpid(), command=_own_command()),
            former=read_holder(path),
        )
        try:
            lock.announce()
        except OSError:
            os.close(descriptor)
            raise
        return lock

    def announce(self, *, socket: str | None = None, url: str | None = None) -> None:
        """Write down who holds the directory, with what became known since."""
        self._holder = replace(
            self._holder, socket=socket or self._holder.socket, url=url or self._holder.url
        )
        self._write(json.dumps(asdict(self._holder)).encode() + b"\n")

    def release(self) -> None:
        """Give the directory back."""
        self._write(b"")
        os.close(self._descriptor)

    def _write(self, content: bytes) -> None:
        # In place: a new file would not be the locked one.
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)


def _own_command() -> str:
    program, *arguments = sys.argv
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.name
    return " ".join((name, *arguments))[:200]
