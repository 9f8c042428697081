"""What PostgreSQL and the operating system say, in one sentence for people."""

import errno
from pathlib import Path

import pytest

from tollkeeper.database.cluster import explain, explain_refusal, server_environment

PLACE = Path("/data")


INITDB_ON_A_FULL_DISK = """\
creating configuration files ... ok
initdb: error: could not write file "x": No space left on device
initdb: removing contents
"""
SERVER_ON_A_FULL_DISK = """\
2026-01-01 00:00:00.000 UTC [7] FATAL:  could not create "postmaster.pid": No space left on device
"""
WITHOUT_MEMORY = """\
selecting dynamic shared memory implementation ... posix
2026-01-01 00:00:00.000 UTC [7] FATAL:  could not map anonymous shared memory
2026-01-01 00:00:00.000 UTC [7] HINT:  Less, please.
"""
SOMETHING_ELSE = """\
2026-01-01 00:00:00.000 UTC [7] LOG:  starting
2026-01-01 00:00:00.000 UTC [7] FATAL:  the moon is full
2026-01-01 00:00:00.000 UTC [7] LOG:  database system is shut down
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (INITDB_ON_A_FULL_DISK, "The disk that holds /data is full: could not write file"),
        (SERVER_ON_A_FULL_DISK, "The disk that holds /data is full: could not create"),
        (WITHOUT_MEMORY, "PostgreSQL did not get the shared memory it needs: could not map"),
        (SOMETHING_ELSE, "PostgreSQL did not start: the moon is full; /data/postgres.log says"),
        ("", "PostgreSQL did not start: it gave no reason; /data/postgres.log says"),
    ],
)
def test_the_gravest_line_becomes_the_sentence(said: str, expected: str) -> None:
    assert str(explain(said, PLACE)).startswith(expected)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "The disk that holds /data is full."),
        (errno.EROFS, "/data is on a read-only file system."),
        (errno.ENOTDIR, "/data is not a directory."),
        (errno.EIO, "The data directory /data cannot be used: it broke."),
    ],
)
def test_a_refusal_of_the_system_becomes_a_sentence(number: int, expected: str) -> None:
    assert expected == str(explain_refusal(OSError(number, "it broke"), PLACE))


def test_the_environment_cannot_redirect_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGDATA", "PGPORT", "LANG", "LC_MESSAGES", "TOLLKEEPER_API_KEY"):
        monkeypatch.setenv(name, "elsewhere")

    environment = server_environment()

    assert "elsewhere" not in environment.values()
    assert environment["LC_ALL"] == "C"
