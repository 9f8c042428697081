"""What others call: migrate a database, or ask what it lacks.

It connects by itself: a migration needs a direct connection and the owner's role, which the
services' pools do not have.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.clock import Clock
from tollkeeper.migrate.errors import UnknownDatabase
from tollkeeper.migrate.model import Migration, migration_from
from tollkeeper.migrate.plan import in_order, missing, plan
from tollkeeper.migrate.runner import Patience, Runner, Say
from tollkeeper.migrate.store import MigrationStore

CLOSE_TIMEOUT_S = 2.0
"""How long the goodbye may take; a statement of ours that still runs is cancelled by it."""


def silence(_: str) -> None:
    """Say nothing."""


async def migrate(
    dsn: str, database: str, *, clock: Clock, say: Say = silence
) -> tuple[Migration, ...]:
    """Bring a database to the version of this program; return what was applied now.

    Raises:
        MigrationError: see `errors.py`; nothing of the file that failed remains.
        DatabaseUnavailable: the server cannot be reached, or went away.
    """
    return await apply(dsn, database, shipped_migrations(database), clock=clock, say=say)


async def apply(
    dsn: str,
    database: str,
    available: Sequence[Migration],
    *,
    clock: Clock,
    say: Say = silence,
    patience: Patience | None = None,
) -> tuple[Migration, ...]:
    """Bring a database to the last of `available`, as `migrate` does."""
    async with _connected(dsn, database) as connection:
        runner = Runner(connection, clock=clock, say=say, patience=patience or Patience())
        return await runner.run(database, available)


async def rehearse(
    dsn: str, database: str, available: Sequence[Migration] | None = None
) -> tuple[Migration, ...]:
    """Return what `migrate` would apply, or raise what it would find wrong; change nothing."""
    if available is None:
        available = shipped_migrations(database)
    async with _connected(dsn, database) as connection:
        return plan(database, await MigrationStore(connection).read_records(), available)


async def pending(connection: Connection, database: str) -> tuple[Migration, ...]:
    """Return what a database lacks for this program; a newer database lacks nothing.

    A service stays ready on a newer schema: changes before a deployment keep the old program
    working.
    """
    applied = await MigrationStore(connection).read_records()
    return missing(applied, shipped_migrations(database))


def shipped_migrations(database: str) -> Sequence[Migration]:
    """Return the migrations inside the package, in order."""
    folder = files("tollkeeper.migrations").joinpath(database)
    if not database.isidentifier() or not folder.is_dir():
        raise UnknownDatabase(database=database)
    return read_migrations(folder)


def read_migrations(folder: Traversable) -> Sequence[Migration]:
    """Return the migrations of a folder, which is called like their database, in order.

    Raises:
        MigrationError: a bad name, or numbers that are not 1, 2, 3, ...
    """
    found = [
        # Bytes, because reading as text would change the newlines: SQL is sent as it stands.
        migration_from(folder.name, file.name, file.read_bytes().decode())
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return in_order(folder.name, found)


@asynccontextmanager
async def _connected(dsn: str, database: str) -> AsyncIterator[Connection]:
    settings = {"application_name": f"tollkeeper migrate {database}"}
    connection = await connector(dsn, settings=settings)()
    try:
        yield connection
    finally:
        await close_gently(connection, CLOSE_TIMEOUT_S)
