"""What every test may use: a real PostgreSQL per run, and a fresh database per test.

`server` starts once per run, in a directory of its own; `credits_dsn` and `access_dsn` are clones
of a template that has all migrations, `empty_dsn` has nothing. A test with `other_server` runs on
every PostgreSQL that is installed here.
"""

import asyncio
import atexit
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import asyncpg
import psycopg
import pytest
from hypothesis import settings

from tollkeeper.database.binaries import inspect_installation
from tollkeeper.database.cluster import choose_account, create_cluster
from tollkeeper.database.embedded import EmbeddedServer, all_binaries, find_binaries
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.service import migrate

# No test asserts a duration: machines that run tests are busy. Each run tries other examples;
# `make soak` tries many.
settings.register_profile(
    "tollkeeper", deadline=None, max_examples=int(os.environ.get("TOLLKEEPER_EXAMPLES", "50"))
)
settings.load_profile("tollkeeper")

MEMORY = Path("/dev/shm")
MEMORY_NEEDED_BYTES = 4 * 1024**3
"""Databases of tests are kept in memory where it has this much room: a clone takes 0.02 s there,
0.3 s on a disk. The server is the same, and syncs what it writes."""


class Databases:
    """Makes and drops the databases of one server; blocking, callable from any test."""

    def __init__(
        self,
        server: EmbeddedServer,
        connection: "psycopg.Connection[tuple[object, ...]] | None" = None,
    ) -> None:
        """Work over a connection that stays, or over one for each step if the server may die."""
        self._server = server
        self._connection = connection
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()

    @contextmanager
    def fresh(self, template: str | None = None) -> Iterator[str]:
        """Lend the DSN of a new database: empty, or a clone with all migrations of `template`."""
        source = "template1" if template is None else self._migrated(template)
        name = f"test_{next(self._numbers)}"
        # By file: with the copy written to the WAL, too, a clone takes four times as long.
        self._execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
        try:
            yield self._server.dsn(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def dsn(self, name: str) -> str:
        """Return the DSN of a database of this server."""
        return self._server.dsn(name)

    def _migrated(self, database: str) -> str:
        name = f"template_{database}"
        if name not in self._templates:
            self._execute(f"CREATE DATABASE {name}")
            run(lambda: _migrate(self._server.dsn(name), database))
            self._templates.add(name)
        return name

    def _execute(self, statement: str) -> None:
        if self._connection is not None:
            self._connection.execute(statement)
            return
        run(lambda: _execute(self._server.dsn("postgres"), statement))


def run(work: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a coroutine in a thread of its own: the caller may have an event loop already."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()


async def _migrate(dsn: str, database: str) -> None:
    await migrate(dsn, database, clock=SystemClock())


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def fastest_folder() -> Path | None:
    """Return a folder in memory with room for databases; None for the usual one."""
    has_memory = os.access(MEMORY, os.W_OK) and (
        shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED_BYTES
    )
    return MEMORY if has_memory else None


@contextmanager
def temporary_server(binaries: Path | None = None) -> Iterator[EmbeddedServer]:
    """Lend a server in a directory that is removed afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="tollkeeper-test-", dir=fastest_folder()) as directory,
        EmbeddedServer.start(with_cluster(Path(directory), binaries), binaries=binaries) as server,
    ):
        yield server


def with_cluster(directory: Path, binaries: Path | None = None) -> Path:
    """Put a cluster that never ran into a directory, which is returned; `initdb` takes longer."""
    directory.mkdir(mode=0o711, exist_ok=True)
    cluster = _cluster(binaries or find_binaries())
    subprocess.run(["cp", "-a", str(cluster), str(directory / cluster.name)], check=True)
    return directory


@cache
def _cluster(binaries: Path) -> Path:
    """Make the cluster that others are copies of."""
    folder = tempfile.TemporaryDirectory(prefix="tollkeeper-cluster-", dir=fastest_folder())
    atexit.register(folder.cleanup)
    data = Path(folder.name) / "postgres"
    create_cluster(
        data,
        inspect_installation(binaries),
        account=choose_account(data),
        log=data.with_suffix(".log"),
    )
    return data


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The PostgreSQL of this run. Who wants to kill one starts their own."""
    with temporary_server() as server:
        yield server


@pytest.fixture(scope="session")
def databases(server: EmbeddedServer) -> Iterator[Databases]:
    """Makes databases on `server`."""
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        yield Databases(server, connection)


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """A fresh empty database."""
    with databases.fresh() as dsn:
        yield dsn


@pytest.fixture
def credits_dsn(databases: Databases) -> Iterator[str]:
    """A fresh database with all migrations of `credits`."""
    with databases.fresh("credits") as dsn:
        yield dsn


@pytest.fixture
def access_dsn(databases: Databases) -> Iterator[str]:
    """A fresh database with all migrations of `access`."""
    with databases.fresh("access") as dsn:
        yield dsn


@pytest.fixture(scope="session")
def server_installations() -> tuple[Path, ...]:
    """The directories of every PostgreSQL installed here; the first is what `server` runs."""
    return all_binaries()


@pytest.fixture(scope="session")
def other_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server of each PostgreSQL installed here, in turn."""
    with temporary_server(request.param) as server:
        yield server


@pytest.fixture(scope="session")
def other_databases(other_server: EmbeddedServer) -> Iterator[Databases]:
    """Makes databases on `other_server`."""
    with psycopg.connect(other_server.dsn("postgres"), autocommit=True) as connection:
        yield Databases(other_server, connection)


@pytest.fixture
def other_credits_dsn(other_databases: Databases) -> Iterator[str]:
    """A fresh database with all migrations of `credits`, on each PostgreSQL installed here."""
    with other_databases.fresh("credits") as dsn:
        yield dsn


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `other_server` once for each installation."""
    if "other_server" in metafunc.fixturenames:
        installed = all_binaries()
        names = [str(path.parent).rsplit("/", maxsplit=1)[-1] for path in installed]
        metafunc.parametrize("other_server", installed, ids=names, indirect=True, scope="session")
