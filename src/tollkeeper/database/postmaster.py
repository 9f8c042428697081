"""One run of the PostgreSQL server process: started, watched, stopped; and its orphans found.

The process belongs to a thread of ours that starts it and waits for its end: the kernel ties the
server's life to the thread that started it (see `launch`), and who waits, knows at once.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

POLL_S = 0.02

_LAST_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
"""Fast shutdown; immediate shutdown, which the next start recovers from; the end."""


class Postmaster:
    """One server process and the thread it belongs to."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path):
        self._command = command
        self._environment = environment
        self._log = log
        self._log_offset = 0
        self._started = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._refusal: OSError | None = None

    def start(self) -> None:
        """Start the process; whether it gets ready is another question.

        Raises:
            OSError: the program or the log file cannot be opened.
        """
        threading.Thread(target=self._keep, name="postmaster", daemon=True).start()
        self._started.wait()
        if self._refusal is not None:
            raise self._refusal

    def _keep(self) -> None:
        try:
            with self._log.open("ab") as log:
                self._log_offset = log.tell()
                self._process = subprocess.Popen(  # noqa: S603  # a command line of our own making
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    # Ctrl-C in the terminal is ours to handle: the server leaves last.
                    start_new_session=True,
                )
        except OSError as error:
            self._refusal = error
            self._ended.set()
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()

    @property
    def pid(self) -> int:
        """The process id; 0 if it never started."""
        return self._process.pid if self._process is not None else 0

    def is_running(self) -> bool:
        """Whether the process lives."""
        return not self._ended.is_set()

    def wait_until_ready(self, pid_file: Path, *, timeout_s: float) -> bool:
        """Wait until the server says in its pid file that it is ready; False if it is not."""
        for _ in range(int(timeout_s / POLL_S)):
            if _status_in(pid_file, self.pid) == "ready":
                return True
            if self._ended.wait(POLL_S):
                return False
        return False

    def stop(self, *, timeout_s: float) -> None:
        """End the process: politely, and if that takes too long, not."""
        for each in _LAST_SIGNALS:
            if self._ended.is_set():
                return
            with suppress(ProcessLookupError):
                os.kill(self.pid, each)
            self._ended.wait(timeout_s)

    def said(self) -> str:
        """Return what the server wrote to its log in this run."""
        with self._log.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")


def end_orphans(data: Path, *, timeout_s: float, say: Callable[[str], None]) -> bool:
    """End what still runs on `data` after its holder was killed; False if something will not go.

    Only who holds the directory's lock may call this.
    """
    pid_file = data / "postmaster.pid"
    for each in _LAST_SIGNALS:
        orphans = _processes_on(data)
        if not orphans:
            break
        say("ending a PostgreSQL server that was left behind")
        _signal_all(_leaders(orphans, pid_file), each)
        _wait_until_gone(data, timeout_s)
    if _processes_on(data):
        return False
    # PostgreSQL refuses to start while any process, even a dead one that nobody waited for or a
    # stranger, has the number in its pid file. Nobody works on this directory: that was checked.
    if (recorded := _recorded_pid(pid_file)) is not None and _exists(recorded):
        pid_file.unlink(missing_ok=True)
    return True


def _processes_on(data: Path) -> set[int]:
    """Return the processes that work in `data`; every process of a server does."""
    if not Path("/proc/self/cwd").exists():
        return _postmaster_by_ps(data)
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if (entry / "cwd").readlink() == data:
                found.add(int(entry.name))
    return found


def _postmaster_by_ps(data: Path) -> set[int]:
    """Return the recorded postmaster, if it lives, where there is no /proc (macOS)."""
    recorded = _recorded_pid(data / "postmaster.pid")
    if recorded is None:
        return set()
    shown = subprocess.run(  # noqa: S603  # a fixed program and a number
        ["/bin/ps", "-o", "command=", "-p", str(recorded)],
        capture_output=True,
        text=True,
        check=False,
    )
    return {recorded} if str(data) in shown.stdout else set()


def _leaders(orphans: set[int], pid_file: Path) -> set[int]:
    """Return the postmaster if it is among the orphans, which ends the others; else all."""
    postmaster = _recorded_pid(pid_file)
    return {postmaster} if postmaster in orphans else orphans


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_until_gone(data: Path, timeout_s: float) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / POLL_S)):
        if not _processes_on(data):
            return
        pause.wait(POLL_S)


def _status_in(pid_file: Path, pid: int) -> str | None:
    """Return the status line of the server with this process id, the eighth of its pid file."""
    with suppress(OSError, ValueError):
        lines = pid_file.read_text(encoding="utf-8").splitlines()
        if len(lines) >= 8 and int(lines[0]) == pid:
            return lines[7].strip()
    return None


def _recorded_pid(pid_file: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(pid_file.read_text(encoding="utf-8").splitlines()[0])
    return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
