"""The embedded PostgreSQL: a real server, below one directory, that needs no administrator.

It is not another database, a test double, or less durable: the same programs, with fsync, owned by
one directory and started by us. Layout of the directory:

    DIR/lock            who holds it, locked for life
    DIR/postgres        the cluster
    DIR/run             the socket's folder, when its path is short enough for a socket
    DIR/postgres.log    what the server said; one older part beside it

Invariants:
- One holder per directory; a second start says who holds it.
- Reachable through a socket in a folder of mode 0700 only; hence authentication is `trust`.
- The server ends with its holder, however that ends; the next start ends what was left behind.
- Every failure is an `EmbeddedError` of one sentence.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tollkeeper.database import cluster
from tollkeeper.database.binaries import (
    Installation,
    all_binaries,
    find_binaries,
    inspect_installation,
)
from tollkeeper.database.errors import EmbeddedError
from tollkeeper.database.holder import DirectoryLock, Holder, read_holder
from tollkeeper.database.launch import Account, launch_command
from tollkeeper.database.postmaster import Postmaster, end_orphans
from tollkeeper.database.queries import load_queries
from tollkeeper.database.server_settings import server_settings

__all__ = [
    "EmbeddedServer",
    "all_binaries",
    "claim_directory",
    "dsn_at",
    "explained",
    "find_binaries",
    "holder_of",
    "is_listening",
]

PROMPT_START_S = 5.0
START_TIMEOUT_S = 600.0
"""Recovery may have to replay all of `max_wal_size`: minutes on a slow disk."""

STOP_TIMEOUT_S = 60.0
"""Fast shutdown writes a checkpoint; after this long the server is stopped without one."""

ORPHAN_TIMEOUT_S = 30.0
LOG_LIMIT_BYTES = 4 * 1024 * 1024
SOCKET_PORT = 5432
"""Not a network port: part of the socket's file name."""

SOCKET_PATH_LIMIT_BYTES = 103
"""Longest socket path that Linux (107) and macOS (103) can address."""

_SAFE_SOCKET_FOLDER = re.compile(r"[A-Za-z0-9/._+=~-]+")
_TEMPORARY_PREFIX = "tollkeeper-"

Say = Callable[[str], None]


class EmbeddedServer:
    """A running server. Every method blocks; call from one thread at a time."""

    def __init__(
        self,
        *,
        directory: Path,
        installation: Installation,
        lock: DirectoryLock,
        keeps_lock: bool,
        say: Say,
    ) -> None:
        self._directory = directory
        self._data = directory / "postgres"
        self._log = directory / "postgres.log"
        self._installation = installation
        self._lock = lock
        self._keeps_lock = keeps_lock
        self._say = say
        self._account: Account | None = None
        self._socket: Path | None = None
        self._postmaster: Postmaster | None = None
        self._is_closed = False

    @classmethod
    def start(
        cls,
        data: Path,
        *,
        binaries: Path | None = None,
        say: Say | None = None,
        lock: DirectoryLock | None = None,
    ) -> Self:
        """Start the server of directory `data`, which is made if it does not exist.

        Who has claimed the directory already hands over the `lock`, and releases it after `stop`.

        Raises:
            EmbeddedError: it cannot run here; the sentence says why.
        """
        directory = _absolute(data)
        installation = inspect_installation(binaries or find_binaries())
        server = cls(
            directory=directory,
            installation=installation,
            lock=lock or claim_directory(directory),
            keeps_lock=lock is not None,
            say=say or _say_nothing,
        )
        try:
            with explained(directory):
                server._bring_up()
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def pid(self) -> int:
        """The process id of the server; 0 when it is stopped."""
        return self._postmaster.pid if self._postmaster is not None else 0

    @property
    def major(self) -> int:
        """The major version of PostgreSQL."""
        return self._installation.major

    def dsn(self, database: str) -> str:
        """Return the address of one database."""
        return dsn_at(str(self._socket), database)

    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._postmaster is not None and self._postmaster.is_running()

    def create_database(self, name: str) -> None:
        """Create a database unless it exists.

        Raises:
            EmbeddedError: the server refused.
        """
        script = load_queries("tollkeeper.database")["create_database"]
        done = subprocess.run(  # noqa: S603  # a program of the installation
            [
                self._installation.program("psql"),
                *("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"),
                f"--set=name={name}",
                f"--dbname={self.dsn('postgres')}",
            ],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            env=cluster.server_environment(),
        )
        if done.returncode:
            raise cluster.explain(done.stderr, self._directory)

    def restart(self) -> None:
        """Stop the server if it runs, end what it left behind if it died, and start it anew.

        Raises:
            EmbeddedError: it does not come up again.
        """
        self._end_server()
        with explained(self._directory):
            self._run_server()

    def stop(self) -> None:
        """Stop the server and give the directory back; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._end_server()
        if self._socket is not None and self._socket.parent != self._directory:
            shutil.rmtree(self._socket, ignore_errors=True)
        if not self._keeps_lock:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _bring_up(self) -> None:
        _remove_left_socket(self._lock.former)
        _bound_log(self._log)
        self._account = cluster.choose_account(self._data)
        if cluster.check_cluster(self._data, self._installation):
            if not end_orphans(self._data, timeout_s=ORPHAN_TIMEOUT_S, say=self._say):
                raise EmbeddedError(
                    problem=f"An older PostgreSQL server still works in {self._data} and cannot "
                    "be ended by us: end it and start again."
                )
        else:
            self._say(f"creating a PostgreSQL {self.major} cluster in {self._data}")
            cluster.create_cluster(
                self._data, self._installation, account=self._account, log=self._log
            )
        cluster.give_to(self._data, self._account)
        self._socket = _make_socket_folder(self._directory)
        cluster.give_to(self._socket, self._account)
        self._lock.announce(socket=str(self._socket))
        self._run_server()

    def _run_server(self) -> None:
        self._say(f"starting PostgreSQL {self.major}")
        command = launch_command(
            self._command_line(),
            death_signal=signal.SIGINT,
            account=self._account,
            reach=[str(self._data), str(self._socket)],
        )
        self._postmaster = Postmaster(
            command, environment=cluster.server_environment(), log=self._log
        )
        self._postmaster.start()
        pid_file = self._data / "postmaster.pid"
        if self._postmaster.wait_until_ready(pid_file, timeout_s=PROMPT_START_S):
            return
        if self._postmaster.is_running():
            self._say("still starting: PostgreSQL is replaying its log after a crash")
            if self._postmaster.wait_until_ready(pid_file, timeout_s=START_TIMEOUT_S):
                return
        self._postmaster.stop(timeout_s=STOP_TIMEOUT_S)
        raise cluster.explain(self._postmaster.said(), self._directory)

    def _end_server(self) -> None:
        if self._postmaster is not None:
            self._postmaster.stop(timeout_s=STOP_TIMEOUT_S)
            end_orphans(self._data, timeout_s=ORPHAN_TIMEOUT_S, say=self._say)

    def _command_line(self) -> list[str]:
        settings = server_settings(
            memory_bytes=_memory_bytes(),
            disk_free_bytes=shutil.disk_usage(self._directory).free,
            wal_compression="lz4" if self._installation.has_lz4 else "pglz",
        )
        settings |= {"unix_socket_directories": str(self._socket), "port": str(SOCKET_PORT)}
        options = [text for pair in settings.items() for text in ("-c", "=".join(pair))]
        return [self._installation.program("postgres"), "-D", str(self._data), *options]


def claim_directory(data: Path) -> DirectoryLock:
    """Make directory `data` ours until the lock is released, or say whose it is.

    Raises:
        EmbeddedError: another process holds it, or it cannot be written.
    """
    directory = _absolute(data)
    with explained(directory):
        _open_directory(directory)
        return DirectoryLock.acquire(directory / "lock")


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn what the operating system refuses us in `directory` into an `EmbeddedError`."""
    try:
        yield
    except OSError as error:
        raise cluster.explain_refusal(error, directory) from error


