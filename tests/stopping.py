"""Servers that accept and never answer: all their processes are stopped for a while."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from tollkeeper.database.embedded import EmbeddedServer


class stopped:  # noqa: N801  # reads as a state
    """Stop all processes of a server during the block: it accepts, and never answers."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def __enter__(self) -> None:
        pid = self._server.pid
        self._pids = [pid, *children_of(pid)]
        for each in self._pids:
            os.kill(each, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for each in self._pids:
            os.kill(each, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started (proc(5): the parent is field 4)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            number, _, rest = path.read_text().partition(" (")
            if int(rest.rpartition(")")[2].split()[1]) == pid:
                found.append(int(number))
    return found
