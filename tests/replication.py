"""Two servers, the second a streaming standby of the first, for tests of failover."""

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
from tests.conftest import fastest_folder, with_cluster

from tollkeeper.database.binaries import find_binaries
from tollkeeper.database.embedded import EmbeddedServer

DEADLINE_S = 20.0


@dataclass(frozen=True)
class Pair:
    """A primary and its standby, as they began."""

    first: EmbeddedServer
    second: EmbeddedServer

    def dsn(self, database: str) -> str:
        """Return a DSN that names both hosts."""
        folders = [folder_of(server) for server in (self.first, self.second)]
        return f"postgresql://tollkeeper@/{database}?host={','.join(folders)}&port=5432,5432"

    async def caught_up(self) -> None:
        """Return when the standby has replayed what the primary has written."""
        written = await ask(self.first, "SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(DEADLINE_S):
            while not await ask(
                self.second, f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
            ):
                await asyncio.sleep(0.01)

    async def promote_second(self) -> None:
        """Make the standby a primary; returns when it is one."""
        assert await ask(self.second, "SELECT pg_promote(wait => true)")


def folder_of(server: EmbeddedServer) -> str:
    """Return the folder of a server's socket."""
    return parse_qs(urlsplit(server.dsn("postgres")).query)["host"][0]


async def ask(server: EmbeddedServer, statement: str) -> object:
    """Return the value of a statement, over a connection of its own."""
    connection = await asyncpg.connect(server.dsn("postgres"))
    try:
        if ";" in statement:
            return await connection.execute(statement)
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@contextmanager
def replicated_pair() -> Iterator[Pair]:
    """Lend a primary with a standby that streams from it."""
    with (
        tempfile.TemporaryDirectory(prefix="tollkeeper-pair-", dir=fastest_folder()) as directory,
        EmbeddedServer.start(with_cluster(Path(directory) / "first")) as first,
    ):
        second_directory = Path(directory) / "second"
        second_directory.mkdir(mode=0o711)
        _copy(first, second_directory / "postgres")
        with EmbeddedServer.start(second_directory) as second:
            yield Pair(first, second)


def _copy(primary: EmbeddedServer, target: Path) -> None:
    subprocess.run(
        [
            find_binaries() / "pg_basebackup",
            *("--checkpoint=fast", "--write-recovery-conf", "--no-sync", f"--pgdata={target}"),
            f"--host={folder_of(primary)}",
            *("--port=5432", "--username=tollkeeper"),
        ],
        check=True,
        capture_output=True,
    )