def holder_of(data: Path) -> Holder | None:
    """Return who wrote their name into the lock of directory `data`, alive or not."""
    return read_holder(_absolute(data) / "lock")


def is_listening(folder: str) -> bool:
    """Say whether a server answers at the socket in this folder; one that was killed does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(f"{folder}/.s.PGSQL.{SOCKET_PORT}")
        except OSError:
            return False
    return True


def dsn_at(folder: str, database: str) -> str:
    """Return the address of a database of the server whose socket is in this folder."""
    return (
        f"postgresql://{cluster.SUPERUSER}@/{quote(database, safe='')}"
        f"?host={quote(folder, safe='/')}&port={SOCKET_PORT}"
    )


def _absolute(data: Path) -> Path:
    return data.expanduser().resolve()


def _say_nothing(_step: str) -> None:
    pass


def _open_directory(directory: Path) -> None:
    """Make the directory; when root makes it, the server's user must be able to pass through."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    directory.mkdir(mode=mode, parents=True, exist_ok=True)


def _can_hold_socket(folder: Path) -> bool:
    path = folder / f".s.PGSQL.{SOCKET_PORT}.lock"
    fits = len(os.fsencode(path)) <= SOCKET_PATH_LIMIT_BYTES
    # Elsewhere a comma separates several folders, and quoting differs between the drivers.
    return fits and _SAFE_SOCKET_FOLDER.fullmatch(str(folder)) is not None


def _make_socket_folder(directory: Path) -> Path:
    inside = directory / "run"
    if _can_hold_socket(inside):
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108  # mkdtemp makes it 0700
        if _can_hold_socket(parent / f"{_TEMPORARY_PREFIX}12345678"):
            return Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=parent))
    raise EmbeddedError(problem="No folder has a path short enough for a socket: set TMPDIR.")


def _remove_left_socket(former: Holder | None) -> None:
    """Remove the temporary socket folder of a holder that was killed."""
    if former is None or former.socket is None:
        return
    folder = Path(former.socket)
    if folder.name.startswith(_TEMPORARY_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def _bound_log(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _memory_bytes() -> int:
    """Return the memory we may use: the machine's, or our control group's if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(name).read_text(encoding="ascii")))
    return min(limits)
