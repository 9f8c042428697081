"""A real PgBouncer between a test and its server: a process in a folder of its own.

It listens on a socket only. Every client is let in, and reaches the server through its socket.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tollkeeper.database.cluster import choose_account, give_to
from tollkeeper.database.launch import launch_command

PORT = 6432
"""Part of the name of the socket; nothing listens on TCP."""

READY_S = 10.0

_PLACES = (".venv/pgbouncer/usr/sbin/pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/bin/pgbouncer")


def find_pgbouncer() -> Path:
    """Return the program; a test that needs it must not be skipped quietly."""
    checkout = Path(__file__).parents[1]
    for place in (shutil.which("pgbouncer"), *(checkout / each for each in _PLACES)):
        if place is not None and Path(place).exists():
            return Path(place)
    raise AssertionError(
        "PgBouncer is not here, and the tests that show life behind it need a real one: "
        "install it (Debian, Ubuntu: apt-get install pgbouncer), or run `make test`, which does."
    )


@contextlib.contextmanager
def running_pgbouncer(
    dsn: str, *, server_connections: int, password: str | None = None, **settings: str
) -> Iterator[str]:
    """Lend the DSN of the same database through a PgBouncer in transaction mode.

    With a password it asks for that one, of the user `ann`.
    """
    program = find_pgbouncer()
    with tempfile.TemporaryDirectory(prefix="pgb-", dir="/tmp") as name:  # a socket's path is short
        folder = Path(name)
        settings = {"default_pool_size": str(server_connections), **settings}
        if password is not None:
            users = folder / "users.txt"
            users.write_text(f'"ann" "{password}"\n')
            settings = {**settings, "auth_type": "scram-sha-256", "auth_file": str(users)}
        _write_configuration(folder, dsn, settings)
        account = choose_account(folder)
        give_to(folder, account)
        command = launch_command(
            [str(program), str(folder / "pgbouncer.ini")],
            death_signal=signal.SIGKILL,
            account=account,
            reach=[name, _server_folder(dsn)],
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=_environment(program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait_until_ready(folder, process)
            yield _dsn_through(dsn, folder)
        finally:
            process.kill()
            process.wait()


def _environment(program: Path) -> dict[str, str]:
    """Return ours, and with it the libraries beside a program that was unpacked, not installed."""
    if program.parents[2] == Path("/"):
        return dict(os.environ)
    folders = [str(folder) for folder in (program.parents[1] / "lib").glob("*-linux-*")]
    known = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, *([known] if known else [])])}


def _write_configuration(folder: Path, dsn: str, settings: Mapping[str, str]) -> None:
    parts = urlsplit(dsn)
    port = parse_qs(parts.query)["port"][0]
    server = f"host={_server_folder(dsn)} port={port} user={parts.username}"
    values = {
        "listen_addr": "",
        "listen_port": str(PORT),
        "unix_socket_dir": str(folder),
        "auth_type": "any",
        "pool_mode": "transaction",
        "max_client_conn": "200",
        "query_wait_timeout": "10",
        "server_login_retry": "1",
        **settings,
    }
    lines = ["[databases]", f"{parts.path.removeprefix('/')} = {server}", "[pgbouncer]"]
    lines += [f"{key} = {value}" for key, value in values.items()]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")


def _server_folder(dsn: str) -> str:
    return parse_qs(urlsplit(dsn).query)["host"][0]


def _wait_until_ready(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(folder / f".s.PGSQL.{PORT}"))
            return
        time.sleep(0.01)
    raise AssertionError(f"PgBouncer did not start:\n{(folder / 'log').read_text()}")


def _dsn_through(dsn: str, folder: Path) -> str:
    parts = urlsplit(dsn)
    return f"postgresql://{parts.username}@{parts.path}?host={folder}&port={PORT}"
